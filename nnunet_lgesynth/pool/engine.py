"""Keeps the pool growing while nnU-Net trains: a refill between two epochs, in the main process.

The engine owns the generator, the judge and the pool of one training. It starts with whatever the
pool holds (nothing, at first), so training begins real-only and the injection probability grows
with the pool. The painter works without a judge; the inpainter uses the one it was tuned with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from nnunet_lgesynth.config import InjectionConfig, QCConfig
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.generator import load_generator
from nnunet_lgesynth.pool.injection import (
    FIRST_SAMPLE,
    INJECTED,
    PATCHES,
    InjectedDataset,
    read_usage,
)
from nnunet_lgesynth.pool.store import Pool, read_manifest
from nnunet_lgesynth.pool.synthesize import measure_prior, synthesize

__all__ = ["Engine"]

MAX_DRAFTS_PER_CASE = 5     # a refill that is always refused ends, and the log says so


class Engine:
    """Pool, generator and judge of one running training."""

    def __init__(self, fold: Fold, generator, judge, injection: InjectionConfig, folder: Path,
                 log: Callable[[str], None]):
        self.fold, self.generator, self.judge = fold, generator, judge
        self.injection, self.log = injection, log
        self.pool = Pool(folder, fold)
        self.qc = QCConfig()
        self.prior, self.hearts = measure_prior(fold, injection.prior)
        start = len(read_manifest(folder))
        self._drafts = synthesize(fold, generator, self.prior, self.hearts, judge, self.qc,
                                  np.random.default_rng([injection.seed, start]))
        self._before = read_usage(folder)
        self.drafted = self.accepted = 0
        self.seconds = 0.0

    @classmethod
    def start(cls, generator: str, injection: InjectionConfig, plans: dict, configuration: str,
              fold, dataset_json: dict, preprocessed: Path, training,
              validation_identifiers: Sequence[str], output: Path, device: torch.device,
              log: Callable[[str], None]) -> Engine:
        """The engine of a trainer, from what it holds when its data loaders are made."""
        opened = Fold.of_training(plans, configuration, fold, dataset_json, preprocessed,
                                  training.identifiers, validation_identifiers)
        painter, judge = load_generator(generator, opened, device)
        engine = cls(opened, painter, judge, injection, output / "lgesynth_pool", log)
        if not engine.counts()["pool_scarred_cases"]:
            log("WARNING: the pool is empty; training starts real-only and the injection "
                "probability grows with the pool.")
        return engine

    def injected(self, training) -> InjectedDataset:
        """The training set that answers from the pool."""
        roles = self.fold.info.roles
        scarred = frozenset(i for i in self.fold.train
                            if np.isin(self.fold.read(i).labels, roles.scars).any())
        return InjectedDataset(training, self.fold.cases_folder(self.pool.cases),
                               self.pool.folder, scarred, self.generator.hash,
                               self.injection.probability, self.injection.pool_cases,
                               self.injection.seed)

    def refill(self) -> None:
        """Draft until `cases_per_refill` scarred cases (and as many healthy ones) were accepted."""
        begin = perf_counter()
        room = self.injection.pool_cases - self.counts()["pool_scarred_cases"]
        wanted = dict.fromkeys(("scar", "healthy"), min(self.injection.cases_per_refill, room))
        limit = MAX_DRAFTS_PER_CASE * sum(wanted.values())
        for sample in islice(self._drafts, limit):
            if not any(wanted.values()):
                break
            self.drafted += len(sample.verdicts)
            self.accepted += len(sample.slices)
            if sample.accepted and wanted[sample.kind]:
                self.pool.add(sample.case, sample.record(self.generator.hash))
                wanted[sample.kind] -= 1
        if any(wanted.values()):
            self.log(f"WARNING: {limit} drafts left the pool {wanted} cases short of its refill; "
                     "the judge refuses most samples of this generator.")
        self.seconds += perf_counter() - begin

    def epoch_row(self, refill: bool) -> dict:
        """What was served since the last call; then refill, and count that too."""
        usage = read_usage(self.pool.folder)
        served = usage - self._before
        self._before = usage
        counts = self.counts()
        ramp = min(1.0, counts["pool_scarred_cases"] / self.injection.pool_cases)
        self.drafted = self.accepted = 0
        self.seconds = 0.0
        if refill and counts["pool_scarred_cases"] < self.injection.pool_cases:
            self.refill()
        return {"probability": round(self.injection.probability * ramp, 4),
                "patches": int(served[PATCHES]), "injected_patches": int(served[INJECTED]),
                "injected_fraction": round(served[INJECTED] / max(1, served[PATCHES]), 4),
                "unique_cases_served": int((usage[FIRST_SAMPLE:] > 0).sum()), **counts,
                "drafted": self.drafted, "accepted": self.accepted,
                "seconds_synthesis": round(self.seconds, 3)}

    def counts(self) -> dict:
        """Size of the pool as this generator fills it."""
        records = [r for r in read_manifest(self.pool.folder)
                   if r["generator"] == self.generator.hash]
        by_kind = {k: [r for r in records if r["kind"] == k] for k in ("scar", "healthy")}
        return {"pool_scarred_cases": len(by_kind["scar"]),
                "pool_healthy_cases": len(by_kind["healthy"]),
                "pool_scarred_slices": sum(len(r["slices"]) for r in by_kind["scar"]),
                "pool_healthy_slices": sum(len(r["slices"]) for r in by_kind["healthy"])}

    @staticmethod
    def describe(row: dict) -> str:
        """One line for nnU-Net's log."""
        return (f"LGE synthesis: injected fraction {row['injected_fraction']:.3f} of "
                f"{row['patches']} patches (p = {row['probability']:.2f}), pool "
                f"{row['pool_scarred_cases']} scarred + {row['pool_healthy_cases']} healthy cases, "
                f"{row['accepted']} of {row['drafted']} drafted slices accepted in "
                f"{row['seconds_synthesis']:.1f} s")
