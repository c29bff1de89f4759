"""Who asks for a scar: priors, by name, each `draw(anatomy, rng) -> ScarSpec`.

Sizes, positions and contrasts come from `ScarRecord`s: what the training fold's real scars
measure. A draw takes one real record and varies it, so joint habits (large scars are deep, deep
scars have no-reflow) survive. `ellipsoid` follows LGESynthNet (arXiv 2603.18356): an ellipsoid in
a random region and layer; its size law is unstated there and comes from the records here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.scar import ScarSpec
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import Roles

__all__ = ["MEASURES", "PRIORS", "Prior", "ScarRecord", "measure_scar"]

MEASURES = ("burden", "slice_share", "contrast")   # of a record: how like real scars a pool is
ANGLE_BINS = 36
MIN_SCAR_VOXELS = 20
SECTOR_MEAN_REACH = 0.78   # of the deepest, over angles and slices; records hold the mean


@dataclass(frozen=True)
class ScarRecord:
    """One patient's real scar in wall coordinates; see `ScarSpec` for units.

    `slice_share` is the share of ring slices with scar, `burden` the scar's share of the wall,
    `no_reflow` its share of the scar, `wall_sd` the intensity spread of normal myocardium.
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


def measure_scar(labels: np.ndarray, image: np.ndarray, anatomy: Anatomy,
                 roles: Roles) -> ScarRecord | None:
    """Measure a labelled scar (labels, normalised image: (Z, Y, X)); None if there is too little,
    or no-reflow alone, whose infarct's contrast is unknown.

    The extent is the number of 10-degree bins with scar, the transmurality the mean over those
    bins of the deepest scarred depth, both as medians over the scarred slices.
    """
    ring = np.isfinite(anatomy.depth)
    scar = np.isin(labels, roles.scars) & ring
    slices = np.flatnonzero(scar.any(axis=(1, 2)))
    if scar.sum() < MIN_SCAR_VOXELS or not (labels[scar] == roles.scar).any():
        return None
    profiles = [_bins(scar[z], anatomy.angle[z], anatomy.depth[z]) for z in slices]
    normal = image[(labels == roles.myocardium) & ring]
    infarct, core = (image[(labels == value) & ring] for value in (roles.scar, roles.no_reflow))
    normal_level = np.median(normal) if len(normal) else 0.0
    return ScarRecord(
        angle=float(np.angle(np.exp(1j * anatomy.angle[scar].astype(float)).mean())
                    % (2 * np.pi)),
        extent=float(np.median([p[0] for p in profiles])),
        transmurality=float(np.median([p[1] for p in profiles])),
        slice_share=len(slices) / int(anatomy.rings.sum()),
        level=float(anatomy.level[slices].mean()),
        burden=float(scar.sum() / ring.sum()),
        no_reflow=len(core) / int(scar.sum()),
        contrast=float(np.median(infarct) - normal_level),
        no_reflow_contrast=float(np.median(core) - normal_level) if len(core) else None,
        wall_sd=float(normal.std()) if len(normal) else 0.0)


def _bins(scar: np.ndarray, angle: np.ndarray, depth: np.ndarray) -> tuple[float, float]:
    index = (angle[scar] / (2 * np.pi) * ANGLE_BINS).astype(int) % ANGLE_BINS
    deepest = np.zeros(ANGLE_BINS)
    np.maximum.at(deepest, index, depth[scar])
    hit = np.bincount(index, minlength=ANGLE_BINS) > 0
    return hit.sum() * 2 * np.pi / ANGLE_BINS, float(deepest[hit].mean())


@dataclass(frozen=True)
class Prior:
    """Draws requests that vary the records' scars; see `PRIORS` for the shapes."""

    name: str
    records: tuple[ScarRecord, ...]

    def __post_init__(self):
        if self.name not in PRIORS:
            raise UserError(f"There is no prior {self.name!r}; choose one of {sorted(PRIORS)}.")
        if not self.records:
            raise UserError("The training cases hold no measurable scar, so sizes and contrast of "
                            "synthetic scars are unknown; check the roles with: lgesynth doctor "
                            "-d DATASET_ID")

    def draw(self, anatomy: Anatomy, rng: np.random.Generator) -> ScarSpec:
        """One request for this heart."""
        if not anatomy.paintable.any():
            raise UserError("This heart has no scar-free slice with a closed myocardial ring.")
        record = self.records[rng.integers(len(self.records))]
        return PRIORS[self.name](record, anatomy, rng)

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Prior:
        return cls(values["name"], tuple(ScarRecord(**r) for r in values["records"]))


def _common(record: ScarRecord, anatomy: Anatomy, rng: np.random.Generator) -> dict:
    length = np.clip(record.slice_share * rng.uniform(0.8, 1.2), 0, 1) * anatomy.rings.sum() + 0.2
    level = np.clip(record.level + rng.normal(0, 0.15), 0, 1)
    core = record.no_reflow_contrast is not None
    return {
        "extent": float(np.clip(record.extent * rng.uniform(0.8, 1.35), 0.25, 2 * np.pi)),
        "slice": _centre_slice(anatomy, level, length, rng), "length": float(max(length, 1.0)),
        "contrast": record.contrast * float(rng.uniform(0.85, 1.15)),
        "no_reflow": float(np.clip(record.no_reflow * rng.uniform(0.7, 1.5), 0, 0.6)) if core
        else 0.0,
        "no_reflow_contrast": record.no_reflow_contrast if core else 0.0,
        "texture": int(rng.integers(2 ** 31))}


def _centre_slice(anatomy: Anatomy, level: float, length: float, rng) -> float:
    """Near the level, but so that a lesion of this length lies inside the stack if it can."""
    at, rings = np.flatnonzero(anatomy.paintable), np.flatnonzero(anatomy.rings)
    nearest = at[np.argmin(np.abs(anatomy.level[at] - level))]
    half = min((length - 1) / 2, (rings[-1] - rings[0]) / 2)
    return float(np.clip(nearest + rng.uniform(-0.4, 0.4), rings[0] + half, rings[-1] - half))


def _draw_sector(record: ScarRecord, anatomy: Anatomy, rng: np.random.Generator) -> ScarSpec:
    deepest = record.transmurality / SECTOR_MEAN_REACH * rng.uniform(0.85, 1.15)
    return ScarSpec("sector", angle=float((record.angle + rng.normal(0, 0.35)) % (2 * np.pi)),
                    transmurality=float(np.clip(deepest, 0.15, 1)),
                    **_common(record, anatomy, rng))


def _draw_ellipsoid(record: ScarRecord, anatomy: Anatomy, rng: np.random.Generator) -> ScarSpec:
    return ScarSpec("ellipsoid", angle=float(rng.uniform(0, 2 * np.pi)),
                    transmurality=float(np.clip(record.transmurality, 0.2, 1)),
                    depth=float(rng.choice([1, 3, 5]) / 6), **_common(record, anatomy, rng))


PRIORS = {"sector": _draw_sector, "ellipsoid": _draw_ellipsoid}
