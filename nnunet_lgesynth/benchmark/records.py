"""What outlives the trainings: JSON-lines files with a row a patient and a summary a training.

A row is named by arm, fold, seed, the hash of all that makes two trainings of an arm comparable
(`Recipe`), and, of patients, split and case.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_lgesynth.benchmark.metrics import MIN_PERCENT_OF_WALL
from nnunet_lgesynth.config import UserError, config_hash
from nnunet_lgesynth.files import write_text

__all__ = ["ENSEMBLE", "FILTERED", "Recipe", "Records", "Training", "merge_rows", "origin_of",
           "read_rows"]

ENSEMBLE = -1            # in the place of a fold's number: all folds of the benchmark together
FILTERED = "+filter"     # suffix of the arm that is post-processed by the volume filter
CASE_KEY = ("arm", "fold", "seed", "config_hash", "split", "case")
TRAINING_KEY = CASE_KEY[:4]
ORIGIN = {"commit", "date", "device", "versions", "made_of"}     # made_of is compared with the data


@dataclass(frozen=True)
class Recipe:
    """All that makes two trainings of one arm comparable; its hash is the rows' config hash."""

    dataset: str
    configuration: str
    plans: str
    trainer: str
    epochs: int | None          # None: nnU-Net's own number
    iterations: int | None
    preset: str | None = None   # of the generator, None for arms without one
    generator: str | None = None   # hash of the generator's settings
    warm_up: int | None = None     # scarred cases in the pool at the start; None: the trainer's
    min_percent_of_wall: float = 0.0   # volume filter; 0: predictions as they are
    probability: float | None = None   # of injection; None: the trainer's
    fade: float | None = None          # over this last share of the training it falls to 0
    patients: int | None = None        # that it trains on; None: all of the fold's
    no_reflow_share: float | None = None       # of requested scars; None: the trainer's
    half: bool | None = None           # half precision on a CPU, too
    ensemble: tuple[int, ...] | None = None    # of these folds

    @property
    def hash(self) -> str:
        """Names it in rows."""
        return config_hash(self)

    @property
    def filtered(self) -> Recipe:
        """The same training, its predictions post-processed."""
        return replace(self, min_percent_of_wall=MIN_PERCENT_OF_WALL)


@dataclass(frozen=True)
class Training:
    """One training: an arm's fold under one seed, and nnU-Net's `fold_k` folder that holds it."""

    arm: str
    fold: int
    seed: int
    folder: Path
    recipe: Recipe
    device: str

    @property
    def predictions(self) -> Path:
        return self.folder / "validation"

    @property
    def key(self) -> dict:
        """What tells this training's rows from others'; see TRAINING_KEY."""
        return {"arm": self.arm, "fold": self.fold, "seed": self.seed,
                "config_hash": self.recipe.hash}


@dataclass(frozen=True)
class Records:
    """What outlives the trainings: a row a patient, and a summary a training.

    A row of the same key is replaced, so recording twice changes nothing, and runs of different
    days and machines add up: their files may be put together, a row that is there twice counts
    once, and two that differ are refused. A training that is recorded counts as done, also where
    its folder is gone: to go on with results from elsewhere, put their two files into an empty
    output folder.
    """

    cases: Path
    trainings: Path

    @classmethod
    def below(cls, folder: Path, dataset: str) -> Records:
        return cls(folder / f"cases_{dataset}.jsonl", folder / f"trainings_{dataset}.jsonl")

    def add(self, rows: Iterable[dict], summaries: Iterable[dict] = ()) -> None:
        """Patients first: a summary promises that its patients are there."""
        merge_rows(self.cases, rows, CASE_KEY)
        merge_rows(self.trainings, summaries, TRAINING_KEY)

    def holds(self, training: Training, cases: Iterable[str], split: str = "validation") -> bool:
        """Whether every case of the split is recorded for this training, and its summary is, which
        an ensemble has none of."""
        return ({r["case"] for r in self._found(training, split)} >= set(cases)
                and (training.fold == ENSEMBLE or any(
                    training.key.items() <= r.items() for r in read_rows(self.trainings))))

    def changed(self, training: Training, files: Mapping[str, str], split: str) -> list[str]:
        """The cases that are recorded with other files than they have now, {case: hash}, or
        without word of them."""
        return sorted({r["case"] for r in self._found(training, split)
                       if r.get("files") != files.get(r["case"])})

    def _found(self, training: Training, split: str) -> list[dict]:
        return [r for r in read_rows(self.cases)
                if r.get("split") == split and training.key.items() <= r.items()]

    def of(self, recipes: Iterable[tuple[str, Recipe]], folds: Iterable[int]
           ) -> tuple[list[dict], list[dict]]:
        """(patients' rows, summaries) of these arms with their recipes, of any seed, on `folds`
        and of ensembles of folds."""
        wanted = {(arm + suffix, r.hash) for arm, recipe in recipes
                  for suffix, r in (("", recipe), (FILTERED, recipe.filtered))}
        rows, summaries = ([r for r in _by_key(path, key).values()
                            if r["fold"] in {*folds, ENSEMBLE}
                            and (r["arm"], r["config_hash"]) in wanted]
                           for path, key in ((self.cases, CASE_KEY),
                                             (self.trainings, TRAINING_KEY)))
        return rows, summaries


def merge_rows(path: Path, rows: Iterable[dict], key: Sequence[str]) -> list[dict]:
    """Put rows into a JSON-lines file, replacing those with the same key; returns all rows."""
    merged = {**_by_key(path, key), **{tuple(r[k] for k in key): r for r in rows}}
    write_text(path, "".join(json.dumps(r) + "\n" for r in merged.values()))
    return list(merged.values())


def _by_key(path: Path, key: Sequence[str]) -> dict[tuple, dict]:
    """{key: row} of a file; `UserError` where two rows of one key differ in what both tell, but for
    where they come from: no one could say which is right."""
    found: dict[tuple, dict] = {}
    for row in read_rows(path):
        for lacking in (k for k in key if k not in row):
            raise UserError(f"{path} has a row without {lacking!r}; it is not a benchmark's, or an "
                            "older version's: move it away.")
        named = tuple(row[k] for k in key)
        known = found.setdefault(named, row)
        differ = sorted(k for k in {*known} & {*row} - ORIGIN if known[k] != row[k])
        if differ:
            raise UserError(f"{path} has two rows for {', '.join(map(str, named))} that differ in "
                            f"{', '.join(differ)}: of two trainings, or of two machines; delete "
                            "what is not meant.")
        found[named] = {**known, **row}
    return found


def read_rows(path: Path) -> list[dict]:
    """Rows of a JSON-lines file, none where it is absent; a last line cut short by a kill is left
    out."""
    rows = []
    lines = path.read_text().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not JSON ({error}); mend or delete that "
                                "line.") from error
    return rows


def origin_of(rows: Iterable[dict]) -> dict:
    """Device, versions and (last) date of recorded rows; where they differ, all of them."""
    rows = list(rows)

    def all_of(values) -> str:
        return ", ".join(sorted({str(v or "unknown") for v in values}))

    told = [r.get("versions") or {} for r in rows]
    return {"device": all_of(r.get("device") for r in rows),
            "versions": {name: all_of(t.get(name) for t in told)
                         for name in dict.fromkeys(n for t in told for n in t)},
            "date": max((r.get("date") or "" for r in rows), default="")}
