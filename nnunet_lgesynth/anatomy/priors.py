"""Who asks for a scar: priors, by name, each `draw(anatomy, rng, asked) -> ScarSpec`.

    fitted         a real scar of the training fold, varied a little: place, extents, profile along
                   the heart, transmurality, burden and no-reflow of one record
    sector         ischaemic: a coronary territory, chosen as often as the records lie in it;
                   wavefront from the endocardium outward (Reimer and Jennings, Lab Invest
                   1979;40:633), tapering to all sides; sizes of a record
    ellipsoid      LGESynthNet (arXiv 2603.18356): in a random region and layer; its size law is
                   unstated there and comes from a record here
    smile          CLAIM's SMILE (arXiv 2506.15549): connected AHA segments, each filled to a share
                   of its own, by blobs
    midwall        non-ischaemic, septal stripe (dilated cardiomyopathy: McCrohon et al.,
                   Circulation 2003;108:54)
    subepicardial  non-ischaemic, inferolateral (myocarditis: Mahrholdt et al., Circulation
                   2004;109:1250)
    patchy         non-ischaemic, scattered foci in the middle of the wall (hypertrophic
                   cardiomyopathy: Moon et al., J Am Coll Cardiol 2003;41:1561)

Contrasts, and the sizes where it says so, come from `ScarRecord`s: what the training fold's real
scars measure. A draw takes one record, so joint habits (large scars are deep, deep scars have
no-reflow) survive. What the user asks for goes before. What does not fit into the heart is drawn
anew; in the end the burden, then the depth, is changed as far as the user left it open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nnunet_lgesynth.anatomy.aha import SEGMENTS, SPANS, TERRITORIES, neighbours
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.measure import ScarRecord
from nnunet_lgesynth.anatomy.scar import ScarSpec, Unreachable, paint_mask
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import UserError

__all__ = ["MEASURES", "NON_ISCHAEMIC", "PRIORS", "Asked", "Prior"]

MEASURES = ("burden", "slice_share", "contrast")   # of a record: how like real scars a pool is
ATTEMPTS = 20
ASKED_ATTEMPTS = 8               # of a user's wishes, which give way after them; see `_eased`
LEAST_DEPTH = 0.15
LEAST_BURDEN = 0.004
NON_ISCHAEMIC = ("midwall", "subepicardial", "patchy")
NON_ISCHAEMIC_BURDEN = 0.15      # at most; larger ones are infarcts in these records
PATCHY_BURDEN = 0.04             # at most; more foci grow together
SEPTUM, INFEROLATERAL = np.deg2rad([60.0, 210.0])
# Of LAD, RCA and LCx: the border between the two basal segments of each.
TERRITORY_CENTRES = tuple((SPANS[min(s)][0] + np.pi / 3) % (2 * np.pi)
                          for s in TERRITORIES.values())
ELLIPSOID_DEPTHS = (1 / 6, 1 / 2, 5 / 6)           # endocardial, mid and epicardial layer
MOST_CORE = 0.8                  # no-reflow's share of a lesion; a rim of scar stays


@dataclass(frozen=True)
class Asked:
    """What a user insists on; ranges are (low, high), None leaves it to the prior."""

    segments: tuple[int, ...] = ()
    burden: tuple[float, float] | None = None
    transmurality: tuple[float, float] | None = None
    no_reflow: tuple[float, float] | None = None

    def __post_init__(self):
        object.__setattr__(self, "segments", tuple(sorted(set(self.segments))))
        if unknown := sorted(set(self.segments) - set(SEGMENTS)):
            raise UserError(f"AHA segments are numbered 1 to {SEGMENTS[-1]}, not "
                            f"{', '.join(map(str, unknown))}.")
        for name in ("burden", "transmurality", "no_reflow"):
            value = getattr(self, name)
            low, high = (0, MOST_CORE) if name == "no_reflow" else (1e-6, 1)
            if value is not None and not low <= value[0] <= value[1] <= high:
                raise UserError(f"{name} must be a share {'from' if low == 0 else 'above'} 0 up to "
                                f"{high:g}, the lower one first, not {value[0]:g} {value[1]:g}.")


@dataclass(frozen=True)
class Prior:
    """Draws requests that vary the records' scars; see the module text for the names.

    `no_reflow_share` of the requests vary a scar with a no-reflow core, the more often the larger
    the core, the others one without; None: each record as often, whatever it holds.
    """

    name: str
    records: tuple[ScarRecord, ...] = field(default=())
    no_reflow_share: float | None = None

    def __post_init__(self):
        if self.name not in PRIORS:
            raise UserError(f"There is no prior {self.name!r}; choose one of {sorted(PRIORS)}.")
        if not self.records:
            raise UserError("The training cases hold no measurable scar, so sizes and contrast of "
                            "synthetic scars are unknown; check the roles with: lgesynth doctor "
                            "-d DATASET_ID")

    def draw(self, anatomy: Anatomy, rng: np.random.Generator,
             asked: Asked | None = None) -> ScarSpec:
        """One request that this heart can hold; raises `Unreachable` where none is found."""
        if not anatomy.paintable.any():
            raise Unreachable("This heart has no scar-free slice with a wall around the cavity.")
        asked = asked or Asked()
        for _ in range(ATTEMPTS if asked == Asked() else ASKED_ATTEMPTS):
            record = self._record(rng)
            drawn = PRIORS[self.name](_Draw(record, self.records, anatomy, rng, asked))
            spec = self._insisted(drawn, asked, rng)
            try:
                paint_mask(anatomy, spec)
                return spec
            except Unreachable as error:
                refused = error
        if asked == Asked():
            raise refused
        return _eased(anatomy, spec, asked)

    def _record(self, rng: np.random.Generator) -> ScarRecord:
        cored = [r for r in self.records if r.no_reflow_contrast is not None]
        others = [r for r in self.records if r.no_reflow_contrast is None]
        if self.no_reflow_share is None or not cored:
            return self.records[rng.integers(len(self.records))]
        if others and rng.uniform() >= self.no_reflow_share:
            return others[rng.integers(len(others))]
        # by the core's volume: small ones are hardly darker than their scar, and pass most easily
        volumes = np.array([r.burden * r.no_reflow for r in cored])
        return cored[rng.choice(len(cored), p=volumes / volumes.sum())]

    def _insisted(self, drawn: dict, asked: Asked, rng: np.random.Generator) -> ScarSpec:
        if asked.segments:
            drawn |= {"segments": asked.segments, "profile": ()} | dict.fromkeys(
                ("angle", "extent", "slice", "length"))
        for name in ("burden", "transmurality", "no_reflow"):
            wanted, value = getattr(asked, name), drawn.get(name)
            if wanted is None:
                continue
            if name == "transmurality":        # as deep as the shape allows, at most
                wanted = wanted[0], max(wanted[0], min(wanted[1], SHAPES[drawn["shape"]].deepest))
            if value is None or not wanted[0] <= value <= wanted[1]:
                drawn[name] = float(rng.uniform(*wanted))
        if self.name in NON_ISCHAEMIC:
            drawn["no_reflow"] = 0.0
            if asked.no_reflow and asked.no_reflow[0] > 0:
                raise UserError(f"A {self.name} scar is not ischaemic and has no no-reflow core; "
                                "leave --no-reflow out, or choose another prior.")
        elif drawn["no_reflow"] > 0 and not drawn["no_reflow_contrast"]:
            cores = [r.no_reflow_contrast for r in self.records if r.no_reflow_contrast is not None]
            if not cores:
                raise UserError("No training scar has a no-reflow core, so its contrast is "
                                "unknown; leave --no-reflow out.")
            drawn["no_reflow_contrast"] = cores[rng.integers(len(cores))]
        return ScarSpec(**drawn)

    def as_dict(self) -> dict:
        """What `from_dict` reads; `no_reflow_share` is the pool's matter, not the fit's."""
        return {"name": self.name, "records": [dataclasses.asdict(r) for r in self.records]}

    @classmethod
    def from_dict(cls, values: dict) -> Prior:
        return cls(values["name"], tuple(ScarRecord(**r) for r in values["records"]))


def _eased(anatomy: Anatomy, spec: ScarSpec, asked: Asked) -> ScarSpec:
    """The request with what the user left open changed until the heart can hold it: the burden
    within its range, then the depth. Raises what the last one lacks."""
    low, high = asked.burden or (0.0, 1.0)
    depths = [spec.transmurality]
    if asked.transmurality is None and spec.transmurality is not None:
        depths += [LEAST_DEPTH, SHAPES[spec.shape].deepest]
    for depth in depths:
        spec = dataclasses.replace(spec, transmurality=depth)
        try:
            paint_mask(anatomy, spec)
            return spec
        except Unreachable as error:
            fits = [b for b in error.nearest if low <= b <= high]
            if fits:
                return dataclasses.replace(spec, burden=fits[0])
            refused = error
    raise refused


@dataclass(frozen=True)
class _Draw:
    """What one draw starts from."""

    record: ScarRecord
    records: tuple[ScarRecord, ...]
    anatomy: Anatomy
    rng: np.random.Generator
    asked: Asked

    def burden(self, most: float = 1.0, spread: float = 0.15) -> float:
        """The record's, for the part of this heart that may be painted."""
        anatomy = self.anatomy
        free = anatomy.paintable.sum() / anatomy.covered.sum()
        burden = self.record.burden * free * np.exp(self.rng.normal(0, spread))
        return float(np.clip(burden, LEAST_BURDEN, most))

    def depth(self, low: float = LEAST_DEPTH) -> float:
        return float(np.clip(self.record.transmurality + self.rng.normal(0, 0.04), low, 1))

    def turned(self, angle: float, spread: float) -> float:
        return float((angle + self.rng.normal(0, spread)) % (2 * np.pi))

    def along(self, level: float, share: float) -> dict:
        """Centre and length along the stack; inside it where the length allows."""
        anatomy, rng = self.anatomy, self.rng
        covered = np.flatnonzero(anatomy.covered)
        length = max(float(np.clip(share, 0, 1)) * len(covered), 1.0)
        free = np.flatnonzero(anatomy.paintable)
        nearest = free[np.argmin(np.abs(anatomy.level[free] - np.clip(level, 0, 1)))]
        half = min((length - 1) / 2, (covered[-1] - covered[0]) / 2)
        centre = np.clip(nearest + rng.uniform(-0.4, 0.4), covered[0] + half, covered[-1] - half)
        return {"slice": float(centre), "length": length}

    def contrasts(self, core: bool = True) -> dict:
        """Contrasts, texture and, in a heart whose record has one, a no-reflow core."""
        record, rng = self.record, self.rng
        core = core and record.no_reflow_contrast is not None
        share = float(np.clip(record.no_reflow * rng.uniform(0.7, 1.3), 0, MOST_CORE))
        return {"contrast": record.contrast * float(rng.uniform(0.85, 1.15)),
                "no_reflow": share if core else 0.0,
                "no_reflow_contrast": record.no_reflow_contrast if core else 0.0,
                "texture": int(rng.integers(2 ** 31))}


