"""How near one scar is to others: least difference inside its mask, over shifts, turns and mirrors.

    d(P, T)^2 = min over turns and mirrors A, shifts s of  mean over M of (P(A y) - T(y + s))^2

P is a slice's crop, M the mask of its scar, seen through A as well; T is another crop. Only what
lies under the mask counts: the scar without a rim, since around it the feather mixes the heart's
own pixels in, which hides copies. All shifts count that keep the mask inside T, also those off its
scar, since a copy need not lie where it was asked for. Of 60 training scars pasted on EMIDEC, 45
are found so (the others reach beyond the crop), 25 with a rim of a pixel, 18 if scars must overlap.

For all shifts at once the sum is two correlations, M P^2 - 2 (M P) * T + M * T^2; T's side is
transformed once (`Library`). Turns are interpolated by cubic splines, after the pixels outside the
mask are replaced by their nearest one under it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

__all__ = ["TURNS", "Library", "Patch"]

TURNS = (-20.0, -10.0, 0.0, 10.0, 20.0)       # degrees


@dataclass(frozen=True, eq=False)
class Patch:
    """A scar in its slice: crop (P, P) in normalised intensities and mask (P, P) bool."""

    case: str
    z: int
    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class _Pose:
    """A patch turned and mirrored, with its mask's box at the origin of an (n, n) frame.

    Pixel y of the box shows the patch at matrix @ y + offset.
    """

    values: np.ndarray          # (n, n) float32, 0 outside the mask
    weights: np.ndarray         # (n, n) float32 of 0 and 1
    box: tuple[int, int]
    matrix: np.ndarray
    offset: np.ndarray


class Library:
    """Crops (T of them, all P x P) to compare patches with."""

    def __init__(self, patches: Sequence[Patch]):
        self.patches = tuple(patches)
        crops = np.stack([p.image for p in patches]).astype(np.float32)
        self._size = crops.shape[-1]
        self._crops, self._squares = fft.rfft2(crops), fft.rfft2(crops ** 2)

    def distances(self, patch: Patch) -> np.ndarray:
        """(T,) root mean squared difference to each crop at its best pose and shift."""
        return np.sqrt(np.min([self._squared(pose).min(axis=(1, 2)) for pose in _poses(patch)],
                              axis=0))

    def aligned(self, patch: Patch, index: int) -> np.ndarray:
        """Crop `index` (P, P), moved to where it lies nearest to the patch; its darkest value where
        it ends."""
        one = Library([self.patches[index]])
        squared = {pose: one._squared(pose)[0] for pose in _poses(patch)}
        pose = min(squared, key=lambda p: squared[p].min())
        shift = np.unravel_index(squared[pose].argmin(), squared[pose].shape)
        back = np.linalg.inv(pose.matrix)
        crop, offset = self.patches[index].image, shift - back @ pose.offset
        moved = ndimage.affine_transform(crop, back, offset, order=3, mode="nearest")
        known = ndimage.affine_transform(np.ones_like(crop), back, offset, order=0)
        return np.where(known > 0, moved, crop.min())

    def _squared(self, pose: _Pose) -> np.ndarray:
        """Mean square (T, shifts, shifts) at every shift that keeps the mask inside."""
        spectrum = fft.rfft2(pose.weights).conj() * self._squares
        spectrum -= 2 * fft.rfft2(pose.values).conj() * self._crops
        sums = fft.irfft2(spectrum, s=(self._size, self._size), overwrite_x=True)
        sums = sums[:, :self._size - pose.box[0] + 1, :self._size - pose.box[1] + 1]
        return np.maximum(sums + (pose.values ** 2).sum(), 0) / pose.weights.sum()


def _poses(patch: Patch) -> Iterator[_Pose]:
    nearest = ndimage.distance_transform_edt(~patch.mask, return_distances=False,
                                             return_indices=True)
    spline = ndimage.spline_filter(patch.image[tuple(nearest)], output=np.float32, mode="nearest")
    mask = patch.mask.astype(np.float32)
    middle = (np.array(mask.shape) - 1) / 2
    centre = middle + np.round(np.argwhere(patch.mask).mean(axis=0) - middle)
    for mirror in (1, -1):
        for turn in np.deg2rad(TURNS):
            matrix = np.array([[np.cos(turn), -np.sin(turn) * mirror],
                               [np.sin(turn), np.cos(turn) * mirror]])
            offset = centre - matrix @ middle
            values = ndimage.affine_transform(spline, matrix, offset, order=3, mode="nearest",
                                              prefilter=False)
            inside = ndimage.affine_transform(mask, matrix, offset, order=1) > 0.5
            if inside.any():
                yield _at_origin(values, inside, matrix, offset)


def _at_origin(values: np.ndarray, mask: np.ndarray, matrix: np.ndarray,
               offset: np.ndarray) -> _Pose:
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    sides = tuple(s.stop - s.start for s in box)
    frames = np.zeros((2, *mask.shape), np.float32)
    frames[:, :sides[0], :sides[1]] = np.where(mask, values, 0)[box], mask[box]
    return _Pose(frames[0], frames[1], sides, matrix,
                 offset + matrix @ [s.start for s in box])
