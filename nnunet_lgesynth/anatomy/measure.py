"""What a scar measures, the same for real scars, requests and a judge's findings.

    burden          its share of the myocardium, over all slices with coordinates
    transmurality   share of the wall from its innermost to its outermost border, mean over the
                    wall that it covers: 10-degree sectors of slices, each by its covered angle;
                    borders are those of the pixels, so a full wall measures 1. The apical cap is
                    cut along its wall, so it does not count; scar of the cap alone measures 1
    extent          angle of the 10-degree sectors it touches in a slice, median over the slices
    slices          number of slices it touches
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunet_lgesynth.anatomy.aha import APEX
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.dataset.roles import Roles

__all__ = ["KNOTS", "Measured", "ScarRecord", "Wall", "mean_angle", "measure", "measure_scar"]

SECTORS = 36
KNOTS = 5                  # of a scar's profile along the heart
MIN_SCAR_VOXELS = 20


@dataclass(frozen=True)
class Measured:
    """See the module text; `segments` are the AHA segments it touches, `no_reflow` its share."""

    burden: float
    transmurality: float
    extent: float
    slices: int
    segments: tuple[int, ...]
    no_reflow: float


@dataclass(frozen=True)
class Wall:
    """The myocardium of some slices as a list of N voxels, in the stack's order.

    `index` (N,) positions in the flattened stack, `z` (N,), `depth`, `half_pixel`, `angle` (N,)
    float, `segment` (N,), `cell` (N,) the angle a voxel takes times the depth it takes, radians; 0
    in the apical cap, whose depth is none through the wall.
    """

    index: np.ndarray
    z: np.ndarray
    depth: np.ndarray
    half_pixel: np.ndarray
    angle: np.ndarray
    segment: np.ndarray
    cell: np.ndarray

    @classmethod
    def of(cls, anatomy: Anatomy, voxels: np.ndarray) -> Wall:
        """The myocardium among `voxels` (Z, Y, X) bool."""
        index = np.flatnonzero(voxels & anatomy.myocardium)
        depth, half_pixel, angle = (getattr(anatomy, n).ravel()[index].astype(float)
                                    for n in ("depth", "half_pixel", "angle"))
        z, row, column = np.unravel_index(index, voxels.shape)
        pixel = np.array(anatomy.spacing[1:])
        radius = np.hypot(*((np.stack([row, column]).T - anatomy.centre[z]) * pixel).T)
        cell = pixel.prod() / np.maximum(radius, pixel.mean()) * 2 * half_pixel / pixel.mean()
        segment = anatomy.segment.ravel()[index]
        return cls(index, z, depth, half_pixel, angle, segment, np.where(segment == APEX, 0, cell))

    @cached_property
    def sector(self) -> np.ndarray:
        """(N,) int: slice and 10-degree sector in one number."""
        turn = np.minimum((self.angle / (2 * np.pi) * SECTORS).astype(int), SECTORS - 1)
        return self.z * SECTORS + turn

    @cached_property
    def borders(self) -> tuple[np.ndarray, np.ndarray]:
        """Depth (N,) of the inner and the outer border of each voxel."""
        return (np.clip(self.depth - self.half_pixel, 0, 1),
                np.clip(self.depth + self.half_pixel, 0, 1))

    def sectors(self, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of the sectors that `chosen` (indices or (N,) bool) touches: number, depth of the inner
        and of the outer border, and covered angle in radians, so that a sliver counts as one."""
        where = self.sector[chosen]
        if not len(where):
            return where, *np.zeros((3, 0))
        first = int(where.min())
        inner, outer = (np.full(int(where.max()) - first + 1, v) for v in (2.0, -1.0))
        np.minimum.at(inner, where - first, self.borders[0][chosen])
        np.maximum.at(outer, where - first, self.borders[1][chosen])
        hit = np.flatnonzero(outer >= 0)
        inner, outer = inner[hit], outer[hit]
        covered = np.bincount(where - first, self.cell[chosen])[hit] / (outer - inner)
        return hit + first, inner, outer, covered

    def profile(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the slices that `chosen` touches: number, transmurality, number of sectors."""
        sector, inner, outer, covered = self.sectors(chosen)
        slices, at, count = np.unique(sector // SECTORS, return_inverse=True, return_counts=True)
        weight = np.bincount(at, covered, len(slices))
        means = np.bincount(at, (outer - inner) * covered, len(slices)) / np.maximum(weight, 1e-12)
        return slices, np.where(weight > 0, means, 1.0), count

    def gaps(self, chosen: np.ndarray) -> tuple[float, float]:
        """What `chosen` leaves free at the endocardium and at the epicardium, as shares of the
        wall; means as in `transmurality`."""
        _, inner, outer, covered = self.sectors(chosen)
        if not covered.sum() > 0:
            return 0.0, 0.0
        return (float(inner @ covered / covered.sum()),
                float((1 - outer) @ covered / covered.sum()))

    def transmurality(self, chosen: np.ndarray) -> float:
        """See the module text; 0 for nothing."""
        if not len(self.index[chosen]):
            return 0.0
        return 1.0 - sum(self.gaps(chosen))


def measure(mask: np.ndarray, anatomy: Anatomy, no_reflow: int = 2) -> Measured:
    """Measure a mask (Z, Y, X): 0 is nothing, other values are scar, one of them no-reflow."""
    wall = Wall.of(anatomy, mask > 0)
    every = np.arange(len(wall.index))
    slices, _, sectors = wall.profile(every)
    return Measured(
        burden=float(len(every) / max(int(anatomy.myocardium.sum()), 1)),
        transmurality=wall.transmurality(every),
        extent=float(np.median(sectors)) * 2 * np.pi / SECTORS if len(slices) else 0.0,
        slices=len(slices), segments=tuple(int(s) for s in np.unique(wall.segment)),
        no_reflow=float((mask.ravel()[wall.index] == no_reflow).mean()) if len(every) else 0.0)


@dataclass(frozen=True)
class ScarRecord:
    """One patient's real scar in wall coordinates; units as in `Measured` and `ScarSpec`.

    `slice_share` is the share of slices with scar, `level` their mean level, `wall_sd` the
    intensity spread of normal myocardium. `profile` has `KNOTS` rows from the scar's apical to its
    basal end: turn (radians from `angle`), and extent and transmurality there, relative to
    `extent` and `transmurality`.
    """

    angle: float
    extent: float
    transmurality: float
    slice_share: float
    level: float
    burden: float
    no_reflow: float
    contrast: float
    no_reflow_contrast: float | None
    wall_sd: float
    profile: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "profile", tuple(tuple(knot) for knot in self.profile))


def measure_scar(labels: np.ndarray, image: np.ndarray, anatomy: Anatomy,
                 roles: Roles) -> ScarRecord | None:
    """Measure a labelled scar (labels, normalised image: (Z, Y, X)); None if there is too little,
    or no-reflow alone, whose infarct's contrast is unknown."""
    scar = np.isin(labels, roles.scars) & anatomy.myocardium
    if scar.sum() < MIN_SCAR_VOXELS or not (labels[scar] == roles.scar).any():
        return None
    found = measure(np.where(scar, labels, 0), anatomy, no_reflow=roles.no_reflow or -1)
    slices = np.flatnonzero(scar.any(axis=(1, 2)))
    normal = image[(labels == roles.myocardium) & anatomy.myocardium]
    infarct, core = (image[scar & (labels == value)] for value in (roles.scar, roles.no_reflow))
    normal_level = np.median(normal) if len(normal) else 0.0
    angle = mean_angle(anatomy.angle[scar])
    return ScarRecord(
        angle=angle, extent=found.extent, transmurality=found.transmurality,
        slice_share=len(slices) / int(anatomy.covered.sum()),
        level=float(anatomy.level[slices].mean()), burden=found.burden, no_reflow=found.no_reflow,
        contrast=float(np.median(infarct) - normal_level),
        no_reflow_contrast=float(np.median(core) - normal_level) if len(core) else None,
        wall_sd=float(normal.std()) if len(normal) else 0.0,
        profile=_profile(scar, anatomy, angle, found))


def mean_angle(angle: np.ndarray) -> float:
    """Circular mean in [0, 2 pi)."""
    return float(np.angle(np.exp(1j * np.asarray(angle, float)).mean()) % (2 * np.pi))


def _profile(scar: np.ndarray, anatomy: Anatomy, angle: float, found: Measured):
    wall = Wall.of(anatomy, scar)
    slices, means, sectors = wall.profile(np.arange(len(wall.index)))
    turns = np.array([mean_angle(wall.angle[wall.z == z]) - angle for z in slices])
    turns = np.angle(np.exp(1j * turns))
    rows = np.stack([turns, sectors * 2 * np.pi / SECTORS / found.extent,
                     means / found.transmurality])
    if anatomy.order == "base_to_apex":
        rows = rows[:, ::-1]
    at = np.linspace(0, len(slices) - 1, KNOTS)
    return tuple(tuple(round(float(np.interp(at[k], np.arange(len(slices)), row)), 4)
                       for row in rows) for k in range(KNOTS))
