"""A scar request and its mask, which is what was asked or is refused.

A `ScarSpec` says in wall coordinates what is asked for; `paint_mask` draws it into any heart, see
`growth`: burden and segments are met to the voxel, the transmurality as near as voxels allow. What
cannot be met is refused with what could be.

Angles in radians from the anterior RV insertion, depth on the 0 (endocardium) to 1 (epicardium)
wall, slice positions and lengths in slices of the stack at hand. Contrasts are in the units of
`intensities.Intensities`: 0 is normal myocardium.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_lgesynth.anatomy.aha import APEX, SEGMENTS
from nnunet_lgesynth.anatomy.growth import Growth, Unreachable, grow
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import UserError

__all__ = ["NO_REFLOW", "SCAR", "ScarSpec", "Unreachable", "paint_mask", "paint_masks"]

SCAR, NO_REFLOW = 1, 2        # values of a request mask; 0 is no request
# Above and up to; a slice or an angle may be any number.
_RANGES = {"burden": (0, 1), "transmurality": (0, 1), "extent": (0, 2 * np.pi),
           "length": (0, np.inf), "depth": (-1e-9, 1), "no_reflow": (-1e-9, 0.99),
           "angle": (-np.inf, np.inf), "slice": (-np.inf, np.inf)}
IN_PLANE = ndimage.generate_binary_structure(2, 1)[None]


@dataclass(frozen=True)
class ScarSpec:
    """One lesion.

    Attributes
    ----------
    shape : a key of `shapes.SHAPES`.
    burden : share of the myocardium, met to the voxel.
    transmurality : share of the wall's thickness, see `measure`; None leaves it to the blobs of
        smile and patchy.
    segments : AHA segments it touches, all of them and no other; empty for no such wish.
    angle, extent : centre and full width in radians; None takes them from the segments.
    slice, length : centre and full length along the stack, in slices; None as above.
        Extent and length are scaled together to meet the burden.
    depth : wall depth that an ellipsoid or patchy foci lie around.
    profile : rows of (turn, relative extent, relative transmurality) at even steps from the
        lesion's apical to its basal end; empty for a dome that tapers to both ends.
    shares : for smile, the burden of each of `segments` relative to each other's volume.
    no_reflow : share of the lesion taken by a no-reflow core; thin lesions hold less, because a
        rim of scar parts it from the rest of the wall.
    contrast, no_reflow_contrast : intensity above normal myocardium.
    texture : seed of the border's waviness and of blobs.
    """

    shape: str
    burden: float
    transmurality: float | None = None
    segments: tuple[int, ...] = ()
    angle: float | None = None
    extent: float | None = None
    slice: float | None = None
    length: float | None = None
    depth: float = 0.5
    profile: tuple[tuple[float, float, float], ...] = ()
    shares: tuple[float, ...] = ()
    no_reflow: float = 0.0
    contrast: float = 0.6
    no_reflow_contrast: float = 0.2
    texture: int = 0

    def __post_init__(self):
        object.__setattr__(self, "profile", tuple(tuple(knot) for knot in self.profile))
        self._sort_segments()
        if self.shape not in SHAPES:
            raise UserError(f"shape must be one of {sorted(SHAPES)}, not {self.shape!r}.")
        if unknown := sorted(set(self.segments) - set(SEGMENTS)):
            raise UserError(f"AHA segments are numbered 1 to {APEX}, not {unknown}.")
        place = (self.angle, self.extent, self.slice, self.length)
        if not self.segments and None in place:
            raise UserError("A scar needs AHA segments, or all of angle, extent, slice and length.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low < value <= high:
                raise UserError(f"A scar's {name} must lie above {low:g} and be at most {high:g}, "
                                f"not {value:g}.")
        if any(len(knot) != 3 or not min(knot[1:]) > 0 for knot in self.profile) \
                or len(self.profile) == 1:
            raise UserError("A profile needs at least 2 rows of turn, extent and transmurality, "
                            f"the latter two above 0, not {self.profile}.")
        self._check_depth()

    def _sort_segments(self):
        pairs = sorted(dict(zip(self.segments, self.shares or self.segments)).items())
        if len(self.shares) not in (0, len(self.segments)) or (self.shares and not (
                min(self.shares) >= 0 and 0 < sum(self.shares) < np.inf)):
            raise UserError(f"shares need one value a segment, none below 0 and one above: "
                            f"{len(self.segments)} segments, shares {self.shares}.")
        object.__setattr__(self, "segments", tuple(int(segment) for segment, _ in pairs))
        object.__setattr__(self, "shares",
                           tuple(share for _, share in pairs) if self.shares else ())

    def _check_depth(self):
        depth, deepest = self.transmurality, SHAPES[self.shape].deepest
        if depth is None and not SHAPES[self.shape].blobs:
            raise UserError(f"A {self.shape} scar needs a transmurality.")
        if depth is not None and depth > deepest:
            raise UserError(f"A {self.shape} scar spares a part of the wall: its transmurality is "
                            f"at most {deepest}, not {depth:g}; choose another prior, or less.")

    @classmethod
    def from_dict(cls, values: dict) -> ScarSpec:
        """From its JSON form."""
        return cls(**values)


def paint_mask(anatomy: Anatomy, spec: ScarSpec) -> np.ndarray:
    """The request as a mask (Z, Y, X) uint8: 0 nothing, 1 scar, 2 no-reflow.

    It lies in the myocardium of slices without a real scar. Raises `Unreachable`.
    """
    return paint_masks(anatomy, [spec])


def paint_masks(anatomy: Anatomy, specs: Sequence[ScarSpec]) -> np.ndarray:
    """Several lesions in one mask; a later one spares the voxels of those before."""
    mask = np.zeros(anatomy.wall.shape, np.uint8)
    for spec in specs:
        growth, chosen = grow(anatomy, spec, free=mask == 0)
        lesion = np.zeros(mask.shape, bool)
        lesion.ravel()[growth.wall.index[chosen]] = True
        mask[lesion] = SCAR
        if spec.no_reflow > 0:
            mask[_core(anatomy, growth, lesion)] = NO_REFLOW
    return mask


def _core(anatomy: Anatomy, growth: Growth, lesion: np.ndarray) -> np.ndarray:
    """No-reflow (Z, Y, X) bool, where the lesion began. As in patients it may lie on the
    endocardium, but a rim of scar parts it from the rest of the wall."""
    rows, columns = (np.flatnonzero(lesion.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = (slice(None), slice(max(rows[0] - 1, 0), rows[-1] + 2),
           slice(max(columns[0] - 1, 0), columns[-1] + 2))
    inner = np.zeros(lesion.shape, bool)
    inner[box] = lesion[box] & ndimage.binary_erosion((lesion | anatomy.cavity)[box], IN_PLANE)
    room = np.flatnonzero(inner.ravel()[growth.wall.index])
    size = min(round(growth.spec.no_reflow * int(lesion.sum())), len(room))
    order = np.argsort(growth.scores(growth.limit)[room], kind="stable")[:size]
    core = np.zeros(lesion.shape, bool)
    core.ravel()[growth.wall.index[room[order]]] = True
    return core
