"""Fills one pool: numbered drafts of scars and healthy wall, of which the accepted ones are kept.

Draft k of a kind comes from (seed, kind, k, rank) alone, and drafting goes on after the last one
that the pool has kept: an interrupted training draws what it would have drawn (but for what was
under way, where several threads draft).
The kind that the pool has fewer of is drafted next. A pool that is full is renewed, by at most
`refresh_cases` an epoch, and the files of cases that are no longer served are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Lock

import numpy as np

from nnunet_lgesynth.config import InjectionConfig, QCConfig
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.store import Manifest, Pool
from nnunet_lgesynth.pool.synthesize import KINDS, Sample, kinds_for, prepare, synthesize

__all__ = ["Studio", "ours"]

FIELDS = ("identifier", "kind", "source", "generator", "number")     # of a record, kept in memory
PATIENCE = 40      # drafts in a row without a case that the log hears of


def ours(records: list[dict], generator: str, fold: Fold) -> dict[str, list[dict]]:
    """A pool's records by kind, oldest first: of this generator, and of hearts trained on (those of
    an older split may be validated on now)."""
    found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for record in records:
        if record["generator"] == generator and record["source"] in fold.train:
            found[record["kind"]].append(record)
    return found


class Studio:
    """The one writer of a pool, with generator and judge; `log` hears what a user should know.

    Several threads may `draft` at once, if generator and judge allow it.
    """

    def __init__(self, fold: Fold, generator, judge, injection: InjectionConfig, folder: Path,
                 log: Callable[[str], None], qc: QCConfig | None = None, rank: int = 0):
        self.fold, self.generator, self.judge = fold, generator, judge
        self.injection, self.qc, self.rank, self.log = injection, qc or QCConfig(), rank, log
        prior, self.hearts = prepare(fold, injection.prior)
        self.prior = replace(prior, no_reflow_share=injection.no_reflow_share)
        self.pool, self.manifest = Pool(folder, fold), Manifest(folder, FIELDS)
        self.manifest.update()
        self.kept = self._count()
        self.numbers = {kind: self._numbers(kind) for kind in kinds_for(self.hearts)}
        self.epoch, self.new = 0, dict.fromkeys(KINDS, 0)           # kept in this epoch
        self.under_way = dict.fromkeys(KINDS, 0)                    # drafts that may yet be kept
        self.refused_in_a_row, self._stuck, self._lock = 0, False, Lock()
        if "healthy" not in self.numbers:
            log("WARNING: no training case is free of scar, so no healthy wall is repainted and "
                "being repainted alone tells a scar; add scar-free cases if there are any.")

    def _numbers(self, kind: str) -> Iterator[int]:
        kept = [r.get("number", -1) for r in self.manifest.records if r["kind"] == kind]
        return count(max(kept, default=-1) + 1)

    def _ours(self) -> dict[str, list[dict]]:
        return ours(self.manifest.records, self.generator.hash, self.fold)

    def _count(self) -> dict[str, int]:
        """Cases of each kind that were ever kept; after the pool was deleted, since then."""
        return {kind: len(found) for kind, found in self._ours().items()}

    def begin_epoch(self, epoch: int) -> None:
        """A full pool may be renewed again."""
        with self._lock:
            if epoch > self.epoch:
                self.epoch, self.new = epoch, dict.fromkeys(KINDS, 0)

    @property
    def wanted(self) -> str | None:
        """The kind to draft next; None while the pool holds, or is about to, all that this epoch
        may bring."""
        kept, new = ({kind: n[kind] + self.under_way[kind] for kind in KINDS}
                     for n in (self.kept, self.new))
        kind = min(self.numbers, key=kept.get)
        full = kept[kind] >= self.injection.pool_cases
        return None if full and new[kind] >= self.injection.refresh_cases else kind

    def draft(self) -> Sample | None:
        """Draft the kind that is wanted and keep the sample if it was accepted; None where nothing
        is wanted. A full disk loses the sample, not the training."""
        with self._lock:
            self._look()
            kind = self.wanted
            if kind is None:
                return None
            number = next(self.numbers[kind])
            self.under_way[kind] += 1
        rng = np.random.default_rng([self.injection.seed, KINDS.index(kind), number, self.rank])
        sample = None
        try:
            sample = next(synthesize(self.fold, self.generator, self.prior, self.hearts, self.judge,
                                     self.qc, rng, kinds=[kind]))
        finally:
            with self._lock:
                self.under_way[kind] -= 1
                if sample is not None:
                    self._end(number, sample)
        return sample

    def _end(self, number: int, sample: Sample) -> None:
        if sample.accepted:
            self._keep(number, sample)
        self.refused_in_a_row = 0 if sample.accepted else self.refused_in_a_row + 1
        if self.refused_in_a_row == PATIENCE:
            self.log(f"WARNING: the quality control has refused {PATIENCE} samples in a row, the "
                     "last for: " + ", ".join(sorted({
                         name for verdict in sample.verdicts.values()
                         for name, check in verdict.checks.items() if not check.passed})) +
                     ". Training goes on with the pool as it is.")

    def _look(self) -> None:
        """See what others did to the pool."""
        if not self.manifest.update():
            self.log(f"WARNING: the pool {self.pool.folder} was deleted or changed by another "
                     "process; it is filled again.")
            self.kept = self._count()

    def _keep(self, number: int, sample: Sample) -> None:
        try:
            self.pool.add(sample.case, {**sample.record(self.generator.hash), "number": number})
            self._stuck = False
        except OSError as error:
            if not self._stuck:
                self.log(f"WARNING: the pool {self.pool.folder} cannot grow ({error}); training "
                         "goes on with the pool as it is. Free some space: it is tried again.")
            self._stuck = True
            return
        self.new[sample.kind] += 1
        self._look()
        served = self._ours()
        self.kept = {kind: len(found) for kind, found in served.items()}
        self.pool.remove([r["identifier"]
                          for r in served[sample.kind][:-self.injection.pool_cases]])