def _fitted(draw: _Draw) -> dict:
    record, rng = draw.record, draw.rng
    share = record.slice_share * rng.uniform(0.9, 1.1)
    return {"shape": "sector", "burden": draw.burden(), "transmurality": draw.depth(),
            "angle": draw.turned(record.angle, 0.2),
            "extent": float(np.clip(record.extent * rng.uniform(0.9, 1.1), 0.25, 2 * np.pi)),
            "profile": record.profile,
            **draw.along(record.level + rng.normal(0, 0.07), share), **draw.contrasts()}


def _sector(draw: _Draw) -> dict:
    record, rng = draw.record, draw.rng
    centres = np.array(TERRITORY_CENTRES)
    away = np.array([[r.angle] for r in draw.records]) - centres
    hits = np.abs(np.angle(np.exp(1j * away))).argmin(axis=1)
    often = np.bincount(hits, minlength=len(centres)) + 1.0
    centre = TERRITORY_CENTRES[rng.choice(len(centres), p=often / often.sum())]
    extent = record.extent * rng.uniform(1.0, 1.4)     # the dome's border is below its extent
    return {"shape": "sector", "burden": draw.burden(), "transmurality": draw.depth(),
            "angle": draw.turned(centre, 0.35),
            "extent": float(np.clip(extent, 0.25, 2 * np.pi)),
            **draw.along(record.level + rng.normal(0, 0.15), record.slice_share * 1.2),
            **draw.contrasts()}


