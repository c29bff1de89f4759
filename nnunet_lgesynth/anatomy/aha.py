"""The 17 segments of the left ventricle by number, wall, coronary territory and place.

Cerqueira et al., Circulation 2002;105:539. With angles in radians from the anterior RV insertion,
growing through the septum, the six basal (1 to 6) and six mid (7 to 12) segments are 60 degrees
each; the four apical ones (13 to 16) are 90 degrees each, centred on the anterior, septal, inferior
and lateral direction; 17 is the apical cap, where the wall has no cavity.
The territories are that paper's assignment; single patients differ.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["APEX", "LEVELS", "NAMES", "SEGMENTS", "SPANS", "TERRITORIES", "connected",
           "neighbours", "number_of", "segment_map"]

APEX = 17
SEGMENTS = tuple(range(1, APEX + 1))
LEVELS = ("apical", "mid", "basal")
# Around the wall from angle 0 on, with the basal segment's number.
SIX = {"anteroseptal": 2, "inferoseptal": 3, "inferior": 4, "inferolateral": 5,
       "anterolateral": 6, "anterior": 1}
# Around the apical wall from 15 degrees on: the septal direction lies at 60 degrees.
FOUR = {"septal": 14, "inferior": 15, "lateral": 16, "anterior": 13}
FOUR_START = np.deg2rad(15.0)
TERRITORIES = {"LAD": (1, 2, 7, 8, 13, 14, 17), "RCA": (3, 4, 9, 10, 15),
               "LCx": (5, 6, 11, 12, 16)}


def _names() -> dict[int, str]:
    names = {n: f"basal {wall}" for wall, n in SIX.items()}
    names |= {n + 6: f"mid {wall}" for wall, n in SIX.items()}
    names |= {n: f"apical {wall}" for wall, n in FOUR.items()}
    return dict(sorted({**names, APEX: "apex"}.items()))


def _spans() -> dict[int, tuple[float, float]]:
    spans = {APEX: (0.0, 2 * np.pi)}
    for k, n in enumerate(SIX.values()):
        spans[n] = spans[n + 6] = (k * np.pi / 3, (k + 1) * np.pi / 3)
    for k, n in enumerate(FOUR.values()):
        spans[n] = (FOUR_START + k * np.pi / 2, FOUR_START + (k + 1) * np.pi / 2)
    return dict(sorted(spans.items()))


NAMES = _names()        # 1: "basal anterior" ... 16: "apical lateral", 17: "apex"
SPANS = _spans()        # first and last angle in radians; the last may pass 2 pi
_NUMBERS = {name: n for n, name in NAMES.items()}


def number_of(name: str) -> int | None:
    """The segment called "mid inferoseptal", "apex", ...; None where there is none."""
    return _NUMBERS.get(name)


def segment_map(angle: np.ndarray, thirds: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Segment of every voxel (Z, Y, X) uint8; 0 where the angle is NaN.

    Parameters
    ----------
    angle : (Z, Y, X) radians in [0, 2 pi), NaN outside the wall.
    thirds : (Z,) int, index into `LEVELS`.
    cap : (Z,) bool, slices that are the apical cap.
    """
    known = np.isfinite(angle)
    turn = np.where(known, angle, 0.0).astype(float)
    six, four = (np.array(list(table.values()), np.uint8) for table in (SIX, FOUR))
    of_six = six[np.minimum((turn / (np.pi / 3)).astype(int), 5)]
    of_four = four[np.minimum((np.mod(turn - FOUR_START, 2 * np.pi) / (np.pi / 2)).astype(int), 3)]
    by_third = np.choose(thirds[:, None, None], [of_four, of_six + 6, of_six])
    return np.where(known, np.where(cap[:, None, None], APEX, by_third), 0).astype(np.uint8)


def neighbours(segment: int) -> tuple[int, ...]:
    """Segments that share a border with this one."""
    return tuple(n for n in SEGMENTS if n != segment and _touch(segment, n))


def connected(segments: Iterable[int]) -> bool:
    """Whether one can walk between any two of these segments without leaving them."""
    left = set(segments)
    reached = [left.pop()] if left else []
    while reached:
        found = left & set(neighbours(reached.pop()))
        left -= found
        reached += found
    return not left


def _level(segment: int) -> int:
    return (segment - 1) // 6 if segment <= 12 else 2 if segment < APEX else 3


def _touch(a: int, b: int) -> bool:
    (first, last), (other_first, other_last) = SPANS[a], SPANS[b]
    shared = max(min(last, other_last + turn) - max(first, other_first + turn)
                 for turn in (-2 * np.pi, 0.0, 2 * np.pi))
    apart = abs(_level(a) - _level(b))
    return (apart == 0 and shared > -1e-9) or (apart == 1 and shared > 1e-9)
