"""The training set with a chance p of answering with a pool case.

nnU-Net's loader asks `load_case(identifier)`; a scarred patient is answered by a synthetic scarred
case, a scar-free one by a healthy repainting, so the real share of scar-free cases is kept whatever
p is. The answer brings its own `class_locations`; nnU-Net's oversampling and augmentation follow
unchanged. `identifiers` stay the real ones.

Of each kind the newest `pool_cases` are served, with a probability that grows with their number, so
that few samples are not learnt by heart (`chance`).
Workers are processes: nothing here holds a GPU, a lock or a generator made before the fork, and
diffusers is not imported. What was served is counted in small files that the trainer sums up; the
epoch, which a ramp or fade of the probability asks for, is told the same way.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

from nnunet_lgesynth.config import InjectionConfig
from nnunet_lgesynth.pool.store import USAGE_PREFIX, Manifest

__all__ = ["InjectedDataset", "Usage", "chance", "follows_epochs", "read_usage", "tell_epoch"]

PATCHES, INJECTED, FIRST_SAMPLE = 0, 1, 2     # slots of a usage file
USAGE_SLOTS = 2 ** 15
SLICE_BITS = 63      # one bit a slice; a stack of more slices counts some of them as one
TRIES = 3            # a pool file can vanish between manifest and opening; then draw another
EPOCH_FILE = "epoch.txt"
FIELDS = ("identifier", "kind", "source", "generator", "changed")     # of a record, for a reader


def chance(injection: InjectionConfig, samples: int, real: int, epoch: int, epochs: int) -> float:
    """The probability that a case of a kind is answered by one of so many samples of that kind,
    beside so many real cases, in an epoch of `epochs`: p, less while the pool is not full, the ramp
    not over or the fade begun, and never so much that a sample is served more than `ratio_cap`
    times as often as a real case."""
    if not samples:
        return 0.0
    samples = min(samples, injection.pool_cases)
    ramp = min(1.0, (epoch + 1) / max(injection.ramp_epochs, 1))
    if injection.fade is not None:
        ramp *= min(1.0, max(0.0, epochs - epoch) / (injection.fade * epochs))
    weight = injection.ratio_cap * samples
    return min(injection.probability * samples / injection.pool_cases * ramp,
               weight / (real + weight))


def follows_epochs(injection: InjectionConfig) -> bool:
    """Whether the probability depends on the epoch, which the workers must be told then."""
    return bool(injection.ramp_epochs) or injection.fade is not None


def tell_epoch(pool: Path, epoch: int) -> None:
    """Tell the workers which epoch it is; OSError where that cannot be written. In place, since
    Windows replaces no file that a worker is reading; a reader of half a number keeps its own."""
    pool.mkdir(parents=True, exist_ok=True)
    (pool / EPOCH_FILE).write_text(f"{epoch}\n")


def _read_epoch(pool: Path, known: int) -> int:
    try:
        text = (pool / EPOCH_FILE).read_text()
        return int(text) if text.endswith("\n") else known
    except (OSError, ValueError):
        return known


class InjectedDataset:
    """Wraps an nnU-Net dataset; see the module text.

    Parameters
    ----------
    dataset : nnU-Net's training dataset.
    pool_cases : nnU-Net dataset object over the pool's cases folder.
    pool : the pool's folder.
    scarred : identifiers of the training cases that hold scar.
    generator : hash; samples of other generators are not served.
    epoch : with which the training begins, or goes on, of `epochs`.
    """

    def __init__(self, dataset, pool_cases, pool: Path, scarred: frozenset[str], generator: str,
                 injection: InjectionConfig, epoch: int = 0, epochs: int = 1):
        self.dataset, self.pool_cases, self.pool = dataset, pool_cases, Path(pool)
        self.scarred, self.generator, self.injection = scarred, generator, injection
        self.begun, self.epochs = epoch, epochs
        self.real = {"scar": len(scarred), "healthy": len(dataset.identifiers) - len(scarred)}
        self.identifiers = dataset.identifiers
        self.sources = frozenset(dataset.identifiers)   # an older split's may be validated on now
        self.source_folder = dataset.source_folder
        self._forget()

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in (
            "_owner", "_rng", "_usage", "_manifest", "_sorted", "_epoch", "_records", "_sound")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._owner = self._rng = self._usage = None
        self._manifest, self._sorted, self._epoch = Manifest(self.pool, FIELDS), 0, 0
        self._records: dict[str, list[tuple[int, dict]]] = {}
        self._sound: set[str] = set()

    def __getitem__(self, identifier):
        return self.load_case(identifier)

    def load_case(self, identifier):
        """nnU-Net's (data, seg, seg of the previous stage, properties), real or synthetic."""
        self._prepare()
        self._usage[PATCHES] += 1
        kind = "scar" if identifier in self.scarred else "healthy"
        newest = self._records.get(kind)
        if newest and self._rng.uniform() < self.probability(kind):
            for _ in range(TRIES):
                number, record = newest[self._rng.integers(len(newest))]
                case = self._read(record["identifier"])
                if case is not None:
                    data, seg, _, properties = case
                    return self._watched(data, number, record), seg, None, properties
        return self.dataset.load_case(identifier)

    def _read(self, identifier: str):
        """A pool case, None where it is gone or damaged. Files are mapped and fail but where they
        are damaged, in the middle of a batch; so each is read in whole before it is first served.
        """
        try:
            case = self.pool_cases.load_case(identifier)
            if identifier not in self._sound:
                image, labels = case[0][:], case[1][:]
                if image.shape[1:] != labels.shape[1:] or not np.isfinite(image).all():
                    return None
                self._sound.add(identifier)
        except Exception:              # whatever a damaged file gives: training goes on
            return None
        return case

    def probability(self, kind: str = "scar") -> float:
        """The probability now that a case of this kind is answered from the pool."""
        if follows_epochs(self.injection):
            self._epoch = _read_epoch(self.pool, self._epoch)
        return chance(self.injection, len(self._records.get(kind, ())), self.real[kind],
                      self._epoch, self.epochs)

    def _prepare(self) -> None:
        if self._owner != os.getpid():      # in the worker: a generator from before the fork would
            self._owner = os.getpid()       # draw the same in every worker
            seed = self.injection.seed
            alone = multiprocessing.parent_process() is None
            draw = [seed, self.begun]         # a training that goes on draws anew, not once more
            self._rng = np.random.default_rng(draw if alone else [*draw, self._owner])
            self._usage = _usage_counters(self.pool / "tmp")
        self.refresh()

    def refresh(self) -> None:
        """Read what the manifest has got since."""
        if not self._manifest.update():
            self._records, self._sorted = {}, 0
            if self._usage is not None:        # its file has gone with the pool
                self._usage = _usage_counters(self.pool / "tmp")
        for number, record in enumerate(self._manifest.records[self._sorted:], self._sorted):
            if record["generator"] == self.generator and record["source"] in self.sources:
                self._records.setdefault(record["kind"], []).append((number, record))
        for records in self._records.values():
            del records[:-self.injection.pool_cases]
        self._sorted = len(self._manifest.records)

    def _watched(self, data, number: int, record: dict) -> _Watched:
        def touched(window: list[tuple[int, int]]) -> None:
            bits = 0
            for z, (top, bottom, left, right) in record["changed"].items():
                box = ((int(z), int(z) + 1), (top, bottom), (left, right))
                if all(low < b and high > a for (a, b), (low, high) in zip(window[1:], box)):
                    bits |= 1 << int(z) % SLICE_BITS
            if bits:
                self._usage[INJECTED] += 1
                self._usage[min(FIRST_SAMPLE + number, USAGE_SLOTS - 1)] |= bits
        return _Watched(data, touched)