def _ellipsoid(draw: _Draw) -> dict:
    record, rng = draw.record, draw.rng
    return {"shape": "ellipsoid", "burden": draw.burden(), "transmurality": draw.depth(low=0.2),
            "angle": float(rng.uniform(0, 2 * np.pi)),
            "extent": float(np.clip(record.extent * rng.uniform(0.8, 1.35), 0.25, 2 * np.pi)),
            "depth": float(rng.choice(ELLIPSOID_DEPTHS)),
            **draw.along(record.level + rng.normal(0, 0.15), record.slice_share),
            **draw.contrasts()}


def _smile(draw: _Draw) -> dict:
    """Shares are uniform, as there; how many segments follows from growing to at most 6, or until
    they hold the burden that the user insists on."""
    anatomy, rng = draw.anatomy, draw.rng
    free = anatomy.segment[anatomy.paintable]
    sizes = np.bincount(free[free > 0], minlength=SEGMENTS[-1] + 1) / anatomy.myocardium.sum()
    least = draw.asked.burden[0] if draw.asked.burden else 0.0
    segments = draw.asked.segments or _grown(sizes, least, rng)
    shares = rng.uniform(0.1, 1.0, len(segments))
    burden = float((shares * sizes[list(segments)]).sum())
    return {"shape": "smile", "burden": max(burden, LEAST_BURDEN), "segments": segments,
            "shares": tuple(shares.tolist()), **draw.contrasts()}


