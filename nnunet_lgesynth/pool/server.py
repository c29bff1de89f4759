"""Runs the inpainter and its judge in the training's process, one network pass at a time.

On an accelerator the drafting process computes nothing there: a second process on the device would
hold a context of its own, and the device would take turns between the two. It asks instead (see
`lanes`), for the drafts of a lesion and for the judge's label maps, and between two iterations the
training takes one pass on, where the budget allows: a share of the time that has passed. What
several lesions ask for is drafted in one batch.

Where the device has no memory left for a pass, batches are halved; where that does not help,
synthesis pauses until the next epoch. The training itself never lacks what a pass has freed.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Sequence
from time import perf_counter

import numpy as np
import torch

from nnunet_lgesynth.anatomy.caption import NO_ENHANCEMENT
from nnunet_lgesynth.anatomy.intensities import Intensities
from nnunet_lgesynth.anatomy.scar import SCAR
from nnunet_lgesynth.generators.condition import Condition, Crop
from nnunet_lgesynth.pool.background import Budget
from nnunet_lgesynth.pool.lanes import DRAFTS, MAPS, Lane, Remote

__all__ = ["Server"]

LANES = 4                # lesions under way; their drafts fill a batch
MOST_CREDIT = 1.0        # seconds; after a validation iterations would else be late for long


class Server:
    """The training's side; `tend` it after each iteration.

    Parameters
    ----------
    generator, judge : on the training's device, see `generators.inpaint.sample.Inpainter` and
        `judge.segmenter.Segmenter`.
    share : of the time that has passed.
    """

    def __init__(self, generator, judge, share: float, log: Callable[[str], None]):
        context = multiprocessing.get_context("spawn")
        self.lanes = tuple(Lane(context) for _ in range(LANES))
        self.remote = Remote(self.lanes, generator.hash, generator.pixels, generator.mm,
                             generator.feather_mm, judge.hash)
        self.generator, self.judge, self.share, self.log = generator, judge, share, log
        self.device = generator.networks.device
        self.batch, self.seconds, self.paused = generator.batch_size, 0.0, False
        self._told: set[int] = set()             # batch sizes whose want of memory was told
        self.clear()
        self._rehearse()

    def _rehearse(self) -> None:
        """Run all networks once: their first pass on a GPU takes long, and would make an iteration
        late."""
        side, rows = self.generator.pixels, self.judge.patch_size
        blank = np.zeros((side, side), np.float32)
        self.generator.drafts([Condition(
            Crop((0.0, 0.0), (1.0, 1.0), side), Intensities(0.0, 1.0), blank,
            np.full((side, side), SCAR, np.uint8), blank == 0, 1.0, 0.0, NO_ENHANCEMENT, blank)],
            [0])
        self._maps(np.zeros((1, self.judge.channels, *rows), np.float32), [(0.0, 0.0)])

    def clear(self) -> None:
        """Forget all requests and what was spent: the process is started (again)."""
        self._pending: dict[str, deque] = {DRAFTS: deque(), MAPS: deque()}
        self._served: list[tuple[Lane, list]] = []        # what `_passes` will answer
        self._passes: Generator | None = None
        for lane in self.lanes:
            lane.clear()
        self.earn_anew()

    def earn_anew(self) -> None:
        """From now on the budget counts, whatever was spent before."""
        self.budget = Budget(self.share, 1, 0.0, spent=lambda: self.seconds, most=MOST_CREDIT)

    def tend(self) -> bool:
        """One pass, if there is credit for it and anything to do; whether there was."""
        return self.budget.left > 0 and self.step()

    def step(self) -> bool:
        """One pass, and whether there was any to do; does not wait for requests."""
        begun, lacking = perf_counter(), False
        if self.paused or not self._at_work():
            return False
        try:
            next(self._passes)
        except StopIteration:
            self._passes = None
        except torch.OutOfMemoryError:
            lacking = True               # mended below, where what the pass had made is gone
        if lacking:
            self._do_with_less()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)      # else the next iteration pays for it unseen
        self.seconds += perf_counter() - begun
        return True

    def hear(self) -> None:
        """Take down what is asked for; does not wait."""
        for lane in self.lanes:
            request = lane.asked()
            if request is not None:
                what, items = request
                self._pending[what].append((lane, items))

    def _at_work(self) -> bool:
        """Begin with what is asked for, unless something is under way already; whether there is
        anything to do."""
        self.hear()
        if self._passes is None:
            maps, drafts = self._pending[MAPS], self._pending[DRAFTS]
            if maps:                                       # first: they end a lesion
                self._begin(maps, self._judging(), most=1)
            elif drafts:
                self._begin(drafts, self._drafting(), most=self.batch)
        return self._passes is not None

    def _begin(self, queue: deque, passes: Generator, most: int) -> None:
        """Serve the first in the queue, and the next ones as long as they make `most` items."""
        self._queue, self._passes, self._served = queue, passes, [queue.popleft()]
        while queue and sum(len(i) for _, i in (*self._served, queue[0])) <= most:
            self._served.append(queue.popleft())

    def _drafting(self) -> Generator:
        items = [item for _, items in self._served for item in items]
        drafts = yield from self.generator.drafting(*zip(*items), batch_size=self.batch)
        for lane, items in self._served:
            lane.answer(drafts[:len(items)])
            drafts = drafts[len(items):]

    def _judging(self) -> Generator:
        [(lane, items)], maps = self._served, []
        for first in range(0, len(items), self.batch):
            if first:
                yield
            images, centres = zip(*items[first:first + self.batch])
            maps.extend(self._maps(np.stack(images), centres))
        lane.answer(maps)

    def _maps(self, images: np.ndarray, centres: Sequence) -> np.ndarray:
        """The judge's label maps; in batches of one size, since a GPU has to try each first."""
        chosen = [*range(len(images)), *[0] * (self.batch - len(images))]
        found = self.judge.predict(torch.from_numpy(images[chosen]),
                                   torch.tensor([centres[k] for k in chosen]))
        return found[:len(images)].cpu().numpy()

    def _do_with_less(self) -> None:
        """Shrink the batch or pause, and keep what was asked for later."""
        self._queue.extendleft(reversed(self._served))
        self._passes = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        lacked, self.paused = self.batch, self.batch == 1
        self.batch = max(1, self.batch // 2)
        if lacked not in self._told:
            self._told.add(lacked)
            self.log("WARNING: the device has no memory left to paint scars; " + (
                "synthesis pauses until the next epoch, training goes on with the pool as it is."
                if self.paused else f"they are painted in batches of {self.batch}."))

    def begin_epoch(self) -> None:
        """More may be tried again: what lacked memory may have been another program's peak."""
        self.paused = False
        if self._passes is None:
            self.batch = min(2 * self.batch, self.generator.batch_size)

    @property
    def bytes(self) -> int:
        """That the networks hold on the device."""
        networks = (*self.generator.networks.modules.values(), self.judge.network)
        return sum(p.numel() * p.element_size() for network in networks
                   for p in (*network.parameters(), *network.buffers()))