class _Watched:
    """An image array (C, Z, Y, X) that reports which window of it was cut out."""

    def __init__(self, data, touched):
        self._data, self._touched = data, touched
        self.shape, self.dtype, self.ndim = data.shape, data.dtype, len(data.shape)

    def __getitem__(self, window):
        cut = self._data[window]
        along = window if isinstance(window, tuple) else (window,)
        along = (*along, *[slice(None)] * (self.ndim - len(along)))
        self._touched([w.indices(n)[:2] if isinstance(w, slice) else (w, w + 1)
                       for w, n in zip(along, self.shape)])
        return cut


@dataclass(frozen=True)
class Usage:
    """What all workers served so far; `slices` has a bit a served slice for each manifest line."""

    patches: int
    injected: int             # patches that were cut through a changed region
    slices: np.ndarray        # (N,) int64

    @property
    def unique_cases(self) -> int:
        return int((self.slices != 0).sum())

    @property
    def unique_slices(self) -> int:
        return sum(int(bits).bit_count() for bits in self.slices)


def read_usage(pool: str | Path) -> Usage:
    """Usage of a pool over all workers, those of earlier parts of the training included."""
    total = np.zeros(USAGE_SLOTS, np.int64)
    for path in (Path(pool) / "tmp").glob(f"{USAGE_PREFIX}*.bin"):
        try:
            counts = np.fromfile(path, np.int64, USAGE_SLOTS)
        except OSError:                          # deleted meanwhile
            continue
        if len(counts) == USAGE_SLOTS:           # else a worker is just making it
            total[:FIRST_SAMPLE] += counts[:FIRST_SAMPLE]
            total[FIRST_SAMPLE:] |= counts[FIRST_SAMPLE:]
    return Usage(int(total[PATCHES]), int(total[INJECTED]), total[FIRST_SAMPLE:])


def _usage_counters(folder: Path) -> np.ndarray:
    """This process's counters, (USAGE_SLOTS,) int64, mapped to a file of their own.

    The file is written in full before it is mapped: a hole in it would end the process with a bus
    error once the disk is full. Where it cannot be written, this process goes uncounted.
    """
    path = folder / f"{USAGE_PREFIX}{os.getpid()}_{uuid4().hex[:8]}.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(8 * USAGE_SLOTS))
        return np.memmap(path, np.int64, "r+", shape=(USAGE_SLOTS,))
    except OSError:
        return np.zeros(USAGE_SLOTS, np.int64)
