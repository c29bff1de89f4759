"""A scar request and its mask.

A `ScarSpec` says in wall coordinates what is asked for; `paint_mask` draws it into any heart.
Angles in radians from the anterior RV insertion, depth on the 0 (endocardium) to 1 (epicardium)
wall, slice positions and lengths in slices of the stack at hand. Contrasts are in the units of
`generators.condition.Intensities`: 0 is normal myocardium.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_lgesynth.anatomy.heart import Anatomy

__all__ = ["NO_REFLOW", "SCAR", "ScarSpec", "paint_mask"]

SCAR, NO_REFLOW = 1, 2        # values of a request mask; 0 is no request
WAVEFRONT_POWER = 4           # how square a sector's lateral border is
BORDER_HARMONICS = 4          # waviness of a sector's borders
IN_PLANE = ndimage.generate_binary_structure(2, 1)[None]


@dataclass(frozen=True)
class ScarSpec:
    """One lesion.

    Attributes
    ----------
    shape : "sector" (ischaemic wavefront from the endocardium) or "ellipsoid".
    angle, extent : centre and full width, radians.
    transmurality : depth reached (sector) or full thickness (ellipsoid), share of the wall.
    depth : wall depth of the ellipsoid's centre; a sector always starts at the endocardium.
    slice, length : centre and full length along the stack, in slices.
    no_reflow : share of the lesion's volume taken by a no-reflow core; 0 for none.
    contrast, no_reflow_contrast : intensity above normal myocardium.
    texture : seed of the border's waviness.
    """

    shape: str
    angle: float
    extent: float
    transmurality: float
    slice: float
    length: float
    depth: float = 0.5
    no_reflow: float = 0.0
    contrast: float = 0.6
    no_reflow_contrast: float = 0.2
    texture: int = 0

    def __post_init__(self):
        if self.shape not in _SHAPES:
            raise ValueError(f"shape must be one of {sorted(_SHAPES)}, not {self.shape!r}.")
        if not (0 < self.extent <= 2 * np.pi and 0 < self.transmurality <= 1
                and self.length > 0 and 0 <= self.depth <= 1 and 0 <= self.no_reflow < 1):
            raise ValueError(
                "A scar needs 0 < extent <= 2 pi, 0 < transmurality <= 1, length > 0, 0 <= depth "
                f"<= 1 and 0 <= no_reflow < 1, got {dataclasses.asdict(self)}.")


def paint_mask(anatomy: Anatomy, spec: ScarSpec) -> np.ndarray:
    """The request as a mask (Z, Y, X) uint8: 0 nothing, 1 scar, 2 no-reflow.

    It lies inside the wall and only in slices with a closed ring and no real scar.
    """
    z = np.arange(len(anatomy.rings))[:, None, None]
    along = (z - spec.slice) / (spec.length / 2)                     # -1 .. 1 along the lesion
    around = np.mod(anatomy.angle - spec.angle + np.pi, 2 * np.pi) - np.pi
    usable = anatomy.paintable[:, None, None] & np.isfinite(anatomy.depth)
    with np.errstate(invalid="ignore"):
        lesion = usable & _SHAPES[spec.shape](anatomy, spec, around, along)
        mask = np.where(lesion, SCAR, 0).astype(np.uint8)
        if spec.no_reflow > 0:
            mask[_core(anatomy, spec, around, along, lesion)] = NO_REFLOW
    return mask


def _sector(anatomy: Anatomy, spec: ScarSpec, around, along) -> np.ndarray:
    taper = np.sqrt(np.clip(1 - along ** 2, 0, None))
    wave = _waviness(spec.texture, anatomy.angle)
    half = np.maximum(spec.extent / 2 * taper, 1e-6)
    lateral = np.clip(1 - (np.abs(around) / half) ** WAVEFRONT_POWER, 0, None)
    reach = spec.transmurality * (0.5 + 0.5 * taper) * lateral ** (1 / WAVEFRONT_POWER)
    return (np.abs(along) <= 1) & (np.abs(around) < half) & (anatomy.depth <= reach * wave)


def _ellipsoid(anatomy: Anatomy, spec: ScarSpec, around, along) -> np.ndarray:
    across = (anatomy.depth - spec.depth) / (spec.transmurality / 2)
    return (around / (spec.extent / 2)) ** 2 + across ** 2 + along ** 2 <= 1


def _core(anatomy: Anatomy, spec: ScarSpec, around, along, lesion) -> np.ndarray:
    """No-reflow: a smaller copy of the lesion inside it. As in patients it may lie on the
    endocardium, but a rim of scar parts it from the rest of the wall."""
    size = np.cbrt(spec.no_reflow)
    smaller = dataclasses.replace(spec, extent=spec.extent * size,
                                  transmurality=spec.transmurality * size)
    core = _SHAPES[spec.shape](anatomy, smaller, around, along / size)
    return core & ndimage.binary_erosion(lesion | anatomy.cavity, IN_PLANE) & lesion


def _waviness(seed: int, angle: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wave = np.zeros_like(angle)
    for harmonic in range(2, 2 + BORDER_HARMONICS):
        amplitude, phase = rng.normal(0, 0.08), rng.uniform(0, 2 * np.pi)
        wave += amplitude * np.sin(harmonic * angle + phase)
    return 1 + wave


_SHAPES = {"sector": _sector, "ellipsoid": _ellipsoid}
