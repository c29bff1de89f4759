"""Does a generator repeat training scars? Its samples beside real patients, each left out in turn.

`nearest` gives a scar's distance to every training scar. Alone it misleads, since small or smooth
scars lie near to everything, so it is held against the distances to the patients that come next (as
Carlini et al., arXiv 2301.13188, do for images):

    ratio = distance to the nearest patient / mean distance to the `next_patients` after it

A copy's ratio is near 0. Real scars, each compared with all other patients, tell what is usual: a
sample is flagged if its ratio is below that of the most alike scar in size of each of `like_size`
patients, those where it is most alike. Were the sample a further patient's scar, that would happen
1 in `like_size` + 1 times by rank; one scar a patient, since those of one patient resemble.
A patient who is there twice, as a repeated scan, would make copies look usual, so such twins count
as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.stats import binom

from nnunet_lgesynth.benchmark.nearest import Patch
from nnunet_lgesynth.config import AuditConfig, UserError

__all__ = ["Match", "Memorisation", "Reference", "require_patients"]

LEAST_PATIENTS = 4       # with scar: a scar's own, the nearest, and two that come next


@dataclass(frozen=True)
class Match:
    """A scar and its nearest other patient; slices count from 1, distances in normalised
    units."""

    case: str
    slice: int
    pixels: int
    distance: float
    reference: float            # mean distance to the patients that come next
    ratio: float                # distance / reference
    bound: float                # the lowest ratio of real scars of like size, one a patient
    nearest_case: str
    nearest_slice: int
    flagged: bool


@dataclass(frozen=True)
class Memorisation:
    """Samples and, beside them, real scars each compared with all other patients."""

    samples: tuple[Match, ...]
    reals: tuple[Match, ...]
    twins: tuple[tuple[str, ...], ...]     # identifiers that count as one patient
    expected: float                        # share of an honest generator's samples that is flagged
    allowed: int                           # flagged samples up to which the audit is passed

    @property
    def flagged(self) -> int:
        """Flagged samples."""
        return sum(m.flagged for m in self.samples)

    @property
    def real_flagged(self) -> int:
        """Real scars that would be flagged among the other patients."""
        return sum(m.flagged for m in self.reals)

    @property
    def passed(self) -> bool:
        return self.flagged <= self.allowed


@dataclass(frozen=True, eq=False)
class Reference:
    """Real scars, how near each lies to the other patients, and who is who.

    `between` (reals, reals) are their distances, `groups` (reals,) the numbers of their patients.
    """

    reals: tuple[Patch, ...]
    between: np.ndarray
    groups: np.ndarray
    twins: tuple[tuple[str, ...], ...]
    config: AuditConfig

    @classmethod
    def of(cls, reals: Sequence[Patch], between: np.ndarray, config: AuditConfig) -> Reference:
        """Tell the patients apart; `UserError` if there are too few."""
        groups, twins = _patients(reals, between, config)
        require_patients(int(groups.max()) + 1)
        return cls(tuple(reals), between, groups, twins, config)

    @property
    def like_size(self) -> int:
        """How many patients a scar is held against."""
        return min(self.config.like_size, int(self.groups.max()))

    def judge(self, samples: Sequence[Patch], near: np.ndarray) -> Memorisation:
        """Judge samples by their distances to the reals, (samples, reals). An honest generator
        fails with a chance of `config.alarm`."""
        others = np.where(self.groups[:, None] == self.groups, np.inf, self.between)
        usual = _ratios(others, self.groups, self.config)[2]
        reals = self._matches(self.reals, others, self.groups, usual)
        found = self._matches(samples, near, np.full(len(samples), -1), usual)
        expected = max(1 / (self.like_size + 1), float(np.mean([m.flagged for m in reals])))
        return Memorisation(found, reals, self.twins, expected,
                            int(binom.ppf(1 - self.config.alarm, len(samples), expected)))

    def _matches(self, patches: Sequence[Patch], distances: np.ndarray, own: np.ndarray,
                 usual: np.ndarray) -> tuple[Match, ...]:
        """One a patch; `own` is the patient whose scars a patch is not held against."""
        found = []
        for k, (patch, distance, reference, ratio) in enumerate(
                zip(patches, *_ratios(distances, self.groups, self.config))):
            bound = usual[self._alike(patch, own[k])].min()
            other = self.reals[distances[k].argmin()]
            found.append(Match(patch.case, patch.z + 1, int(patch.mask.sum()), float(distance),
                               float(reference), float(ratio), float(bound), other.case,
                               other.z + 1, bool(ratio < bound)))
        return tuple(found)

    def _alike(self, patch: Patch, own: int) -> np.ndarray:
        """Indices of the reals that are most alike in size, one of each of `like_size` patients."""
        unlike = np.abs(np.log([r.mask.sum() for r in self.reals]) - np.log(patch.mask.sum()))
        order = np.argsort(np.where(self.groups == own, np.inf, unlike), kind="stable")
        _, first = np.unique(self.groups[order], return_index=True)
        return order[np.sort(first)[:self.like_size]]


def require_patients(count: int) -> None:
    """`UserError` where so few training patients have a scar that nothing can be told."""
    if count < LEAST_PATIENTS:
        raise UserError(f"{count} training patients have a scar, and {LEAST_PATIENTS} are needed "
                        "to tell how far patients lie apart; audit a fold with more.")


def _patients(reals: Sequence[Patch], between: np.ndarray,
              config: AuditConfig) -> tuple[np.ndarray, tuple[tuple[str, ...], ...]]:
    """(reals,) patient numbers, and the identifiers that share one: a patient most of whose scars
    stand out as another's copies is that one."""
    names, cases = np.unique([r.case for r in reals], return_inverse=True)
    require_patients(len(names))
    others = np.where(cases[:, None] == cases, np.inf, between)
    copies = np.zeros((len(names), len(names)))
    stands_out = _ratios(others, cases, config)[2] < config.twin_ratio
    np.add.at(copies, (cases[stands_out], cases[others.argmin(axis=1)[stands_out]]), 1)
    _, groups = connected_components(copies >= np.bincount(cases)[:, None] / 2, directed=False)
    twins = tuple(tuple(map(str, names[groups == g])) for g in np.unique(groups)
                  if (groups == g).sum() > 1)
    return groups[cases], twins


def _ratios(distances: np.ndarray, groups: np.ndarray,
            config: AuditConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of distances (n, reals), inf where not compared: distance to the nearest patient, mean over
    those that come next, and their ratio; (n,) each."""
    count = int(groups.max()) + 1
    patients = np.stack([distances[:, groups == g].min(axis=1) for g in range(count)], axis=1)
    patients.sort(axis=1)
    after = min(config.next_patients, count - 2)       # a real scar's own patient comes last
    reference = patients[:, 1:1 + after].mean(axis=1)
    return patients[:, 0], reference, patients[:, 0] / np.maximum(reference, 1e-9)
