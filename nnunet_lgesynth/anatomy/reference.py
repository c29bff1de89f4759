"""Where the angle around the LV starts: the direction of the anterior RV insertion, and how sure.

Tried in this order; the first that answers is used and named:
    rv         the arc along which an RV label touches the wall, its anterior end in each slice
    landmarks  the insertion as the user marked it
    image      the bright RV blood pool beside the septum, as an arc fitted to the brightness around
               the heart; the middle of the arc is the septal direction, weighed with the
               convention's
    dataset    the directions in the dataset's lgesynth.json
    display    the radiological display convention: anterior wall up, RV at the image's left
The convention (dataset's or display's) also tells which end of the RV's arc is the anterior one,
since labels alone cannot; where only the display's is known, the RV label decides the side.

Directions are unit (row, column) vectors in mm. `zero` points from the LV centre to the anterior
insertion, `quarter` is perpendicular to it on the septal side: the angle grows from one to the
other. In the 17-segment scheme the insertion lies 30 degrees from the anterior direction and 60
from the septal one (Cerqueira et al., Circulation 2002;105:539).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import Frame

__all__ = ["DISPLAY", "Reference", "angles", "find_reference", "largest"]

# Radiological short-axis display: anterior wall up, RV at the image's left.
DISPLAY = Frame(anterior=(-1.0, 0.0), septal=(0.0, -1.0))
SEPTUM = np.deg2rad(60.0)         # the middle of the septum, from the anterior insertion
TIE = 1e-6                        # rad; puts pixels on a border beyond it, however angles round
TOUCH_MM = 4.0                    # RV label and LV wall touch: the RV's wall is not labelled
MIN_ARC, MAX_ARC = np.deg2rad([30.0, 200.0])
MAX_SPREAD = np.deg2rad(30.0)     # sd over slices above which an RV label is not trusted
BINS = 72                         # of the brightness around the epicardium
BAND_MM = (6.0, 20.0)             # where it is measured: beyond epicardial fat and the RV's wall
ARC_MEAN, ARC_SD = np.deg2rad([110.0, 20.0])      # width of the septal arc
TURN_SD = np.deg2rad(20.0)
FREE_BINS = 3                     # neighbouring bins tell the same: 15 degrees are one measurement
MIN_EXPLAINED = 0.3               # share of the brightness' variance that the arc must explain


@dataclass(frozen=True)
class Reference:
    """The zero direction; see the module text.

    `uncertainty` is one standard deviation in radians, None where nothing measured it. `note` says
    why a better source was passed over, if one was.
    """

    source: str
    zero: tuple[float, float]
    quarter: tuple[float, float]
    uncertainty: float | None = None
    note: str = ""

    @classmethod
    def of(cls, frame: Frame, source: str) -> Reference:
        """From anterior and septal directions, which need not be perpendicular."""
        anterior, septal = np.array(frame.anterior), np.array(frame.septal)
        zero = _unit(np.cos(np.pi / 6) * anterior + np.sin(np.pi / 6) * septal)
        quarter = np.array([zero[1], -zero[0]])
        side = quarter @ septal
        if abs(side) < 1e-3:
            raise UserError(f"anterior {frame.anterior} and septal {frame.septal} in lgesynth.json "
                            "are (anti)parallel, so they give no orientation; correct them.")
        return cls(source, tuple(zero), tuple(quarter * np.sign(side)))

    def turned(self, by: float, source: str, uncertainty: float | None) -> Reference:
        """Zero moved by an angle (radians, in the direction of growth)."""
        zero, quarter = np.array(self.zero), np.array(self.quarter)
        c, s = np.cos(by), np.sin(by)
        return Reference(source, tuple(c * zero + s * quarter), tuple(c * quarter - s * zero),
                         uncertainty)


def angles(shape, centre, spacing, reference: Reference) -> np.ndarray:
    """Angle (Y, X) float32 in [0, 2 pi) of every pixel of a slice around `centre` (row, column)."""
    rows, columns = np.indices(shape)
    away = np.stack([(rows - centre[0]) * spacing[0], (columns - centre[1]) * spacing[1]])
    angle = np.arctan2(np.tensordot(reference.quarter, away, 1),
                       np.tensordot(reference.zero, away, 1))
    return np.mod(angle + TIE, 2 * np.pi).astype(np.float32)


def find_reference(wall: np.ndarray, cavity: np.ndarray, centre: np.ndarray, spacing,
                   frame: Frame | None = None, rv: np.ndarray | None = None,
                   insertion: tuple[float, float, float] | None = None,
                   image: np.ndarray | None = None) -> Reference:
    """The best reference there is.

    Parameters
    ----------
    wall, cavity, rv : (Z, Y, X) bool; no `rv` where the dataset does not label it.
    centre : (Z, 2) LV centre of each slice, NaN where there is none.
    spacing : (3,) mm.
    insertion : (slice, row, column) voxel of a marked anterior insertion.
    image : (Z, Y, X) LGE.
    """
    known = frame is not None and frame.anterior is not None and frame.septal is not None
    convention = Reference.of(frame, "dataset") if known else Reference.of(DISPLAY, "display")
    notes = []
    for found in (_from_rv(wall, rv, centre, spacing, convention, known),
                  _from_landmark(insertion, wall.shape, centre, spacing, convention),
                  _from_image(wall | cavity, centre, spacing, convention, image)):
        if isinstance(found, Reference):
            return dataclasses.replace(found, note="; ".join(n for n in (*notes, found.note) if n))
        if found:
            notes.append(found)
    return dataclasses.replace(convention, note="; ".join(notes))


def _from_rv(wall, rv, centre, spacing, convention: Reference, known: bool):
    """A reference, a sentence that says why not, or None where no RV is labelled."""
    if rv is None or not rv.any():
        return None
    slices = [z for z in np.flatnonzero(rv.any(axis=(1, 2)) & wall.any(axis=(1, 2)))
              if np.isfinite(centre[z]).all()]
    if not slices:
        return "the RV label shares no slice with the LV"
    rv = {z: largest(rv[z]) for z in slices}
    towards = np.mean([(np.argwhere(rv[z]).mean(axis=0) - centre[z]) * spacing[1:]
                       for z in slices], axis=0)
    if not np.hypot(*towards) > 1e-6:
        return "the RV label lies around the LV's centre and was not used"
    note = ""
    if not known:
        convention, note = _displayed(towards)
    expected = np.cos(SEPTUM) * np.array(convention.zero) + \
        np.sin(SEPTUM) * np.array(convention.quarter)
    if np.dot(_unit(towards), expected) < 0:
        return ("the RV label lies on the side opposite to the septal direction of the "
                f"{convention.source} convention and was not used")
    starts = []
    for z in slices:
        distance = ndimage.distance_transform_edt(~rv[z], sampling=spacing[1:])
        touching = wall[z] & (distance <= TOUCH_MM)
        angle = angles(wall.shape[1:], centre[z], spacing[1:], convention)[touching]
        arc = _arc(angle)
        if arc is not None:
            starts.append(arc[0])
    if not starts:
        return "the RV label touches the LV wall in no slice"
    mean, spread = _circular(np.array(starts))
    if spread > MAX_SPREAD:
        return (f"the RV's anterior insertion varies by {np.rad2deg(spread):.0f} degrees (sd) "
                "between slices and was not used")
    sure = None if "mirrored" in note else max(spread, np.deg2rad(1.0))
    return dataclasses.replace(convention.turned(mean, "rv", sure), note=note)


def _displayed(towards: np.ndarray) -> tuple[Reference, str]:
    """The display convention that puts the RV where it is, and what it assumes."""
    assumed = "which end of the RV's arc is the anterior one is taken from the display convention"
    if np.dot(towards, DISPLAY.septal) >= 0:
        return Reference.of(DISPLAY, "display"), assumed
    mirrored = Frame(anterior=DISPLAY.anterior, septal=tuple(-np.array(DISPLAY.septal)))
    return Reference.of(mirrored, "display"), \
        f"{assumed}, mirrored since the RV lies at the image's right"


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected part of a slice's mask (Y, X) bool."""
    parts, n = ndimage.label(mask, np.ones((3, 3)))
    return mask if n < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _arc(angle: np.ndarray) -> tuple[float, float] | None:
    """(start, width) of the arc that holds these angles: all but the largest gap."""
    if len(angle) < 2:
        return None
    sorted_ = np.sort(angle)
    gaps = np.diff(sorted_, append=sorted_[0] + 2 * np.pi)
    last = int(np.argmax(gaps))
    width = 2 * np.pi - gaps[last]
    start = sorted_[(last + 1) % len(sorted_)]
    return (float(start), float(width)) if MIN_ARC <= width <= MAX_ARC else None


