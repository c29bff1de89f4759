"""The process that fills a pool while nnU-Net trains: spawned, of low priority, paid by the second.

Its budget is computing time: a share of what has passed on the cores that the training uses, and a
grace for its start. It drafts while it has credit and sleeps otherwise, so it falls behind rather
than slows the training. It ends with the training's process, whatever that one dies of; what it was
writing then is lost and nothing else (see `store`).

    to the process      two numbers in shared memory: the epoch, and seconds that earn no credit
    from the process    by a pipe: ("ready", facts), ("drafted", Tally), ("warm", None),
                        ("log", text), ("refused", a user's mistake), ("failed", text)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, process_time, sleep

import numpy as np
import psutil
import torch

from nnunet_lgesynth.anatomy.priors import MEASURES
from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.generator import load_found
from nnunet_lgesynth.pool.studio import Studio

__all__ = ["Budget", "Order", "Tally", "work"]

PAUSE = 0.2                  # seconds between two looks at the credit
MOST_CREDIT = 10.0           # seconds; what is not used lapses, or a long rest would end in a burst
NICENESS = 10                # of 19; where cores are scarce this still gets about its budget
DRAFTS_PER_WARM_CASE = 10    # of both kinds, then a warm-up that is always refused ends


@dataclass(frozen=True)
class Order:
    """What the process needs, in plain values."""

    fold: Fold
    generator: Path | None       # fold folder of the inpainter; None: the painter
    device: str
    injection: InjectionConfig
    qc: QCConfig
    pool: Path
    rank: int
    cores: int                   # that the training computes on
    parent: int                  # the training's process


@dataclass(frozen=True)
class Tally:
    """One draft of a sample."""

    kind: str
    drafted: int                 # slices
    accepted: int                # of them with their first draft
    seconds: float               # of computing, since the process began
    gpu: int                     # bytes that the process holds at most, 0 without a GPU


class Budget:
    """Seconds of computing that are left: `share` of those passed on `cores`, and `grace`, which
    is given once; of the rest no more than MOST_CREDIT is kept."""

    def __init__(self, share: float, cores: int, grace: float, spent=process_time,
                 clock=monotonic):
        self.rate = share * cores
        self._spent, self._clock = spent, clock
        self._earned, self._last = spent() + grace, clock()

    def forget(self, seconds: float) -> None:
        """Take back what so much time has earned."""
        self._earned -= self.rate * seconds

    @property
    def left(self) -> float:
        now, spent = self._clock(), self._spent()
        earned, self._last = self.rate * (now - self._last), now
        room = max(0.0, MOST_CREDIT - (self._earned - spent))
        self._earned += min(earned, room)
        return self._earned - spent


def work(order: Order, pipe: Connection, epoch, slept) -> None:
    """The process: make the studio, then draft within the budget until left alone or ended.
    `epoch` and `slept` are shared numbers, the training's alone to write."""
    _lower_priority()
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C reaches it too; the training decides
    torch.set_num_threads(1)                          # threads would wait for those of the training
    try:
        budget = Budget(order.injection.budget, order.cores, order.injection.grace)
        generator, judge = load_found(order.generator, order.fold, torch.device(order.device))
        studio = Studio(order.fold, generator, judge, order.injection, order.pool,
                        lambda text: pipe.send(("log", text)), order.qc, order.rank)
        studio.begin_epoch(epoch.value)
        pipe.send(("ready", {f"real_{name}": _mean([getattr(r, name) for r in studio.prior.records])
                             for name in MEASURES}))
        if _warm_up(studio, order.injection.warm_up, pipe):
            budget = Budget(order.injection.budget, order.cores, 0.0)
        pipe.send(("warm", None))
        _serve(studio, budget, order.parent, pipe, epoch, slept)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass                                          # the training has ended
    except UserError as error:
        with suppress(OSError):
            pipe.send(("refused", str(error)))
    except Exception as error:
        with suppress(OSError):
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
        raise


def _warm_up(studio: Studio, cases: int, pipe: Connection) -> bool:
    """Draft without a budget until so many scarred cases are there; whether there was need to."""
    begun = studio.kept["scar"] < cases
    for _ in range(DRAFTS_PER_WARM_CASE * cases):
        if studio.kept["scar"] >= cases:
            break
        _draft(studio, pipe)
    return begun


def _serve(studio: Studio, budget: Budget, parent: int, pipe: Connection, epoch, slept) -> None:
    forgotten = 0.0
    while _alive(parent):
        budget.forget(slept.value - forgotten)
        forgotten = slept.value
        studio.begin_epoch(epoch.value)
        if studio.wanted is not None and budget.left > 0:
            _draft(studio, pipe)
        else:
            sleep(PAUSE)


def _alive(parent: int) -> bool:
    """Whether the training's process still runs. Its pipe does not tell: forked workers hold that
    open. On Windows no process is handed on when its parent ends, but there are no forks either."""
    return os.getppid() == parent and multiprocessing.parent_process().is_alive()


def _draft(studio: Studio, pipe: Connection) -> None:
    sample = studio.draft()
    if sample is not None:
        gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else 0
        pipe.send(("drafted", Tally(sample.kind, len(sample.verdicts), sample.passed_first,
                                    process_time(), gpu)))


def _lower_priority() -> None:
    idle = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS)      # Windows has classes
    with suppress(psutil.Error, OSError):
        psutil.Process().nice(idle)


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