def _grown(sizes: np.ndarray, least: float, rng: np.random.Generator) -> tuple[int, ...]:
    """A connected set of up to 6 segments, or of as many as make up `least`."""
    available = set(np.flatnonzero(sizes).tolist())
    chosen = {int(rng.choice(sorted(available)))}
    wanted = 1 + int(rng.integers(0, 6))
    while len(chosen) < wanted or sizes[list(chosen)].sum() < least:
        border = sorted({n for s in chosen for n in neighbours(s)} & available - chosen)
        if not border:
            break
        chosen.add(int(rng.choice(border)))
    return tuple(sorted(chosen))


def _stripe(shape: str, angle: float) -> Callable[[_Draw], dict]:
    def drawn(draw: _Draw) -> dict:
        rng = draw.rng
        return {"shape": shape, "burden": draw.burden(most=NON_ISCHAEMIC_BURDEN),
                "transmurality": float(rng.uniform(0.25, 0.55)), "angle": draw.turned(angle, 0.5),
                "extent": float(rng.uniform(1.0, 2.5)),
                **draw.along(float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.4, 1.0))),
                **draw.contrasts(core=False)}
    return drawn


def _patchy(draw: _Draw) -> dict:
    rng = draw.rng
    return {"shape": "patchy", "burden": draw.burden(most=PATCHY_BURDEN), "depth": 0.5,
            "transmurality": float(rng.uniform(0.3, 0.6)),
            "angle": float(rng.uniform(0, 2 * np.pi)), "extent": float(rng.uniform(2.5, 5.5)),
            **draw.along(float(rng.uniform(0.2, 0.9)), float(rng.uniform(0.6, 1.0))),
            **draw.contrasts(core=False)}


PRIORS = {"fitted": _fitted, "sector": _sector, "ellipsoid": _ellipsoid, "smile": _smile,
          "midwall": _stripe("midwall", SEPTUM),
          "subepicardial": _stripe("subepicardial", INFEROLATERAL), "patchy": _patchy}
