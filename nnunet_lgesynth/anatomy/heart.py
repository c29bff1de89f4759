"""The left ventricle's coordinates: long axis, wall depth, angle, level and AHA segment.

Frame: a stack is (Z, Y, X) with Z through-plane; spacing (3,) in mm in the same order.
Wall depth is 0 at the endocardium and 1 at the epicardium, from in-plane distance maps:
depth = d_endo / (d_endo + d_epi), each distance measured to the pixel's border.
The angle is 0 at the anterior RV insertion and grows through the septum; `reference` says how that
direction was found. Levels are thirds of the LV's length, counted in slices that show its cavity.

A slice of the stack is one of
    ring   the wall closes around the cavity
    open   the wall surrounds at least half of the cavity (outflow tract, gaps): the epicardium is
           bridged by the convex hull
    cap    wall without cavity (or with a few voxels of it) that follows the apical end: segment
           17; depth is 0 in its middle
    none   anything else, such as a cavity that the image cuts; no coordinates, never painted
Of each slice's heart the largest connected part counts; stray voxels have no coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial import Delaunay, QhullError

from nnunet_lgesynth.anatomy.aha import segment_map
from nnunet_lgesynth.anatomy.reference import Reference, angles, find_reference, largest
from nnunet_lgesynth.dataset.roles import Frame, Roles

__all__ = ["Anatomy", "describe"]

MIN_CAVITY_PIXELS = 4      # below this a cavity has no direction to measure an angle from
MIN_SURROUNDED = 0.5       # of the circle, in an open slice
DIRECTIONS = 36            # in which that is looked at
LEAST_TREND = 0.4          # correlation of the LV's area with the slice that tells the order
MOST_TILT = 30.0           # degrees; beyond it the slices are no short axes
ORDERS = ("apex_to_base", "base_to_apex")


@dataclass(frozen=True)
class Anatomy:
    """Coordinates of one heart.

    Attributes
    ----------
    spacing : (3,) mm, through-plane first.
    wall, cavity : (Z, Y, X) bool.
    kinds : (Z,) of "ring", "open", "cap", "none"; see the module text.
    depth : (Z, Y, X) float32, NaN outside the wall of slices with coordinates.
    half_pixel : (Z, Y, X) float32, half a pixel's share of the wall's thickness, where depth is.
    angle : (Z, Y, X) float32 radians in [0, 2 pi), of every pixel of such slices, NaN elsewhere.
    segment : (Z, Y, X) uint8, AHA segment 1 to 17 of the wall in such slices, 0 elsewhere.
    centre : (Z, 2) float, (row, column) of the cavity's centroid (a cap's: the wall's), else NaN.
    scarred : (Z,) bool, slices that hold a scar label.
    level : (Z,) float, 0 at the apical and 1 at the basal end of the slices with coordinates.
    axis : (3,) unit vector in mm, the LV's long axis from apex to base; along Z for one slice.
    reference : where the zero angle comes from.
    order : "apex_to_base" or "base_to_apex" along Z.
    order_from : "dataset", "labels", or "convention" where the labels do not tell.
    cut, cavity_cut : (Z,) bool, slices whose wall, or cavity, touches the image's border.
    """

    spacing: tuple[float, float, float]
    wall: np.ndarray
    cavity: np.ndarray
    kinds: np.ndarray
    depth: np.ndarray
    half_pixel: np.ndarray
    angle: np.ndarray
    segment: np.ndarray
    centre: np.ndarray
    scarred: np.ndarray
    level: np.ndarray
    axis: tuple[float, float, float]
    reference: Reference
    order: str
    order_from: str
    cut: np.ndarray
    cavity_cut: np.ndarray

    @property
    def rings(self) -> np.ndarray:
        """(Z,) bool: the wall closes around the cavity."""
        return self.kinds == "ring"

    @property
    def covered(self) -> np.ndarray:
        """(Z,) bool: slices with coordinates."""
        return self.kinds != "none"

    @property
    def myocardium(self) -> np.ndarray:
        """(Z, Y, X) bool: the wall that has coordinates; what a burden is a share of."""
        return self.wall & self.covered[:, None, None]

    @property
    def lv_centre(self) -> tuple[float, float]:
        """(row, column) of the LV, one for the stack."""
        return tuple(self.centre[self.covered].mean(axis=0))

    @cached_property
    def radius(self) -> float:
        """Of the middle of the wall in mm, as if it were round; mean over the stack."""
        areas = (self.wall / 2 + self.cavity)[self.covered].sum(axis=(1, 2))
        return float(np.sqrt(areas * self.spacing[1] * self.spacing[2] / np.pi).mean())

    @property
    def paintable(self) -> np.ndarray:
        """(Z,) bool: slices with coordinates and without a real scar."""
        return self.covered & ~self.scarred

    @property
    def tilt(self) -> float:
        """Angle between the long axis and the slices' normal, in degrees."""
        return float(np.rad2deg(np.arccos(min(abs(self.axis[0]), 1.0))))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before trusting the coordinates."""
        skipped = ~self.covered & (self.wall | self.cavity).any(axis=(1, 2))
        found = [
            self.reference.note,
            "the order of the slices is assumed to be apex to base: the labels do not tell"
            if self.order_from == "convention" and len(self.kinds) > 1 else "",
            _told(self.cut & self.covered, "the image cuts the wall in {}: its border counts as "
                                           "the epicardium there"),
            _told(skipped & self.cavity_cut, "the image cuts the cavity in {}: left out"),
            _told(skipped & ~self.cavity_cut,
                  "no wall surrounds a cavity in {}: left out"),
            f"the LV's long axis leans by {self.tilt:.0f} degrees against the slices' normal: is "
            "this a short-axis stack?" if self.tilt > MOST_TILT else ""]
        return tuple(n for n in found if n)


def describe(labels: np.ndarray, roles: Roles, spacing, frame: Frame | None = None,
             image: np.ndarray | None = None,
             insertion: tuple[float, float, float] | None = None) -> Anatomy:
    """Measure a heart.

    Parameters
    ----------
    labels : (Z, Y, X) integer label map.
    roles : meaning of the label values.
    spacing : (3,) mm, through-plane first.
    frame : orientation of the stack; what it leaves open is taken from the labels, the image and,
        last, the display convention.
    image : (Z, Y, X) LGE, to find the RV where no label shows it.
    insertion : (slice, row, column) voxel of a marked anterior RV insertion.
    """
    spacing = tuple(float(s) for s in spacing)
    wall, cavity = _heart(np.isin(labels, roles.wall), labels == roles.cavity)
    kinds = np.array([_kind(w, c) for w, c in zip(wall, cavity)], "<U4")
    order, order_from = _order(wall | cavity, kinds, frame.slices if frame else None)
    kinds = _caps(kinds, wall, order)
    shape = labels.shape
    depth, half_pixel, angle = (np.full(shape, np.nan, np.float32) for _ in range(3))
    centre = np.full((shape[0], 2), np.nan)
    for z in np.flatnonzero(kinds != "none"):
        inside = wall[z] if kinds[z] == "cap" else cavity[z]
        centre[z] = np.argwhere(inside).mean(axis=0)
        depth[z], half_pixel[z] = _depth(kinds[z], wall[z], cavity[z], spacing[1:])
    showing = np.isin(kinds, ("ring", "open"))
    reference = find_reference(wall, cavity, np.where(showing[:, None], centre, np.nan), spacing,
                               frame, None if roles.rv is None else labels == roles.rv, insertion,
                               image)
    for z in np.flatnonzero(kinds != "none"):
        angle[z] = angles(shape[1:], centre[z], spacing[1:], reference)
    segment = segment_map(np.where(wall, angle, np.nan), _thirds(showing, order), kinds == "cap")
    return Anatomy(spacing, wall, cavity, kinds, depth, half_pixel, angle, segment, centre,
                   np.isin(labels, roles.scars).any(axis=(1, 2)), _levels(kinds != "none", order),
                   _axis(centre, spacing, order), reference, order, order_from,
                   _at_border(wall), _at_border(cavity))


def _heart(wall: np.ndarray, cavity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wall and cavity (Z, Y, X) without stray voxels."""
    cavity = np.stack([largest(c) for c in cavity])
    heart = np.stack([largest(w | c) for w, c in zip(wall, cavity)])
    return wall & heart, cavity & heart


