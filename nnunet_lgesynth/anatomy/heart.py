"""The left ventricle's coordinates: centre, wall depth, angle and level, from labels alone.

Frame: a stack is (Z, Y, X) with Z through-plane; spacing (3,) in mm in the same order.
Wall depth is 0 at the endocardium and 1 at the epicardium, from in-plane distance maps:
depth = d_endo / (d_endo + d_epi), each distance measured to the pixel's border.
The angle is 0 at the anterior RV insertion and grows through the septum, so that the AHA walls are
60 degrees each: anteroseptal, inferoseptal, inferior, inferolateral, anterolateral, anterior
(Cerqueira et al., Circulation 2002;105:539). The insertion lies 30 degrees from the anterior
direction and 60 from the septal one in that scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_lgesynth.dataset.roles import Frame, Roles

__all__ = ["Anatomy", "describe"]

# Radiological short-axis display: anterior wall up, RV at the image's left.
DISPLAY = Frame(anterior=(-1.0, 0.0), septal=(0.0, -1.0))
MIN_CAVITY_PIXELS = 4      # below this a cavity has no direction to measure an angle from


@dataclass(frozen=True)
class Anatomy:
    """Coordinates of one heart.

    Attributes
    ----------
    spacing : (3,) mm, through-plane first.
    wall, cavity : (Z, Y, X) bool.
    depth : (Z, Y, X) float32, NaN outside the wall of ring slices.
    angle : (Z, Y, X) float32 radians in [0, 2 pi), of every pixel of ring slices, NaN elsewhere.
    centre : (Z, 2) float, (row, column) of the cavity's centroid, NaN where there is no ring.
    rings : (Z,) bool, slices whose wall closes around the cavity.
    scarred : (Z,) bool, slices that hold a scar label.
    level : (Z,) float, 0 at the apical and 1 at the basal end of the ring slices.
    reference : "dataset" or "display": where the zero angle comes from.
    """

    spacing: tuple[float, float, float]
    wall: np.ndarray
    cavity: np.ndarray
    depth: np.ndarray
    angle: np.ndarray
    centre: np.ndarray
    rings: np.ndarray
    scarred: np.ndarray
    level: np.ndarray
    reference: str

    @property
    def lv_centre(self) -> tuple[float, float]:
        """(row, column) of the LV, one for the stack."""
        return tuple(np.nanmean(self.centre, axis=0))

    @property
    def paintable(self) -> np.ndarray:
        """(Z,) bool: closed rings without a real scar."""
        return self.rings & ~self.scarred


def describe(labels: np.ndarray, roles: Roles, spacing, frame: Frame | None = None) -> Anatomy:
    """Measure a heart.

    Parameters
    ----------
    labels : (Z, Y, X) integer label map.
    roles : meaning of the label values.
    spacing : (3,) mm, through-plane first.
    frame : orientation of the stack; without directions the display convention is assumed.
    """
    wall = np.isin(labels, roles.wall)
    cavity = labels == roles.cavity
    shape = labels.shape
    depth = np.full(shape, np.nan, np.float32)
    angle = np.full(shape, np.nan, np.float32)
    centre = np.full((shape[0], 2), np.nan)
    rings = np.array([_is_ring(w, c) for w, c in zip(wall, cavity)], bool)
    known = frame is not None and frame.anterior is not None and frame.septal is not None
    axes = frame if known else DISPLAY
    for z in np.flatnonzero(rings):
        centre[z] = np.argwhere(cavity[z]).mean(axis=0)
        depth[z] = _wall_depth(wall[z], cavity[z], spacing[1:])
        angle[z] = _angle(shape[1:], centre[z], spacing[1:], axes)
    return Anatomy(tuple(float(s) for s in spacing), wall, cavity, depth, angle, centre, rings,
                   np.isin(labels, roles.scars).any(axis=(1, 2)),
                   _levels(rings, frame.slices if frame else None),
                   "dataset" if known else "display")


def _is_ring(wall: np.ndarray, cavity: np.ndarray) -> bool:
    if cavity.sum() < MIN_CAVITY_PIXELS or not wall.any():
        return False
    return bool((ndimage.binary_fill_holes(wall) & cavity).sum() == cavity.sum())


def _wall_depth(wall: np.ndarray, cavity: np.ndarray, spacing) -> np.ndarray:
    half = float(np.mean(spacing)) / 2
    endo = ndimage.distance_transform_edt(~cavity, sampling=spacing) - half
    heart = np.pad(wall | cavity, 1)              # beyond the image is outside, too
    epi = ndimage.distance_transform_edt(heart, sampling=spacing)[1:-1, 1:-1] - half
    depth = np.full(wall.shape, np.nan, np.float32)
    depth[wall] = (np.maximum(endo, 0) / (np.maximum(endo, 0) + np.maximum(epi, 0) + 1e-6))[wall]
    return depth


def _angle(shape, centre, spacing, frame: Frame) -> np.ndarray:
    rows, columns = np.indices(shape)
    v = np.stack([(rows - centre[0]) * spacing[0], (columns - centre[1]) * spacing[1]])
    anterior, septal = np.array(frame.anterior), np.array(frame.septal)
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    zero, quarter = c * anterior + s * septal, c * septal - s * anterior
    angle = np.arctan2(np.tensordot(quarter, v, 1), np.tensordot(zero, v, 1))
    return np.mod(angle, 2 * np.pi).astype(np.float32)


def _levels(rings: np.ndarray, order: str | None) -> np.ndarray:
    at = np.flatnonzero(rings)
    if len(at) < 2:
        return np.full(len(rings), 0.5)
    level = np.clip((np.arange(len(rings)) - at[0]) / (at[-1] - at[0]), 0, 1)
    return 1 - level if order == "base_to_apex" else level
