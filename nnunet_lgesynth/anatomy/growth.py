"""How a lesion grows: the voxels of lowest score, as many as its burden asks for.

Candidates are the myocardium of slices without a real scar, in the requested segments alone, ranked
by `shapes.score`. The depth limit D of the score is chosen so that the lesion measures the
requested transmurality (see `measure`). If no D does, or a requested segment stays untouched, other
borders are tried; then the request is refused with the burdens that would grow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nnunet_lgesynth.anatomy.aha import APEX, NAMES
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.measure import Wall, mean_angle
from nnunet_lgesynth.anatomy.shapes import SHAPES, base_field, score
from nnunet_lgesynth.config import UserError

if TYPE_CHECKING:
    from nnunet_lgesynth.anatomy.scar import ScarSpec

__all__ = ["Growth", "Unreachable", "grow"]

TOLERANCE = 0.05              # of the transmurality
DEEPEST = 3.0                 # D at which a dome's border is as good as square
GRID = 9                      # values of D that are tried at a time
FINE_ENOUGH = 0.005
TIE = 1e-9                    # closer than that, the first counts, however sums round
SIZES = 60                    # burdens that are tried to tell what is reachable
TRIES = 4                     # borders that are tried before a request is refused


class Unreachable(UserError):
    """This heart cannot hold what was asked; the text says what it can.

    `nearest` are the burdens next to the one asked for that it can hold, if it is the burden. They
    take a while to find, and so does the text, so they are sought when somebody reads them.
    """

    def __init__(self, text: str = "", growths: Sequence[Growth] = ()):
        super().__init__(text)
        self._text, self._growths = text, growths

    @cached_property
    def _told(self) -> str:
        return _refusal(self._growths, self.nearest) if self._growths else self._text

    def __str__(self) -> str:
        return self._told

    @cached_property
    def nearest(self) -> tuple[float, ...]:
        return _nearest(self._growths) if self._growths else ()


def grow(anatomy: Anatomy, spec: ScarSpec, free: np.ndarray) -> tuple[Growth, np.ndarray]:
    """A lesion, and its voxels as indices into its wall; `free` (Z, Y, X) bool are the voxels it
    may take. Raises `Unreachable`."""
    growths = []
    for attempt in range(TRIES):
        growths.append(Growth.of(anatomy, spec, free, attempt))
        if (chosen := growths[-1].grow()) is not None:
            return growths[-1], chosen
    raise Unreachable(growths=growths)


@dataclass
class Growth:
    """The voxels a lesion may take, and the order in which it takes them."""

    spec: ScarSpec
    total: int                 # voxels of the whole myocardium
    wall: Wall
    base: np.ndarray
    reach: np.ndarray
    distance: np.ndarray
    limit: float = DEEPEST

    @classmethod
    def of(cls, anatomy: Anatomy, spec: ScarSpec, free: np.ndarray, attempt: int = 0) -> Growth:
        usable = anatomy.paintable[:, None, None] & free
        if spec.segments:
            _refuse_uncovered(anatomy, spec, usable)
            usable = usable & np.isin(anatomy.segment, spec.segments)
        wall = Wall.of(anatomy, usable)
        spec = _placed(spec, wall)
        steps = 1 if anatomy.order == "apex_to_base" else -1
        along = (wall.z - spec.slice) * steps
        around = np.mod(wall.angle - spec.angle + np.pi, 2 * np.pi) - np.pi
        base, reach = base_field(spec, around, along / (spec.length / 2), wall.depth,
                                 along * anatomy.spacing[0] / anatomy.radius, attempt)
        distance = np.where(wall.segment == APEX, 0.0,         # no depth there, see `measure`
                            SHAPES[spec.shape].distance(wall.depth, spec.depth))
        return cls(spec, int(anatomy.myocardium.sum()), wall, base, reach, distance)

    @property
    def size(self) -> int:
        """Voxels that the burden asks for."""
        return max(round(self.spec.burden * self.total), 1)

    def scores(self, limit: float) -> np.ndarray:
        return score(SHAPES[self.spec.shape], self.base, self.distance, self.reach, limit)

    def grow(self) -> np.ndarray | None:
        """Indices into `wall` of the lesion; remembers its depth limit. None where it misses."""
        if self.size > len(self.wall.index):
            return None
        wanted = self.spec.transmurality
        chosen, error = (self._choose(DEEPEST), 0.0) if wanted is None else self._deep_as(wanted)
        touched = set(self.wall.segment[chosen].tolist())
        misses = error > max(TOLERANCE, self._finest(chosen)) or set(self.spec.segments) - touched
        return None if misses else chosen

    def _finest(self, chosen: np.ndarray) -> float:
        """Half a pixel's share of the wall: no mask can be told finer than that."""
        return float(np.median(self.wall.half_pixel[chosen]))

    def _choose(self, limit: float) -> np.ndarray:
        scores = self.scores(limit)
        if self.spec.shares:
            return self._by_segment(scores)
        return np.argpartition(scores, self.size - 1)[:self.size]

    def _by_segment(self, scores: np.ndarray) -> np.ndarray:
        members = [np.flatnonzero((self.wall.segment == s) & np.isfinite(scores))
                   for s in self.spec.segments]
        counts = _portions(self.size, [len(m) for m in members], self.spec.shares)
        return np.concatenate([m[np.argsort(scores[m], kind="stable")[:n]]
                               for m, n in zip(members, counts)])

    def _deep_as(self, wanted: float) -> tuple[np.ndarray, float]:
        """The lesion whose transmurality is nearest to `wanted`, and by how much it misses.

        D is searched on a grid, then on a finer one beside the best: whole voxels make the
        transmurality jump, so it does not grow steadily with D.
        """
        needed = self.distance / self.reach
        low = float(np.partition(needed, self.size - 1)[self.size - 1]) + 1e-6   # all must fit
        high, best, error = max(DEEPEST, low), None, np.inf
        for _ in range(2):
            limits = np.geomspace(low, high, GRID)
            for k, limit in enumerate(limits):
                chosen = self._choose(limit)
                miss = abs(self.wall.transmurality(chosen) - wanted)
                if miss < error - TIE:
                    best, error, self.limit, at = chosen, miss, limit, k
                if error < FINE_ENOUGH:
                    return best, error
            low, high = limits[max(at - 1, 0)], limits[min(at + 1, GRID - 1)]
        return best, error

    def with_size(self, size: int) -> Growth:
        return dataclasses.replace(self, spec=dataclasses.replace(
            self.spec, burden=min(size / self.total, 1.0)))


