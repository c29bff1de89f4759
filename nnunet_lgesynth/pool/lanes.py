"""How the drafting process has networks run by the training's: through shared memory, since neither
may wait for the other's pipe.

A lane carries one request and then its answer. The training's process looks at its lanes when it
has time and never waits; the drafting one waits for its answer, as long as the training lives. What
one of them was writing when it was killed is never read.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.generators.condition import Condition

__all__ = ["DRAFTS", "MAPS", "Lane", "Remote"]

CAPACITY = 2 ** 22           # bytes of one request; a larger one goes in parts
LOOK = 0.5                   # seconds between two looks at whether the training lives
DRAFTS, MAPS = "drafts", "maps"     # what is asked for


class Lane:
    """Room for one request and its answer; made by the training's process, passed on to the other
    when that is spawned. `context` is multiprocessing's."""

    def __init__(self, context, capacity: int = CAPACITY):
        self._block, self._size = context.RawArray("B", capacity), context.RawValue("q", 0)
        self._asked, self._answered = context.Semaphore(0), context.Semaphore(0)

    def holds(self, request: bytes) -> bool:
        return len(request) <= len(self._block)

    def ask(self, request: bytes, alive: Callable[[], bool]) -> Any:
        """The answer to a pickled request; EOFError once nobody is there to give it."""
        self._write(request)
        self._asked.release()
        while not self._answered.acquire(timeout=LOOK):
            if not alive():
                raise EOFError
        return self._read()

    def asked(self) -> Any:
        """What is asked, once; None where nothing is. Does not wait."""
        return self._read() if self._asked.acquire(block=False) else None

    def answer(self, value: Any) -> None:
        """Answer what was asked; it needs no more room than the question did."""
        self._write(pickle.dumps(value))
        self._answered.release()

    def clear(self) -> None:
        """Forget what a process that has ended had asked."""
        for semaphore in (self._asked, self._answered):
            while semaphore.acquire(block=False):
                pass

    def _write(self, data: bytes) -> None:
        memoryview(self._block).cast("B")[:len(data)] = data
        self._size.value = len(data)

    def _read(self) -> Any:
        return pickle.loads(memoryview(self._block).cast("B")[:self._size.value])


@dataclass(frozen=True)
class Remote:
    """What the drafting process is handed in place of a generator and its judge."""

    lanes: tuple[Lane, ...]
    hash: str                    # of the generator
    pixels: int
    mm: float
    feather_mm: float
    judge: str                   # hash of its weights

    def connect(self, alive: Callable[[], bool]) -> tuple[RemoteGenerator, RemoteJudge]:
        """Generator and judge for this process; several threads may use them, as many at once as
        there are lanes. `alive` tells whether the training still is."""
        asker = _Asker(self.lanes, alive)
        return RemoteGenerator(self, asker), RemoteJudge(self.judge, asker)


class _Asker:
    """Asks on whichever lane is free, and waits for the answer."""

    def __init__(self, lanes: Sequence[Lane], alive: Callable[[], bool]):
        self._alive, self._free = alive, SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def ask(self, what: str, items: Sequence) -> list:
        """One answer an item."""
        request, lane = pickle.dumps((what, list(items))), self._free.get()
        try:
            if lane.holds(request):
                return lane.ask(request, self._alive)
        finally:
            self._free.put(lane)
        if len(items) == 1:
            raise UserError(f"A slice takes {len(request)} bytes and no more than {CAPACITY} are "
                            "handed over at once; crop the images around the heart.")
        half = len(items) // 2
        return self.ask(what, items[:half]) + self.ask(what, items[half:])


class RemoteGenerator:
    """A generator whose networks run in the training's process; see `generators.paint.Painter`."""

    def __init__(self, remote: Remote, asker: _Asker):
        self.hash, self.pixels, self.mm = remote.hash, remote.pixels, remote.mm
        self.feather_mm, self._asker = remote.feather_mm, asker

    def drafts(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[np.ndarray]:
        """One normalised draft (P, P) float32 a condition."""
        unread = np.zeros((0, 0), np.float32)     # the feather, which is for pasting
        return self._asker.ask(DRAFTS, [(dataclasses.replace(condition, weight=unread), int(seed))
                                        for condition, seed in zip(conditions, seeds)])


class RemoteJudge:
    """A segmenter that runs in the training's process; see `judge.segmenter`."""

    def __init__(self, hash: str, asker: _Asker):
        self.hash, self._asker = hash, asker

    def predict(self, images: torch.Tensor, centre: tuple[float, float]) -> torch.Tensor:
        """Label values (B, Y, X) of images (B, C, Y, X), the patch around `centre`."""
        maps = self._asker.ask(MAPS, [(image, centre) for image in images.numpy()])
        return torch.from_numpy(np.stack(maps))
