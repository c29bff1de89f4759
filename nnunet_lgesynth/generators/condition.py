"""What a generator is told, and the way from a slice to its crop and back.

A generator works on an LV-centred crop of `pixels` x `pixels` at about `mm` in affine-invariant
intensities: 0 is the median of normal myocardium, 1 half the 2nd-98th percentile range around the
heart, so the same crop results from the raw image and from nnU-Net's z-scored case. If the slice's
own pixels are within 10 % of the crop's, the crop is a plain window (nothing is interpolated).

The result is pasted through a feather: weight 1 on the request, falling to 0 over `feather_mm`.
Where the weight is 0, pixels are the source's, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from nnunet_lgesynth.anatomy.caption import NO_ENHANCEMENT, caption
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.intensities import Intensities
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR

__all__ = ["CONTROL_CHANNELS", "Condition", "Crop", "Intensities", "Request", "conditions",
           "control_map", "extract", "feather", "paste", "paste_array"]

CONTROL_CHANNELS = 4          # edge map, masked image, inpaint mask, contrast map
TINY = 1e-6                   # crop pixels; rounding of resampled coordinates
SAME_PIXEL = 0.1              # relative difference up to which a crop is a plain window


@dataclass(frozen=True)
class Crop:
    """Window geometry: crop pixel (i, j) lies at slice pixel centre + ((i, j) - (n-1)/2) * step."""

    centre: tuple[float, float]    # (row, column) in slice pixels
    step: tuple[float, float]      # slice pixels a crop pixel
    pixels: int

    @classmethod
    def around(cls, centre, spacing, pixels: int, mm: float) -> Crop:
        """A crop at `centre` (row, column) of a slice with in-plane `spacing` (2,) mm."""
        step = [mm / s for s in spacing]
        if all(abs(s - 1) <= SAME_PIXEL for s in step):
            middle = (pixels - 1) / 2
            return cls(tuple(round(c - middle) + middle for c in centre), (1.0, 1.0), pixels)
        return cls(tuple(float(c) for c in centre), tuple(step), pixels)

    def shifted(self, offset) -> Crop:
        """The same window in a canvas whose origin lies `offset` (2,) pixels further."""
        return Crop(tuple(c - o for c, o in zip(self.centre, offset)), self.step, self.pixels)

    def holding(self, mask: np.ndarray) -> Crop:
        """The window moved by as few whole crop pixels as bring a mask (Y, X) inside; where the
        mask is larger than the window, its middle."""
        if not mask.any():
            return self
        moves = []
        for places, at in zip(np.nonzero(mask), self.crop_coordinates(mask.shape)):
            low, high = float(at[places.min()]), float(at[places.max()])
            before, after = min(low, 0.0), max(high - (self.pixels - 1), 0.0)
            if high - low > self.pixels - 1:
                before, after = (low + high - (self.pixels - 1)) / 2, 0.0
            moves.append(math.floor(before) + math.ceil(after))
        return replace(self, centre=tuple(c + m * s for c, m, s in
                                          zip(self.centre, moves, self.step)))

    def slice_coordinates(self) -> list[torch.Tensor]:
        """Slice row of each crop row, slice column of each crop column."""
        index = torch.arange(self.pixels, dtype=torch.float64) - (self.pixels - 1) / 2
        return [c + index * s for c, s in zip(self.centre, self.step)]

    def crop_coordinates(self, shape) -> list[torch.Tensor]:
        """Crop row of each slice row, crop column of each slice column."""
        return [(torch.arange(n, dtype=torch.float64) - c) / s + (self.pixels - 1) / 2
                for n, c, s in zip(shape, self.centre, self.step)]

    def covers(self, shape) -> np.ndarray:
        """(Y, X) bool: slice pixels inside the crop."""
        rows, columns = (((-TINY <= c) & (c <= self.pixels - 1 + TINY)).numpy()
                         for c in self.crop_coordinates(shape))
        return rows[:, None] & columns[None]


@dataclass(frozen=True)
class Request:
    """A lesion to paint into a stack: mask (Z, Y, X) of 0, SCAR, NO_REFLOW and its contrasts.

    With `healthy` the region under the mask is repainted as normal wall instead.
    """

    mask: np.ndarray
    contrast: float
    no_reflow_contrast: float
    healthy: bool = False


@dataclass(frozen=True)
class Condition:
    """All a generator is told about one slice; (P, P) arrays lie on the crop."""

    crop: Crop
    intensities: Intensities
    source: np.ndarray          # (P, P) float32, normalised real crop
    request: np.ndarray         # (P, P) uint8: 0, SCAR, NO_REFLOW; all 0 for healthy wall
    region: np.ndarray          # (P, P) bool, what is repainted
    contrast: float
    no_reflow_contrast: float
    caption: str
    weight: np.ndarray          # (Y, X) float32, the feather on the slice


def conditions(image: np.ndarray, anatomy: Anatomy, intensities: Intensities, request: Request,
               slices: Sequence[int], *, pixels: int, mm: float,
               feather_mm: float) -> list[Condition]:
    """One condition a slice; image and request mask are (Z, Y, X) on the same grid.

    The crop lies around the LV, moved where the request would else leave it.
    """
    around = Crop.around(anatomy.lv_centre, anatomy.spacing[1:], pixels, mm)
    result = []
    for z in slices:
        weight = feather(request.mask[z] > 0, anatomy.spacing[1:], feather_mm)
        crop = around.holding(weight > 0)
        weight = weight * crop.covers(image.shape[1:])
        maps = np.stack([intensities.apply(image[z]), weight]).astype(np.float32)
        source, region = extract(torch.from_numpy(maps)[None], [crop])[0].numpy()
        mask = extract(torch.from_numpy(request.mask[z][None, None].astype(np.float32)), [crop],
                       mode="nearest")[0, 0].numpy().astype(np.uint8)
        text = NO_ENHANCEMENT if request.healthy else caption(request.mask, anatomy, [z])
        result.append(Condition(
            crop, intensities, source, np.zeros_like(mask) if request.healthy else mask,
            region > 0, request.contrast, request.no_reflow_contrast, text, weight))
    return result


def feather(mask: np.ndarray, spacing, feather_mm: float) -> np.ndarray:
    """Paste weight (Y, X) float32: 1 on the mask, smoothly to exactly 0 at `feather_mm`."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing)
    t = np.clip(1 - distance / feather_mm, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def control_map(condition: Condition, outline: str = "edges") -> np.ndarray:
    """The ControlNet's input (4, P, P) float32.

    Edges of scar and of no-reflow, or the scar's mask; the image with the region filled by the
    constant 0 (the level of normal myocardium, so the fill tells nothing about the scar); the
    region; the contrast asked.
    """
    scar, core = condition.request > 0, condition.request == NO_REFLOW
    shown = scar if outline == "mask" else \
        (scar & ~ndimage.binary_erosion(scar)) | (core & ~ndimage.binary_erosion(core))
    contrast = condition.contrast * (condition.request == SCAR) + \
        condition.no_reflow_contrast * core
    return np.stack([shown, np.where(condition.region, 0, condition.source), condition.region,
                     contrast]).astype(np.float32)


def extract(slices: torch.Tensor, crops: Sequence[Crop], mode: str = "bilinear") -> torch.Tensor:
    """Crops (B, C, P, P) of slices (B, C, Y, X); outside the slice its border value is repeated."""
    return _resample(slices, [c.slice_coordinates() for c in crops], mode)


def paste(slices: torch.Tensor, drafts: torch.Tensor, weights: torch.Tensor,
          crops: Sequence[Crop]) -> torch.Tensor:
    """Blend drafts (B, C, P, P) into slices (B, C, Y, X) by weights (B, 1, Y, X); differentiable.

    Drafts are in the slices' intensities. Where the weight is 0 the slice is returned unchanged.
    """
    full = _resample(drafts, [c.crop_coordinates(slices.shape[2:]) for c in crops], "bilinear")
    return torch.where(weights > 0, slices + weights * (full - slices), slices)


def paste_array(image: np.ndarray, draft: np.ndarray, condition: Condition) -> np.ndarray:
    """A slice (Y, X) in its own intensities with a normalised draft (P, P) pasted into it."""
    tensors = (condition.intensities.invert(draft), condition.weight)
    full, weight = (torch.from_numpy(np.asarray(t, np.float32))[None, None] for t in tensors)
    source = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    return paste(source, full, weight, [condition.crop])[0, 0].numpy()


def _resample(images: torch.Tensor, coordinates, mode: str) -> torch.Tensor:
    """Sample images (B, C, H, W) at per-sample (rows, columns) pixel coordinates."""
    return torch.stack([_sample(image, rows, columns, mode)
                        for image, (rows, columns) in zip(images, coordinates)])


def _sample(image: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor,
            mode: str) -> torch.Tensor:
    """One image (C, H, W) on the grid of rows and columns; whole coordinates copy pixels."""
    height, width = image.shape[1:]
    if all(torch.equal(c, c.round()) for c in (rows, columns)):
        rows, columns = (c.long().clamp(0, n - 1).to(image.device)
                         for c, n in ((rows, height), (columns, width)))
        return image[:, rows][:, :, columns]
    grid = torch.stack(torch.meshgrid(2 * rows / (height - 1) - 1, 2 * columns / (width - 1) - 1,
                                      indexing="ij")[::-1], -1)         # (H', W', 2), (x, y)
    return F.grid_sample(image[None], grid[None].to(image.device, image.dtype), mode=mode,
                         padding_mode="border", align_corners=True)[0]
