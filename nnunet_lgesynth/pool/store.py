"""Accepted samples on disk: nnU-Net cases plus a manifest; the only writer of samples.

    <training output>/lgesynth_pool/cases/   nnU-Net preprocessed cases and nothing else
                                   tmp/      cases being written, usage counters
                                   manifest.jsonl

A case is written to tmp/, renamed into cases/, then one manifest line is appended: that line is the
commit. A reader that meets a half line or a missing file takes another sample, so a kill at any
moment loses at most the sample being written. Names are never used twice, since workers map files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold

__all__ = ["Pool", "read_manifest"]


def read_manifest(folder: str | Path) -> list[dict]:
    """The committed records of a pool, oldest first; a line cut short by a kill is passed over."""
    path = Path(folder) / "manifest.jsonl"
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Pool:
    """The pool of one training, open for writing."""

    def __init__(self, folder: str | Path, fold: Fold):
        self.folder, self.fold = Path(folder), fold
        self.cases, self.partial = self.folder / "cases", self.folder / "tmp"
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            for path in (self.cases, self.partial):
                path.mkdir(parents=True, exist_ok=True)
            self._end_half_line()
        except OSError as error:
            raise UserError(f"The pool {self.folder} cannot be written ({error}); check "
                            "permissions and free space.") from error

    def add(self, case: Case, record: dict) -> str:
        """Commit one case with its manifest record; returns the name it got."""
        name = f"{record['kind']}_{self._next_number():06d}"
        written = self.fold.write(Case(name, case.image, case.labels, case.properties,
                                       case.spacing), self.partial)
        for path in written:
            os.replace(path, self.cases / path.name)
        with open(self.folder / "manifest.jsonl", "a") as file:
            file.write(json.dumps({"identifier": name, **record}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return name

    def extend(self, samples: Iterable[tuple[Case, dict]]) -> list[str]:
        """Commit every sample of an iterable; returns their names."""
        return [self.add(case, record) for case, record in samples]

    def _next_number(self) -> int:
        taken = [int(p.name.split(".")[0].split("_")[1]) for p in self.cases.iterdir()
                 if p.name.count("_") >= 1]
        committed = [int(r["identifier"].split("_")[1]) for r in read_manifest(self.folder)]
        return max([-1, *taken, *committed]) + 1

    def _end_half_line(self) -> None:
        path = self.folder / "manifest.jsonl"
        if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            with open(path, "a") as file:
                file.write("\n")