def _kind(wall: np.ndarray, cavity: np.ndarray) -> str:
    if not wall.any() or _at_border(cavity[None])[0]:
        return "none"
    if cavity.sum() < MIN_CAVITY_PIXELS:
        return "cap"             # if it follows the apical end, see `_caps`
    if (ndimage.binary_fill_holes(wall) & cavity).sum() == cavity.sum():
        return "ring"
    rows, columns = np.nonzero(wall)
    middle = np.argwhere(cavity).mean(axis=0)
    turn = np.arctan2(rows - middle[0], columns - middle[1]) / (2 * np.pi) % 1
    seen = len(np.unique((turn * DIRECTIONS).astype(int) % DIRECTIONS))
    return "open" if seen >= MIN_SURROUNDED * DIRECTIONS else "none"


def _at_border(mask: np.ndarray) -> np.ndarray:
    """(Z,) bool: the mask (Z, Y, X) touches the image's border in plane."""
    return (mask[:, [0, -1]].any(axis=(1, 2)) | mask[:, :, [0, -1]].any(axis=(1, 2)))


def _order(heart: np.ndarray, kinds: np.ndarray, told: str | None) -> tuple[str, str]:
    """The LV narrows towards its apex, where wall without cavity may follow."""
    if told is not None:
        return told, "dataset"
    at = np.flatnonzero(np.isin(kinds, ("ring", "open")))
    caps = np.flatnonzero(kinds == "cap")
    if len(at) and len(caps) and ((caps < at[0]).any() != (caps > at[-1]).any()):
        return ORDERS[int((caps > at[-1]).any())], "labels"
    area = heart.sum(axis=(1, 2))[at].astype(float)
    if len(at) < 3 or np.ptp(area) == 0:
        return ORDERS[0], "convention"
    trend = np.corrcoef(at, area)[0, 1]
    if abs(trend) < LEAST_TREND:
        return ORDERS[0], "convention"
    return ORDERS[int(trend < 0)], "labels"