def _sizes(growth: Growth) -> list[int]:
    """The burdens, in voxels, that are tried to tell what is reachable."""
    return np.unique(np.geomspace(1, max(len(growth.wall.index), 1), SIZES).astype(int)).tolist()


def _refusal(growths: Sequence[Growth], nearest: tuple[float, ...]) -> str:
    """Why none of these grows; `nearest` are the burdens next to it that would."""
    first, spec = growths[0], growths[0].spec
    where = f"all of segments {', '.join(map(str, spec.segments))}" if spec.segments \
        else "the scar-free slices of this heart"
    depth = "" if spec.transmurality is None else \
        f" at a transmurality of {spec.transmurality:.2f}"
    refused = f"No {spec.shape} scar of {spec.burden:.1%} of the myocardium{depth} fits into " \
        f"{where}"
    if not nearest:
        return f"{refused}, nor of another burden; change the transmurality, the segments or " \
            "the prior."
    sizes = _sizes(first)
    least, most = (_first_held(growths, sizes[::step]) for step in (1, -1))
    return (f"{refused}, which can hold {least / first.total:.2%} to {most / first.total:.2%} "
            f"(nearest: {', '.join(f'{b:.2%}' for b in nearest)}); "
            "change burden, transmurality or segments.")


def _nearest(growths: Sequence[Growth]) -> tuple[float, ...]:
    """The largest burden below and the smallest above that one of these reaches."""
    first = growths[0]
    sizes = _sizes(first)
    held = (_first_held(growths, [n for n in reversed(sizes) if n <= first.size]),
            _first_held(growths, [n for n in sizes if n > first.size]))
    return tuple(n / first.total for n in held if n is not None)


def _first_held(growths: Sequence[Growth], sizes: Iterable[int]) -> int | None:
    return next((n for n in sizes if any(g.with_size(n).grow() is not None for g in growths)),
                None)


def _refuse_uncovered(anatomy: Anatomy, spec: ScarSpec, usable: np.ndarray) -> None:
    shown, free = (set(np.flatnonzero(np.bincount(segment)).tolist()) - {0}
                   for segment in (anatomy.segment.ravel(), anatomy.segment[usable]))
    for missing, why in ((set(spec.segments) - shown, "does not cover"),
                         (set(spec.segments) - free, "has a real scar in every slice of")):
        if missing:
            names = ", ".join(f"{s} ({NAMES[s]})" for s in sorted(missing))
            raise Unreachable(f"The stack {why} AHA segment {names}; it has "
                              f"{', '.join(map(str, sorted(free))) or 'none'} to paint into.")


def _placed(spec: ScarSpec, wall: Wall) -> ScarSpec:
    """With centre and size from the segments' voxels where the request leaves them open."""
    if not len(wall.index):
        raise Unreachable("This heart has no scar-free slice with a wall around the cavity.")
    angle = mean_angle(wall.angle) if spec.angle is None else spec.angle
    away = np.abs(np.angle(np.exp(1j * (wall.angle - angle))))
    first, last = int(wall.z[0]), int(wall.z[-1])
    return dataclasses.replace(
        spec, angle=angle,
        extent=float(min(2 * away.max() + 1e-3, 2 * np.pi)) if spec.extent is None
        else spec.extent,
        slice=(first + last) / 2 if spec.slice is None else spec.slice,
        length=float(last - first + 1) if spec.length is None else spec.length)


def _portions(size: int, room: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Whole voxels a segment, proportional to share x room, none above its room."""
    room, left = np.array(room), size
    portions = np.zeros(len(room), int)
    while left > 0 and (portions < room).any():
        weight = np.where(portions < room, np.array(shares) * room, 0.0)
        weight = weight if weight.sum() > 0 else (portions < room).astype(float)
        more = weight / weight.sum() * left
        whole = np.minimum(np.floor(more).astype(int), room - portions)
        if not whole.any():
            whole[np.argmax(np.where(portions < room, more, -1))] = 1
        portions, left = portions + whole, left - int(whole.sum())
    return portions.tolist()
