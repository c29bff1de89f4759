"""Can a fitted generator be trusted? It must not repeat training scars, must vary, and must obey.

    memorisation   nearest training crop of each synthetic scar beside real patients' own
    spread         mean root mean squared difference between two seeds of one request, inside the
                   scar, over sqrt(2) times the texture of real scars: 1 if texture is drawn anew
    slope          contrast painted over contrast asked, same request and seed: 1 if it is followed
    inside         share of the squared change that lies under the two masks, when the same seed is
                   asked for another scar in the same slice

Only the fold's training cases are looked at; drafts are not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist
from tqdm import tqdm

from nnunet_lgesynth.anatomy.scar import SCAR
from nnunet_lgesynth.benchmark.memorisation import Match, Memorisation, Reference, require_patients
from nnunet_lgesynth.benchmark.nearest import Library, Patch
from nnunet_lgesynth.benchmark.probes import Probe, asks, paint_probes, paint_scars, real_scars
from nnunet_lgesynth.config import AuditConfig, InjectionConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.subject import measure_prior, read_subjects
from nnunet_lgesynth.pool.synthesize import paintable_hearts

__all__ = ["Audit", "Diversity", "Pair", "audit", "diversity", "texture"]

LEAST_PAIRS, MOST_PAIRS = 6, 24
SMOOTH = 2.0             # pixels; what varies more slowly is a scar's form, not its texture


@dataclass(frozen=True)
class Diversity:
    """Means over the requests, see the module text, and the least that is asked of each."""

    texture: float           # of real scars, normalised units
    spread: float
    slope: float
    inside: float
    bounds: dict[str, float]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of what is below its bound."""
        return tuple(n for n, bound in self.bounds.items() if not getattr(self, n) >= bound)

    @property
    def passed(self) -> bool:
        return not self.failed


@dataclass(frozen=True, eq=False)
class Pair:
    """A sample, and the training crop next to it, moved onto the sample's."""

    match: Match
    sample: Patch
    aligned: np.ndarray


@dataclass(frozen=True, eq=False)
class Audit:
    """Both parts, and the samples that stand out most, flagged ones first."""

    generator: str
    hash: str
    memorisation: Memorisation
    diversity: Diversity
    config: AuditConfig
    pairs: tuple[Pair, ...]

    @property
    def passed(self) -> bool:
        return self.memorisation.passed and self.diversity.passed

    def as_dict(self) -> dict:
        """JSON-ready, without the pictures."""
        part = self.memorisation
        return {"passed": self.passed, "generator": self.generator, "hash": self.hash,
                "memorisation": {
                    "passed": part.passed, "n": len(part.samples), "flagged": part.flagged,
                    "real_n": len(part.reals), "real_flagged": part.real_flagged, **asdict(part)},
                "diversity": {"passed": self.diversity.passed, "failed": self.diversity.failed,
                              **asdict(self.diversity)},
                "config": asdict(self.config)}


def audit(fold: Fold, generator, n: int, seed: int, config: AuditConfig | None = None) -> Audit:
    """Draw `n` scars in the fold's training hearts, one slice each, and ask some requests anew.

    Raises `UserError` where too few training patients have a scar.
    """
    if n < 1 or seed < 0:
        raise UserError(f"-n must be at least 1 and --seed at least 0, not {n} and {seed}.")
    config = config or AuditConfig()
    subjects = read_subjects(fold, fold.train)
    prior = measure_prior(subjects, fold, InjectionConfig().prior)
    hearts = paintable_hearts(fold, subjects)
    scars = real_scars(fold, subjects, generator)
    require_patients(len({s.case for s in scars}))
    asked = islice(asks(fold, prior, hearts, generator, np.random.default_rng([seed, 0])), n)
    samples = list(tqdm(paint_scars(asked, generator), "Painting scars", n))
    found, pairs = _compare(samples, scars, config)
    probes = paint_probes(fold, prior, hearts, generator, config.requests, config.seeds,
                          np.random.default_rng([seed, 1]))
    varied = diversity(tqdm(probes, "Varying requests", config.requests), texture(scars), config)
    return Audit(generator.name, generator.hash, found, varied, config, pairs)


def _compare(samples: Sequence[Patch], scars: Sequence[Patch],
             config: AuditConfig) -> tuple[Memorisation, tuple[Pair, ...]]:
    library = Library(scars)
    between, near = (np.stack([library.distances(p) for p in tqdm(patches, f"Comparing {whose}")])
                     for patches, whose in ((scars, "patients"), (samples, "scars")))
    found = Reference.of(scars, between, config).judge(samples, near)
    excess = np.array([m.ratio - m.bound for m in found.samples])
    shown = excess.argsort(kind="stable")[:min(max(found.flagged, LEAST_PAIRS), MOST_PAIRS)]
    return found, tuple(Pair(found.samples[i], samples[i],
                             library.aligned(samples[i], int(near[i].argmin()))) for i in shown)


def diversity(probes: Iterable[Probe], real_texture: float, config: AuditConfig) -> Diversity:
    """Spread, slope and inside of these requests; `real_texture` is real scars' `texture`."""
    spread, slope, inside, changed = [], [], 0.0, 0.0
    for probe in probes:
        scar = probe.by_seed[:, probe.mask > 0]                              # (S, pixels)
        spread.append(pdist(scar).mean() / np.sqrt(scar.shape[1]))
        low, high = np.median(probe.by_contrast[:, probe.mask == SCAR], axis=1)
        slope.append((high - low) / (probe.contrasts[1] - probe.contrasts[0]))
        change = np.subtract(*probe.by_place.astype(float)) ** 2
        inside += change[(probe.mask > 0) | (probe.other > 0)].sum()
        changed += change.sum()
    return Diversity(real_texture, float(np.mean(spread) / (np.sqrt(2) * real_texture)),
                     float(np.mean(slope)), float(inside / changed) if changed > 0 else 0.0,
                     {n: getattr(config, f"least_{n}") for n in ("spread", "slope", "inside")})


def texture(scars: Sequence[Patch]) -> float:
    """Standard deviation inside a scar after a smooth version of it is subtracted; the median over
    the scars, so that a few with a dark core do not count as textured."""
    def of(scar: Patch) -> float:
        weight = ndimage.gaussian_filter(scar.mask.astype(float), SMOOTH)
        smooth = ndimage.gaussian_filter(scar.image.astype(float) * scar.mask, SMOOTH)
        return float(np.std(scar.image[scar.mask] - smooth[scar.mask] / weight[scar.mask]))
    return float(np.median([of(s) for s in scars]))
