"""Accepted samples on disk: nnU-Net cases plus a manifest; the only writer of samples.

    <training output>/lgesynth_pool/cases/   nnU-Net preprocessed cases and nothing else
                                   tmp/      cases being written, usage counters
                                   manifest.jsonl

A case is written to tmp/, read back, renamed into cases/, then one manifest line is appended: that
line is the commit. A reader that meets a half line or a missing file takes another sample, so a
kill at any moment loses at most the sample being written. Names are never used twice, since workers
map files.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold

__all__ = ["USAGE_PREFIX", "Pool", "read_manifest"]

USAGE_PREFIX = "usage_"      # of the readers' files in tmp/, which the writer leaves alone


def read_manifest(folder: str | Path) -> list[dict]:
    """The committed records of a pool, oldest first; a line cut short by a kill is passed over."""
    path = Path(folder) / "manifest.jsonl"
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Pool:
    """The pool of one training, open for writing; there must be one writer at a time."""

    def __init__(self, folder: str | Path, fold: Fold):
        self.folder, self.fold = Path(folder), fold
        self.cases, self.partial = self.folder / "cases", self.folder / "tmp"
        self.manifest = self.folder / "manifest.jsonl"
        try:
            for path in (self.cases, self.partial):
                path.mkdir(parents=True, exist_ok=True)
            self._clear_partial()
            self._cut_half_line()
        except OSError as error:
            raise UserError(f"The pool {self.folder} cannot be written ({error}); check "
                            "permissions and free space.") from error

    def add(self, case: Case, record: dict) -> str:
        """Commit one case with its manifest record; returns the name it got.

        Raises OSError where it cannot be written (a full disk); the pool is then as it was before.
        """
        name = f"{record['kind']}_{self._next_number():06d}"
        length = self.manifest.stat().st_size if self.manifest.is_file() else 0
        try:
            for path in self._write(replace(case, identifier=name)):
                os.replace(path, self.cases / path.name)
            with open(self.manifest, "a", encoding="utf-8") as file:
                file.write(json.dumps({"identifier": name, **record}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._undo(name, length)
            raise
        return name

    def _write(self, case: Case) -> list[Path]:
        """Write a case to tmp/ and make sure that all of it can be read again."""
        try:
            files = self.fold.write(case, self.partial)
            image, labels, _, _ = self.fold.cases_folder(self.partial).load_case(case.identifier)
            whole = np.array_equal(image[:], case.image) and np.array_equal(labels[:], case.labels)
        except RuntimeError as error:            # how blosc2 reports a full disk
            raise OSError(f"{self.partial / case.identifier}: {error}") from error
        if not whole:
            raise OSError(f"{self.partial / case.identifier} reads back differently")
        return files

    def _undo(self, name: str, length: int) -> None:
        """Remove a case's files and cut the manifest back to `length` bytes."""
        for ending in (".*", "_seg.*"):
            for path in self.cases.glob(name + ending):
                path.unlink()
        self._clear_partial()
        if self.manifest.is_file():
            os.truncate(self.manifest, length)

    def _next_number(self) -> int:
        taken = [p.name for p in self.cases.iterdir()]
        taken += [r["identifier"] for r in read_manifest(self.folder)]
        numbers = [re.match(r"[a-z]+_(\d{6,})", name) for name in taken]
        return max((int(n[1]) for n in numbers if n), default=-1) + 1

    def _clear_partial(self) -> None:
        for path in self.partial.iterdir():
            if not path.name.startswith(USAGE_PREFIX):
                path.unlink()

    def _cut_half_line(self) -> None:
        if self.manifest.is_file():
            content = self.manifest.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.manifest, whole)