def _caps(kinds: np.ndarray, wall: np.ndarray, order: str) -> np.ndarray:
    """Keep as caps the wall-only slices that follow the apical end without a gap."""
    along = kinds if order == ORDERS[0] else kinds[::-1]           # from apex to base
    showing = np.flatnonzero(np.isin(along, ("ring", "open")))
    kept = np.where(along == "cap", "none", along)
    z = showing[0] - 1 if len(showing) else -1
    while z >= 0 and along[z] == "cap":
        kept[z], z = "cap", z - 1
    return kept if order == ORDERS[0] else kept[::-1]


def _depth(kind: str, wall: np.ndarray, cavity: np.ndarray, spacing):
    """Depth and half a pixel's share of the thickness, both (Y, X), NaN outside the wall."""
    half = float(np.mean(spacing)) / 2
    heart = _hull(wall | cavity, spacing) if kind == "open" else wall | cavity
    epi = ndimage.distance_transform_edt(np.pad(heart, 1), sampling=spacing)[1:-1, 1:-1] - half
    epi = np.maximum(epi, 0)                      # beyond the image is outside, too
    if kind == "cap":
        endo = np.maximum(epi.max() - epi, 0)
    else:
        endo = np.maximum(ndimage.distance_transform_edt(~cavity, sampling=spacing) - half, 0)
    thickness = np.maximum(endo + epi, 1e-6)
    return (np.where(wall, share, np.nan).astype(np.float32)
            for share in (endo / thickness, np.minimum(half / thickness, 0.5)))


def _hull(heart: np.ndarray, spacing) -> np.ndarray:
    """The convex hull of a slice's heart (Y, X) bool; the heart itself where it is a line."""
    points = np.argwhere(heart) * spacing
    try:
        hull = Delaunay(points)
    except (QhullError, ValueError):
        return heart
    everywhere = np.stack(np.indices(heart.shape), -1).reshape(-1, 2) * spacing
    return (hull.find_simplex(everywhere) >= 0).reshape(heart.shape) | heart


def _thirds(showing: np.ndarray, order: str) -> np.ndarray:
    """(Z,) int: 0 apical, 1 mid, 2 basal third of the slices from apex to base."""
    at = np.flatnonzero(showing)
    if not len(at):
        return np.zeros(len(showing), int)
    share = (np.arange(len(showing)) - at[0] + 0.5) / (at[-1] - at[0] + 1)
    share = np.clip(share if order == ORDERS[0] else 1 - share, 0, 1 - 1e-9)
    return (share * 3).astype(int)


def _levels(covered: np.ndarray, order: str) -> np.ndarray:
    at = np.flatnonzero(covered)
    if len(at) < 2:
        return np.full(len(covered), 0.5)
    level = np.clip((np.arange(len(covered)) - at[0]) / (at[-1] - at[0]), 0, 1)
    return 1 - level if order == ORDERS[1] else level


def _axis(centre: np.ndarray, spacing, order: str) -> tuple[float, float, float]:
    """The line through the slices' centres, by least squares, from apex to base."""
    z = np.flatnonzero(np.isfinite(centre).all(axis=1))
    direction = np.array([1.0, 0.0, 0.0])
    if len(z) > 1:
        direction[1:] = np.polyfit(z * spacing[0], centre[z] * spacing[1:], 1)[0]
    direction /= np.linalg.norm(direction)
    return tuple(direction if order == ORDERS[0] else -direction)


def _told(slices: np.ndarray, text: str) -> str:
    """The text with these slices' numbers, or nothing where there is none."""
    at = np.flatnonzero(slices) + 1
    if not len(at):
        return ""
    numbers = ", ".join(map(str, at[:8])) + (" ..." if len(at) > 8 else "")
    return text.format(f"slice{'s' if len(at) > 1 else ''} {numbers}")
