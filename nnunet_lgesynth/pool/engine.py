"""Keeps the pool growing while nnU-Net trains, and costs the training's process next to nothing.

The engine starts the process that drafts (`background`), listens to it between two iterations
without ever waiting, and sums up what an epoch got. On an accelerator the inpainter and its judge
stay in the training's process and are taken on by a pass between two iterations (`server`); on a
CPU, and for the painter, all is done in the other process. Training begins with what the pool holds
(nothing, unless it goes on after an interruption), so real-only, and the injection probability
grows with the pool; only a `warm_up` is waited for.
If that process dies it is started again, a few times; the training goes on with the pool as it is.
Only what is wrong from the start (a damaged generator, no heart to paint into) ends the training.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep, time

import numpy as np
import psutil
import torch

from nnunet_lgesynth.anatomy.priors import MEASURES
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.pool.background import Order, Tally, work
from nnunet_lgesynth.pool.injection import FIELDS as READ
from nnunet_lgesynth.pool.injection import chance, follows_epochs, read_usage, tell_epoch
from nnunet_lgesynth.pool.server import Server
from nnunet_lgesynth.pool.store import Manifest
from nnunet_lgesynth.pool.studio import ours
from nnunet_lgesynth.pool.synthesize import KINDS

__all__ = ["Engine"]

RESTARTS = 3             # of the process, one an epoch
SILENCE = 600            # seconds without a word in which a warm-up is given up
FIELDS = (*READ, "slices", "measured")       # of a record, for the engine
MEGABYTE = 2 ** 20


class Engine:
    """The training's side of the process that fills its pool.

    Parameters
    ----------
    generator : hash of the generator; samples of others do not count.
    scarred : number of scarred training cases.
    server : runs the networks in this process, where they do not run in the other.
    epoch, epochs : with which the training begins, or goes on, and how many it has.
    """

    def __init__(self, order: Order, generator: str, scarred: int, log: Callable[[str], None],
                 epoch: int = 0, server: Server | None = None, epochs: int = 1):
        self.server, self.epochs = server, epochs
        self.order, self.generator, self.scarred, self.log = order, generator, scarred, log
        self.folder, self.injection = order.pool, order.injection
        self._manifest, self._before = Manifest(self.folder, FIELDS), read_usage(self.folder)
        self._real = {f"real_{name}": None for name in MEASURES}
        self._context = multiprocessing.get_context("spawn")
        self._epoch, self._slept = (self._context.RawValue(kind, value)
                                    for kind, value in (("q", epoch), ("d", 0.0)))
        self._starts, self._spent, self._ramps = 0, 0.0, True
        self._process = self._pipe = None
        self._forget_counts()
        if not self.counts()["pool_scarred_cases"] and not self.injection.warm_up:
            log("WARNING: the pool is empty; training starts real-only and the injection "
                "probability grows with the pool.")
        self._tell_epoch()
        self._start()
        self.seconds_waited = self._wait_until_warm() if self.injection.warm_up else 0.0

    def _forget_counts(self) -> None:
        self.drafted, self.accepted = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        self.seconds, self._since = 0.0, perf_counter()
        self._server_before = self.server.seconds if self.server else 0.0

    def _start(self) -> None:
        """Start the process; where even that fails, say so and go on without."""
        order = self.order if self._starts == 0 else dataclasses.replace(
            self.order, injection=dataclasses.replace(self.injection, warm_up=0))
        self._starts, self._spent, self._warm = self._starts + 1, 0.0, False
        if self.server is not None:
            self.server.clear()
        try:
            self._pipe, theirs = self._context.Pipe(duplex=False)
            self._process = self._context.Process(target=work, daemon=True, args=(
                order, theirs, self._epoch, self._slept, self.server and self.server.remote))
            self._process.start()
            theirs.close()
        except OSError as error:
            self._lose(f"could not be started ({error})")

    def _wait_until_warm(self) -> float:
        begun = heard = perf_counter()
        self.log(f"Waiting until the pool holds {self.injection.warm_up} scarred cases.")
        while not self._warm and self._pipe is not None:
            if self.listen():
                heard = perf_counter()
            elif perf_counter() - heard > SILENCE:
                self._lose(f"has said nothing for {SILENCE} s")
            if not self._serve(freely=True):
                sleep(0.05)
            if self.server is not None and self.server.paused:      # it has said why
                break
        if self.server is not None:
            self.server.earn_anew()
        return perf_counter() - begun

    def tend(self) -> None:
        """What there is to do after an iteration: hear the process, and take the networks on by a
        pass if they run here. Raises the `UserError` of a process that could not begin."""
        self.listen()
        self._serve()

    def _serve(self, freely: bool = False) -> bool:
        """Let the server take a pass on, if there is one and somebody to serve, within the budget
        or `freely`; whether it did."""
        if self.server is None or self._pipe is None:
            return False
        try:
            return self.server.step() if freely else self.server.tend()
        except Exception as error:        # of a network, whatever it is: the training goes on
            self._lose(f"failed ({type(error).__name__}: {error})")
            return False

    def listen(self) -> bool:
        """Hear what the process has to say, and whether that was anything; never waits. Raises the
        `UserError` of a process that could not begin."""
        heard, alive = False, self._process is not None and self._process.is_alive()
        try:
            while self._pipe is not None and self._pipe.poll():
                self._hear(*self._pipe.recv())
                heard = True
        except (EOFError, OSError):
            alive = False
        if self._pipe is not None and not alive:
            self._lose("has ended")
        return heard

    def _hear(self, what: str, told) -> None:
        if what == "refused" and self._starts == 1 and not self._spent:
            self.close()
            raise UserError(told)
        if what == "refused":
            self._lose(f"gave up ({told})")
        elif what == "drafted":
            self._count(told)
        elif what == "ready":
            self._real = told
        elif what == "warm":
            self._warm = True
        elif what == "failed":
            self._lose(f"failed ({told})")
        else:
            self.log(told)

    def _count(self, tally: Tally) -> None:
        self.drafted[tally.kind] += tally.drafted
        self.accepted[tally.kind] += tally.accepted
        self.seconds += tally.seconds - self._spent
        self._spent = tally.seconds

    def _lose(self, how: str) -> None:
        self.close()
        again = "it is started again after this epoch" if self._starts <= RESTARTS else \
            "it is not started again"
        self.log(f"WARNING: the process that paints scars {how}; training goes on with the pool as "
                 f"it is, {again}.")

    def close(self) -> None:
        """End the process at once; a case that it was writing is not in the pool."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is not None and process.pid is not None:
            process.kill()               # a stopped process would not hear of anything gentler
            process.join(10)

    def end(self) -> None:
        """End the process, and hold no network any more."""
        self.close()
        self.server = None

    def start_epoch(self, epoch: int) -> None:
        """Tell process and workers which epoch it is, and start the process again if it died."""
        self.listen()
        self._epoch.value = epoch
        if self.server is not None:
            self.server.begin_epoch()
        self._tell_epoch()
        if self._pipe is None and self._starts <= RESTARTS:
            self._start()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Within this the process rests, and earns no credit: for a measurement beside it."""
        begun = perf_counter()
        if self._process is None:
            raise RuntimeError("The process that paints has ended.")
        process = psutil.Process(self._process.pid)
        process.suspend()
        try:
            yield
        finally:
            rested = perf_counter() - begun
            self._slept.value += rested
            if self.server is not None:
                self.server.budget.forget(rested)
            process.resume()

    def _tell_epoch(self) -> None:
        if not follows_epochs(self.injection):
            return
        try:
            tell_epoch(self.folder, self._epoch.value)
            self._ramps = True
        except OSError as error:
            if self._ramps:
                self.log(f"WARNING: {self.folder} cannot be written ({error}); until it can, the "
                         "injection probability stays as it is.")
            self._ramps = False

    def epoch_row(self) -> dict:
        """What was served and drafted since the last call.

        `seconds_synthesis` is what the budget is kept with: computing of the process, or where
        networks run here, the time that this took from the training.
        `drafted` and `accepted` count first drafts of slices with a scar: healthy wall, which
        passes more easily, would flatter the pass rate and is counted apart.
        """
        self.listen()
        usage, before = read_usage(self.folder), self._before
        self._before = usage
        patches, injected = (max(0, now - then) for now, then in (   # less after a deleted pool
            (usage.patches, before.patches), (usage.injected, before.injected)))
        counts, elapsed = self.counts(), perf_counter() - self._since
        seconds = self.seconds if self.server is None else self.server.seconds - self._server_before
        row = {"probability": round(chance(self.injection, counts["pool_scarred_cases"],
                                           self.scarred, self._epoch.value, self.epochs), 4),
               "patches": patches, "injected_patches": injected,
               "injected_fraction": round(injected / patches, 4) if patches else 0.0,
               "unique_slices_served": usage.unique_slices,
               "unique_cases_served": usage.unique_cases, **counts, **self.likeness(),
               "drafted": self.drafted["scar"], "accepted": self.accepted["scar"],
               "drafted_healthy": self.drafted["healthy"],
               "accepted_healthy": self.accepted["healthy"],
               "seconds_synthesis": round(seconds, 3),
               "synthesis_share": round(seconds / elapsed / self.order.cores, 4),
               "seconds_process": round(self.seconds, 3),
               "seconds_waited": round(self.seconds_waited, 3), **self.memory()}
        self._forget_counts()
        self.seconds_waited = 0.0
        return row

    def likeness(self) -> dict:
        """Means over the pool's scarred cases beside those over the training fold's real scars."""
        pool = [r["measured"] for r in self._served()["scar"] if r.get("measured")]
        return self._real | {
            f"pool_{name}": round(float(np.mean([m[name] for m in pool])), 4) if pool else None
            for name in MEASURES}

    def _served(self) -> dict[str, list[dict]]:
        self._manifest.update()
        records = ours(self._manifest.records, self.generator, self.order.fold)
        return {kind: found[-self.injection.pool_cases:] for kind, found in records.items()}

    def counts(self) -> dict:
        """Size of the pool as it is served, and the mean age of its files in minutes."""
        served = self._served()
        ages = [age for found in served.values() for r in found
                if (age := _minutes_old(self.folder / "cases" / f"{r['identifier']}.pkl"))
                is not None]
        return {"pool_scarred_cases": len(served["scar"]),
                "pool_healthy_cases": len(served["healthy"]),
                "pool_scarred_slices": sum(len(r["slices"]) for r in served["scar"]),
                "pool_healthy_slices": sum(len(r["slices"]) for r in served["healthy"]),
                "pool_age_minutes": round(float(np.mean(ages)), 2) if ages else None}

    def memory(self) -> dict:
        """Resident memory of the training's and the drafting process in MiB; what PyTorch held on
        the GPU at most, and what of it is the inpainter's and its judge's weights."""
        mine = psutil.Process().memory_info().rss
        try:
            theirs = psutil.Process(self._process.pid).memory_info().rss
        except (AttributeError, psutil.Error):           # it is gone
            theirs = 0
        gpu = torch.cuda.max_memory_allocated() if self.order.device.startswith("cuda") else 0
        return {"memory_mb": mine // MEGABYTE, "memory_synthesis_mb": theirs // MEGABYTE,
                "memory_gpu_mb": gpu // MEGABYTE,
                "memory_gpu_synthesis_mb": self.server.bytes // MEGABYTE if gpu and self.server
                else 0}

    @staticmethod
    def describe(row: dict) -> str:
        """One line for nnU-Net's log."""
        return (f"LGE synthesis: injected fraction {row['injected_fraction']:.3f} of "
                f"{row['patches']} patches (p = {row['probability']:.2f}), pool "
                f"{row['pool_scarred_cases']} scarred + {row['pool_healthy_cases']} healthy cases, "
                f"{row['accepted']} of {row['drafted']} drafted scar slices accepted in "
                f"{row['seconds_synthesis']:.1f} s of computing ({row['synthesis_share']:.1%} of "
                f"the training's), memory {row['memory_mb']} + {row['memory_synthesis_mb']} MiB")


def _minutes_old(path: Path) -> float | None:
    try:
        return (time() - path.stat().st_mtime) / 60
    except OSError:
        return None
