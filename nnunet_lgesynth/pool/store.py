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
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold

__all__ = ["USAGE_PREFIX", "Manifest", "Pool", "read_manifest", "whole_lines"]

USAGE_PREFIX = "usage_"      # of the readers' files in tmp/, which the writer leaves alone
NEEDED = ("identifier", "kind", "source", "slices", "generator", "changed")    # in every record


class Manifest:
    """The committed records of a pool, oldest first, as they become more.

    `update` reads what was appended since, so a long manifest costs its readers no more than a
    short one. A line is a record once it ends; one that a kill has cut short, or that lacks what
    readers need, is passed over.
    Of each record the `fields` are kept, by default all: a long training makes many.
    """

    def __init__(self, folder: str | Path, fields: Sequence[str] | None = None):
        self.path, self.fields = Path(folder) / "manifest.jsonl", fields
        self._forget()

    def _forget(self) -> None:
        self.records: list[dict] = []
        self._stamp, self._read = None, 0

    def update(self) -> bool:
        """Read on; whether earlier records are still the same (the writer takes back a line that
        it could not write in whole, and a new training drops all). What is known stays
        where the file is there but cannot be read."""
        try:
            if _stamp_of(os.stat(self.path)) == self._stamp:     # as for nearly every case read
                return True
            with open(self.path, "rb") as file:
                state = os.fstat(file.fileno())
                same = self._goes_on(file, state)
                if not same:
                    self._forget()
                file.seek(self._read)
                lines = file.read()
        except FileNotFoundError:
            same = not self.records
            self._forget()
            return same
        except OSError:
            return True
        whole = lines.rfind(b"\n") + 1
        self.records += [r if self.fields is None else {k: r[k] for k in self.fields if k in r}
                         for r in whole_lines(lines[:whole], NEEDED)]
        self._stamp, self._read = _stamp_of(state), self._read + whole
        return same

    def _goes_on(self, file, state: os.stat_result) -> bool:
        """Whether the file still is the one whose first `_read` bytes are known."""
        if self._stamp is None or not self._read:
            return True
        if state.st_ino != self._stamp[0] or state.st_size < self._read:
            return False
        file.seek(self._read - 1)
        return file.read(1) == b"\n"


def _to_disk(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _stamp_of(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_ino, state.st_mtime_ns, state.st_size


def whole_lines(lines: bytes, keys: Collection[str]) -> list[dict]:
    """The objects of JSON lines that hold these keys; a line that a kill or a full disk has cut, or
    that was damaged otherwise, is left out."""
    records = []
    for line in lines.decode("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and record.keys() >= set(keys):
            records.append(record)
    return records


def read_manifest(folder: str | Path) -> list[dict]:
    """The committed records of a pool as they are now, oldest first."""
    manifest = Manifest(folder)
    manifest.update()
    return manifest.records


class Pool:
    """The pool of one training, open for writing; there must be one writer at a time."""

    def __init__(self, folder: str | Path, fold: Fold):
        self.folder, self.fold = Path(folder), fold
        self.cases, self.partial = self.folder / "cases", self.folder / "tmp"
        self.manifest = self.folder / "manifest.jsonl"
        try:
            self._make_folders()
            self._clear_partial()
            self._cut_half_line()
            self._next = self._first_free_number()
        except OSError as error:
            raise UserError(f"The pool {self.folder} cannot be written ({error}); check "
                            "permissions and free space.") from error

    def add(self, case: Case, record: dict) -> str:
        """Commit one case with its manifest record; returns the name it got.

        Raises OSError where it cannot be written (a full disk); the pool is then as it was before.
        """
        name = f"{record['kind']}_{self._next:06d}"
        self._next += 1               # also where it fails: a reader may have seen the name
        self._make_folders()          # someone may have deleted the pool
        length = self.manifest.stat().st_size if self.manifest.is_file() else 0
        try:
            for path in self._write(replace(case, identifier=name)):
                _to_disk(path)        # or a power loss could leave a record without its case
                os.replace(path, self.cases / path.name)
            with open(self.manifest, "a", encoding="utf-8") as file:
                file.write(json.dumps({"identifier": name, **record}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._undo(name, length)
            raise
        return name

    def remove(self, identifiers: Sequence[str]) -> None:
        """Remove the files of these cases, which readers are no longer given; their records stay.
        A file that cannot be removed (Windows keeps those that are mapped) is tried again when
        this is next called with it."""
        gone = set(identifiers)
        with suppress(OSError):
            for path in list(self.cases.iterdir()):
                if path.name.split(".")[0].removesuffix("_seg") in gone:
                    with suppress(OSError):
                        path.unlink()

    def _make_folders(self) -> None:
        for path in (self.cases, self.partial):
            path.mkdir(parents=True, exist_ok=True)

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

    def _first_free_number(self) -> int:
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
