"""Keeps the pool growing while nnU-Net trains: a refill between two epochs, in the main process.

The engine owns the generator, the judge and the pool of one training. It starts with what the pool
holds (nothing, unless the training goes on after an interruption), so training begins real-only and
the injection probability grows with the pool. The painter works without a judge; the inpainter uses
the one it was tuned with.
When nnU-Net trains on several GPUs, rank 0 fills the pool and the other ranks only read it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from nnunet_lgesynth.anatomy.priors import MEASURES
from nnunet_lgesynth.config import InjectionConfig, QCConfig
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.generator import load_generator
from nnunet_lgesynth.pool.injection import InjectedDataset, read_usage
from nnunet_lgesynth.pool.store import Manifest, Pool
from nnunet_lgesynth.pool.synthesize import (
    KINDS,
    Sample,
    kinds_for,
    prepare,
    synthesize,
)

__all__ = ["POOL_FOLDER", "Engine", "attach"]

POOL_FOLDER = "lgesynth_pool"
MAX_DRAFTS_PER_CASE = 5     # a refill that is always refused ends, and the log says so


def attach(generator: str, injection: InjectionConfig, plans: dict, configuration: str, fold,
           dataset_json: dict, preprocessed: Path, training, validation_identifiers: Sequence[str],
           output: Path, device: torch.device, log: Callable[[str], None], rank: int = 0,
           qc: QCConfig | None = None, fresh: bool = False
           ) -> tuple[Engine | None, InjectedDataset]:
    """What a trainer needs when its data loaders are made: the engine (rank 0 only, else None), and
    the training set that answers from the pool. `fresh`: a new training, not one that goes on, so
    the pool of an earlier one in the same folder is dropped."""
    opened = Fold.of_training(plans, configuration, fold, dataset_json, preprocessed,
                              training.identifiers, validation_identifiers)
    painter, judge = load_generator(generator, opened, device if rank == 0
                                    else torch.device("cpu"))
    folder = output / POOL_FOLDER
    if fresh and rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    engine = Engine(opened, painter, judge, injection, folder, log, qc) if rank == 0 else None
    if engine is not None and not engine.counts()["pool_scarred_cases"]:
        log("WARNING: the pool is empty; training starts real-only and the injection "
            "probability grows with the pool.")
    scarred = frozenset(i for i in opened.train
                        if np.isin(opened.read(i).labels, opened.info.roles.scars).any())
    return engine, InjectedDataset(
        training, opened.cases_folder(folder / "cases"), folder, scarred, painter.hash,
        injection.probability, injection.pool_cases, injection.seed)


class Engine:
    """Pool, generator and judge of one running training."""

    def __init__(self, fold: Fold, generator, judge, injection: InjectionConfig, folder: Path,
                 log: Callable[[str], None], qc: QCConfig | None = None):
        self.fold, self.generator, self.judge = fold, generator, judge
        self.injection, self.log = injection, log
        self.prior, self.hearts = prepare(fold, injection.prior)
        self.pool, self._manifest = Pool(folder, fold), Manifest(folder)
        self.qc = qc or QCConfig()
        self._drafts = {kind: self._stream(kind) for kind in kinds_for(self.hearts)}
        self._before = read_usage(folder)
        self._stuck = False
        self._forget_counts()
        if "healthy" not in self._drafts:
            log("WARNING: no training case is free of scar, so no healthy wall is repainted and "
                "being repainted alone tells a scar; add scar-free cases if there are any.")

    def _forget_counts(self) -> None:
        self.drafted, self.accepted = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        self.seconds = 0.0

    def _stream(self, kind: str) -> Iterator[tuple[int, Sample]]:
        """Endless numbered drafts of a kind, each from its number alone. They begin after the last
        one that the pool has kept, so an interrupted training draws what it would have drawn."""
        self._manifest.update()
        kept = [line.get("number", -1) for line in self._manifest.records if line["kind"] == kind]
        for number in count(max(kept, default=-1) + 1):
            rng = np.random.default_rng([self.injection.seed, KINDS.index(kind), number])
            yield number, next(synthesize(self.fold, self.generator, self.prior, self.hearts,
                                          self.judge, self.qc, rng, kinds=[kind]))

    def refill(self) -> None:
        """Draft until `cases_per_refill` scarred cases (and as many healthy ones) were accepted, or
        the pool is full. A disk that is full stops the refill, not the training."""
        begin = perf_counter()
        room = self.injection.pool_cases - self.counts()["pool_scarred_cases"]
        wanted = min(self.injection.cases_per_refill, room)
        missing = dict.fromkeys(self._drafts, wanted)
        left = dict.fromkeys(self._drafts, MAX_DRAFTS_PER_CASE * wanted)
        try:
            while kinds := [k for k in missing if missing[k] and left[k]]:
                for kind in kinds:      # in turn, so that a full disk leaves as many of each
                    left[kind] -= 1
                    missing[kind] -= self._keep(*next(self._drafts[kind]))
            self._stuck = False
        except OSError as error:
            if not self._stuck:
                self.log(f"WARNING: the pool {self.pool.folder} cannot grow ({error}); training "
                         "goes on with the pool as it is. Free some space: each epoch tries again.")
            self._stuck = True
        if any(missing.values()) and not self._stuck:
            self.log(f"WARNING: {MAX_DRAFTS_PER_CASE * wanted} drafts of a kind left the pool "
                     f"{missing} cases short of its refill; the quality control refuses most "
                     "samples of this generator.")
        self.seconds += perf_counter() - begin

    def _keep(self, number: int, sample: Sample) -> bool:
        """Count a draft, and add it to the pool if it was accepted; returns whether it was."""
        self.drafted[sample.kind] += len(sample.verdicts)
        self.accepted[sample.kind] += sample.passed_first
        if sample.accepted:
            self.pool.add(sample.case, {**sample.record(self.generator.hash), "number": number})
        return sample.accepted

    def epoch_row(self, refill: bool) -> dict:
        """What was served since the last call; then refill, and count that too.

        `drafted` and `accepted` count first drafts of slices with a scar: healthy wall, which
        passes more easily, would flatter the pass rate and is counted apart.
        """
        usage, before = read_usage(self.pool.folder), self._before
        self._before = usage
        patches, injected = usage.patches - before.patches, usage.injected - before.injected
        counts = {**self.counts(), **self.likeness()}
        ramp = min(1.0, counts["pool_scarred_cases"] / self.injection.pool_cases)
        self._forget_counts()
        if refill and counts["pool_scarred_cases"] < self.injection.pool_cases:
            self.refill()
        return {"probability": round(self.injection.probability * ramp, 4),
                "patches": patches, "injected_patches": injected,
                "injected_fraction": round(injected / max(1, patches), 4),
                "unique_slices_served": usage.unique_slices,
                "unique_cases_served": usage.unique_cases, **counts,
                "drafted": self.drafted["scar"], "accepted": self.accepted["scar"],
                "drafted_healthy": self.drafted["healthy"],
                "accepted_healthy": self.accepted["healthy"],
                "seconds_synthesis": round(self.seconds, 3)}

    def likeness(self) -> dict:
        """Means over the pool's scarred cases beside those over the training fold's real scars."""
        pool = [r["measured"] for r in self._records() if r.get("measured")]
        return {f"{whose}_{name}": round(float(np.mean(values)), 4) if values else None
                for name in MEASURES
                for whose, values in (("pool", [m[name] for m in pool]),
                                      ("real", [getattr(r, name) for r in self.prior.records]))}

    def _records(self) -> list[dict]:
        self._manifest.update()
        return [r for r in self._manifest.records
                if r["generator"] == self.generator.hash and r["source"] in self.fold.train]

    def counts(self) -> dict:
        """Size of the pool as this generator fills it."""
        records = self._records()
        by_kind = {k: [r for r in records if r["kind"] == k] for k in KINDS}
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
                f"{row['accepted']} of {row['drafted']} drafted scar slices accepted in "
                f"{row['seconds_synthesis']:.1f} s")
