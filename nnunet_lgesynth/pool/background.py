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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Lock
from time import monotonic, process_time, sleep

import numpy as np
import psutil
import torch

from nnunet_lgesynth.anatomy.priors import MEASURES
from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.generator import load_found
from nnunet_lgesynth.pool.lanes import Remote
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


class Budget:
    """Seconds of computing that are left: `share` of those passed on `cores`, and `grace`, which
    is given once; of the rest no more than `most` is kept."""

    def __init__(self, share: float, cores: int, grace: float, spent=process_time,
                 clock=monotonic, most: float = MOST_CREDIT):
        self.rate, self._most = share * cores, most
        self._spent, self._clock = spent, clock
        self._earned, self._last = spent() + grace, clock()

    def forget(self, seconds: float) -> None:
        """Take back what so much time has earned."""
        self._earned -= self.rate * seconds

    @property
    def left(self) -> float:
        now, spent = self._clock(), self._spent()
        earned, self._last = self.rate * (now - self._last), now
        room = max(0.0, self._most - (self._earned - spent))
        self._earned += min(earned, room)
        return self._earned - spent


def work(order: Order, pipe: Connection, epoch, slept, remote: Remote | None = None) -> None:
    """The process: make the studio, then draft within the budget until left alone or ended.

    `epoch` and `slept` are shared numbers, the training's alone to write. With `remote` the
    networks run in the training's process, which keeps to the budget by itself; here several
    lesions are under way then.
    """
    _lower_priority()
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C reaches it too; the training decides
    torch.set_num_threads(1)                          # threads would wait for those of the training
    lock = Lock()

    def tell(what: str, told) -> None:
        with lock:
            pipe.send((what, told))

    try:
        share, grace = order.injection.budget, order.injection.grace
        budget = Budget(share, order.cores, grace)
        generator, judge = load_found(order.generator, order.fold, torch.device(order.device)) \
            if remote is None else remote.connect(lambda: _alive(order.parent))
        studio = Studio(order.fold, generator, judge, order.injection, order.pool,
                        lambda text: tell("log", text), order.qc, order.rank)
        studio.begin_epoch(epoch.value)
        tell("ready", {f"real_{name}": _mean([getattr(r, name) for r in studio.prior.records])
                       for name in MEASURES})
        lanes = order.cores if remote is None else len(remote.lanes)      # the training waits
        if _warm_up(studio, order.injection.warm_up, lanes, order.parent, tell):
            budget = Budget(share, order.cores, 0.0)
        tell("warm", None)
        if remote is None:
            _serve(studio, budget, order.parent, tell, epoch, slept)
        else:
            _serve_lanes(studio, lanes, order.parent, tell, epoch)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass                                          # the training has ended
    except UserError as error:
        with suppress(OSError):
            tell("refused", str(error))
    except Exception as error:
        with suppress(OSError):
            tell("failed", f"{type(error).__name__}: {error}")
        raise


def _warm_up(studio: Studio, cases: int, lanes: int, parent: int, tell: Callable) -> bool:
    """Draft without a budget until so many scarred cases are there; whether there was need to. Each
    lane computes on one core, as later drafts do: a case must not depend on when it was made."""
    begun = studio.kept["scar"] < cases
    drafts = iter(range(DRAFTS_PER_WARM_CASE * cases))

    def draft_on(over: Event) -> None:
        while (studio.kept["scar"] < cases and not over.is_set() and _alive(parent)
               and next(drafts, None) is not None):
            if not _draft(studio, tell):
                over.wait(PAUSE)                      # the other lanes draft all that is wanted

    if begun:
        _in_lanes(lanes, draft_on)
    return begun


def _in_lanes(lanes: int, draft_on: Callable[[Event], None]) -> None:
    """Run it in so many threads until all have ended; where one fails, the others are told."""
    over = Event()
    with ThreadPoolExecutor(lanes) as threads:
        drafting = [threads.submit(draft_on, over) for _ in range(lanes)]
        try:
            for one in as_completed(drafting):
                one.result()
        finally:
            over.set()


def _serve(studio: Studio, budget: Budget, parent: int, tell: Callable, epoch, slept) -> None:
    forgotten = 0.0
    while _alive(parent):
        budget.forget(slept.value - forgotten)
        forgotten = slept.value
        studio.begin_epoch(epoch.value)
        if budget.left <= 0 or not _draft(studio, tell):
            sleep(PAUSE)


def _serve_lanes(studio: Studio, lanes: int, parent: int, tell: Callable, epoch) -> None:
    """As many drafts at once as there are lanes, each waits for the training most of the time."""
    def draft_on(over: Event) -> None:
        while not over.is_set() and _alive(parent):
            studio.begin_epoch(epoch.value)
            if not _draft(studio, tell):
                over.wait(PAUSE)

    _in_lanes(lanes, draft_on)


def _alive(parent: int) -> bool:
    """Whether the training's process still runs. Its pipe does not tell: forked workers hold that
    open. On Windows no process is handed on when its parent ends, but there are no forks either."""
    return os.getppid() == parent and multiprocessing.parent_process().is_alive()


def _draft(studio: Studio, tell: Callable) -> bool:
    """Draft once; whether there was anything to draft."""
    sample = studio.draft()
    if sample is not None:
        tell("drafted", Tally(sample.kind, len(sample.verdicts), sample.passed_first,
                              process_time()))
    return sample is not None


def _lower_priority() -> None:
    idle = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS)      # Windows has classes
    with suppress(psutil.Error, OSError):
        psutil.Process().nice(idle)


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