def _from_landmark(insertion, shape, centre, spacing, convention: Reference):
    known = np.flatnonzero(np.isfinite(centre).all(axis=1))
    if insertion is None or not len(known):
        return None
    if not all(0 <= v <= n - 1 for v, n in zip(insertion, shape)):
        return (f"the landmark at voxel {', '.join(f'{v:g}' for v in insertion)} lies outside of "
                "the stack and was not used")
    nearest = known[np.argmin(np.abs(known - insertion[0]))]
    away = (np.array(insertion[1:]) - centre[nearest]) * spacing[1:]
    if not np.hypot(*away) > 1e-6:
        return "the landmark lies in the LV's centre, so it gives no direction"
    direction = _unit(away)
    by = np.arctan2(direction @ np.array(convention.quarter),
                    direction @ np.array(convention.zero))
    return convention.turned(float(by), "landmarks", None)


def _from_image(heart, centre, spacing, convention: Reference, image):
    """Fit bright arcs of every start and width; the posterior's mean turn and its sd."""
    if image is None:
        return None
    profile = _brightness(heart, centre, spacing, convention, image)
    if profile is None:
        return "the surroundings of the heart are cut by the image"
    step = 2 * np.pi / BINS
    widths = np.arange(round(MIN_ARC / step), round(MAX_ARC / step) + 1)
    starts = np.arange(BINS)
    explained = _explained(profile, starts, widths)                           # (starts, widths)
    best = explained.max()
    if best < MIN_EXPLAINED:
        return (f"no bright RV was found beside the septum (an arc explains {best:.2f} of the "
                "brightness around the heart)")
    turns = np.angle(np.exp(1j * ((starts[:, None] + widths / 2) * step - SEPTUM)))
    likelihood = -BINS / FREE_BINS / 2 * np.log(1 - explained)
    prior = -0.5 * ((widths * step - ARC_MEAN) / ARC_SD) ** 2 - 0.5 * (turns / TURN_SD) ** 2
    weights = np.where(explained > 0, np.exp(likelihood + prior), 0)
    mean, spread = _circular(turns.ravel(), weights.ravel())
    return convention.turned(mean, "image", spread)


