"""The training set with a chance p of answering with a pool case.

nnU-Net's loader asks `load_case(identifier)`; a scarred patient is answered by a synthetic scarred
case, a scar-free one by a healthy repainting, so the real share of scar-free cases is kept whatever
p is. The answer brings its own `class_locations`; nnU-Net's oversampling and augmentation follow
unchanged. `identifiers` stay the real ones.

Workers are processes: nothing here holds a GPU, a lock or a generator made before the fork, and
diffusers is not imported. What was served is counted in small files that the trainer sums up.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np

from nnunet_lgesynth.pool.store import read_manifest

__all__ = ["InjectedDataset", "read_usage"]

PATCHES, INJECTED, FIRST_SAMPLE = 0, 1, 2     # slots of a usage file
USAGE_SLOTS = 2 ** 16
TRIES = 3            # a pool file can vanish between manifest and opening; then draw another


class InjectedDataset:
    """Wraps an nnU-Net dataset; see the module text.

    Parameters
    ----------
    dataset : nnU-Net's training dataset.
    pool_cases : nnU-Net dataset object over the pool's cases folder.
    pool : the pool's folder.
    scarred : identifiers of the training cases that hold scar.
    generator : hash; samples of other generators are not served.
    probability : p once `full` scarred samples are there; proportionally less before.
    """

    def __init__(self, dataset, pool_cases, pool: Path, scarred: frozenset[str], generator: str,
                 probability: float, full: int, seed: int):
        self.dataset, self.pool_cases, self.pool = dataset, pool_cases, Path(pool)
        self.scarred, self.generator = scarred, generator
        self.probability, self.full, self.seed = probability, full, seed
        self.identifiers = dataset.identifiers
        self.source_folder = dataset.source_folder
        self._rng = self._usage = self._stamp = None
        self._records: dict[str, list[tuple[int, dict]]] = {}

    def __getstate__(self):
        return {**self.__dict__, "_rng": None, "_usage": None, "_stamp": None, "_records": {}}

    def __getitem__(self, identifier):
        return self.load_case(identifier)

    def load_case(self, identifier):
        """nnU-Net's (data, seg, seg of the previous stage, properties), real or synthetic."""
        self._prepare()
        self._usage[PATCHES] += 1
        candidates = self._records["scar" if identifier in self.scarred else "healthy"]
        chance = self.probability * self.ramp
        if candidates and self._rng.uniform() < chance:
            for _ in range(TRIES):
                number, record = candidates[self._rng.integers(len(candidates))]
                try:
                    data, seg, _, properties = self.pool_cases.load_case(record["identifier"])
                except (FileNotFoundError, RuntimeError, OSError):
                    continue
                return self._watched(data, number, record), seg, None, properties
        return self.dataset.load_case(identifier)

    @property
    def ramp(self) -> float:
        """Share of the full probability, from the number of scarred samples."""
        return min(1.0, len(self._records.get("scar", ())) / self.full)

    def _prepare(self) -> None:
        if self._rng is None:       # in the worker: one made before the fork would repeat itself
            alone = multiprocessing.parent_process() is None
            self._rng = np.random.default_rng([self.seed] if alone else [self.seed, os.getpid()])
            path = self.pool / "tmp" / f"usage_{os.getpid()}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._usage = np.memmap(path, np.int64, "w+", shape=(USAGE_SLOTS,))
        self.refresh()

    def refresh(self) -> None:
        """Read the manifest again if it has grown."""
        try:
            state = os.stat(self.pool / "manifest.jsonl")
            stamp = (state.st_mtime_ns, state.st_size)
        except FileNotFoundError:
            stamp = None
        if stamp == self._stamp and self._records:
            return
        self._stamp, self._records = stamp, {"scar": [], "healthy": []}
        for number, record in enumerate(read_manifest(self.pool)):
            if record["generator"] == self.generator:
                self._records[record["kind"]].append((number, record))

    def _watched(self, data, number: int, record: dict) -> _Watched:
        def touched(slices) -> None:
            if any(slices[1].start <= int(z) < slices[1].stop and
                   slices[2].start < box[1] and slices[2].stop > box[0] and
                   slices[3].start < box[3] and slices[3].stop > box[2]
                   for z, box in record["changed"].items()):
                self._usage[INJECTED] += 1
                self._usage[min(FIRST_SAMPLE + number, USAGE_SLOTS - 1)] += 1
        return _Watched(data, touched)


class _Watched:
    """An image array that reports which window of it was cut out."""

    def __init__(self, data, touched):
        self._data, self._touched = data, touched
        self.shape, self.dtype, self.ndim = data.shape, data.dtype, len(data.shape)

    def __getitem__(self, window):
        if isinstance(window, tuple) and len(window) == 4:
            self._touched(window)
        return self._data[window]


def read_usage(pool: str | Path) -> np.ndarray:
    """Counts summed over all workers: patches served, patches with a changed voxel, then how often
    the sample of each manifest line was served; (USAGE_SLOTS,) int64."""
    total = np.zeros(USAGE_SLOTS, np.int64)
    for path in (Path(pool) / "tmp").glob("usage_*.bin"):
        counts = np.fromfile(path, np.int64)
        total[:len(counts)] += counts
    return total