def _explained(profile: np.ndarray, starts: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Share (starts, widths) of the variance around the circle that a brighter arc explains; 0
    where the arc is the darker part."""
    n = len(profile)
    sums = np.concatenate([[0.0], np.cumsum(np.tile(profile - profile.mean(), 2))])
    first = starts[:, None]
    inside = sums[first + widths] - sums[first]             # the rest sums to its negative
    between = inside ** 2 / widths + inside ** 2 / (n - widths)
    total = ((profile - profile.mean()) ** 2).sum()
    return np.where(inside > 0, between / max(total, 1e-12), 0.0)


def _brightness(heart, centre, spacing, convention: Reference, image) -> np.ndarray | None:
    """Mean rank of the image beyond the epicardium, by angle (BINS,), over the stack's slices."""
    direction = (np.arange(BINS) + 0.5) * 2 * np.pi / BINS
    ray = (np.cos(direction)[:, None] * np.array(convention.zero)
           + np.sin(direction)[:, None] * np.array(convention.quarter)) / np.array(spacing[1:])
    step = float(min(spacing[1:])) / 2
    profiles = []
    for z in np.flatnonzero(np.isfinite(centre).all(axis=1)):
        distance = np.arange(0, 80, step)
        at = centre[z][:, None, None] + ray.T[:, :, None] * distance           # (2, BINS, n)
        inside = ndimage.map_coordinates(heart[z].astype(np.float32), at, order=0) > 0
        edge = distance[inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)]
        beyond = distance - edge[:, None]
        band = (beyond >= BAND_MM[0]) & (beyond <= BAND_MM[1])
        values = ndimage.map_coordinates(image[z].astype(np.float32), at, order=1, cval=np.nan)
        with np.errstate(invalid="ignore"):
            profile = np.nansum(np.where(band, values, 0), axis=1) / \
                np.maximum((band & np.isfinite(values)).sum(axis=1), 1)
        seen = (band & np.isfinite(values)).any(axis=1)
        if seen.all():
            profiles.append(_ranks(profile, float(np.ptp(image[z]))))
    return np.mean(profiles, axis=0) if profiles else None


def _ranks(values: np.ndarray, full: float) -> np.ndarray:
    """Mean ranks in (0, 1); what differs by rounding alone, of the `full` range, is equal."""
    return (rankdata(np.round(values / max(full, 1e-12), 5)) - 0.5) / len(values)


def _circular(angle: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Circular mean and standard deviation (radians)."""
    mean = np.average(np.exp(1j * angle), weights=weights)
    return float(np.angle(mean)), float(np.sqrt(-2 * np.log(min(max(abs(mean), 1e-12), 1.0))))


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.hypot(*vector))
    if length < 1e-9:
        raise UserError("A direction of length 0 gives no orientation; correct lgesynth.json.")
    return np.asarray(vector, float) / length
