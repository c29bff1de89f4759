"""From a finished nnU-Net fold on disk to rows: one a patient, and one summary of its training.

A fold's predictions (`validation/*.nii.gz`) are read beside the raw labels, and every arm is
collected twice: as predicted, and as `<arm>+filter` after the volume filter, the same for all.
The training's own log (`lgesynth.jsonl`) and its pool's manifest tell what was injected.
Both live in JSON-lines files beside the trainings and outlive them, see `Records`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.anatomy.priors import MEASURES
from nnunet_lgesynth.benchmark.metrics import MIN_PERCENT_OF_WALL, case_metrics, volume_filter
from nnunet_lgesynth.config import UserError, config_hash
from nnunet_lgesynth.dataset.roles import DatasetInfo
from nnunet_lgesynth.files import write_text
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["ENSEMBLE", "FILTERED", "LIKENESS", "Recipe", "Records", "Training", "collect_cases",
           "merge_rows", "origin_of", "read_labels", "read_rows", "training_summary"]

ENSEMBLE = -1            # in the place of a fold's number: all folds of the benchmark together
FILTERED = "+filter"     # suffix of the arm that is post-processed by the volume filter
CASE_KEY = ("arm", "fold", "seed", "config_hash", "split", "case")
TRAINING_KEY = CASE_KEY[:4]
LIKENESS = tuple(f"{whose}_{name}" for name in MEASURES for whose in ("pool", "real"))


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


def collect_cases(training: Training, predictions: Path, labels: Path, cases: Iterable[str],
                  info: DatasetInfo, ending: str = ".nii.gz", split: str = "validation",
                  ignore: int | None = None) -> list[dict]:
    """Per-case rows of one training, as predicted and filtered.

    Parameters
    ----------
    predictions, labels : folders with one `<case><ending>` each a case.
    cases : identifiers to evaluate; a missing file raises `UserError`.
    info : meaning of the labels, and how the stacks lie.
    ignore : label value in which nothing is scored.
    split : "validation", "external", or "ensemble" of folds on the external images.
    """
    raw, filtered = [], []
    about = {"dataset": training.recipe.dataset, "split": split,
             "preset": training.recipe.preset, "epochs": training.recipe.epochs,
             "iterations": training.recipe.iterations, **_origin(training, _log_of(training))}
    for case in cases:
        truth, spacing = read_labels(labels / f"{case}{ending}")
        prediction, _ = read_labels(predictions / f"{case}{ending}")
        if ignore is not None and truth.shape == prediction.shape:
            prediction = np.where(truth == ignore, 0, prediction)
        anatomy = describe(truth, info.roles, spacing, info.frame,
                           insertion=info.landmarks.get(case))
        for rows, arm, recipe, labelled in (
                (raw, training.arm, training.recipe, prediction),
                (filtered, training.arm + FILTERED, training.recipe.filtered,
                 volume_filter(prediction, info.roles))):
            rows.append({"arm": arm, "fold": training.fold, "seed": training.seed, "case": case,
                         "patient": info.patient(case), "config_hash": recipe.hash, **about,
                         **case_metrics(truth, labelled, spacing, info.roles,
                                        anatomy if anatomy.covered.any() else None)})
    return raw + filtered


def merge_rows(path: Path, rows: Iterable[dict], key: Sequence[str]) -> list[dict]:
    """Put rows into a JSON-lines file, replacing those with the same key; returns all rows."""
    merged = {**_by_key(path, key), **{tuple(r[k] for k in key): r for r in rows}}
    write_text(path, "".join(json.dumps(r) + "\n" for r in merged.values()))
    return list(merged.values())


def _by_key(path: Path, key: Sequence[str]) -> dict[tuple, dict]:
    """{key: row} of a file; `UserError` where two rows of one key differ in more than their date,
    since no one could tell which is right."""
    found: dict[tuple, dict] = {}
    for row in read_rows(path):
        for lacking in (k for k in key if k not in row):
            raise UserError(f"{path} has a row without {lacking!r}; it is not a benchmark's, or an "
                            "older version's: move it away.")
        named = tuple(row[k] for k in key)
        if {**found.setdefault(named, row), "date": None} != {**row, "date": None}:
            raise UserError(f"{path} has two rows that differ for {', '.join(map(str, named))}: of "
                            "two trainings, or from two machines; delete those that are not meant.")
    return found


def training_summary(training: Training) -> dict:
    """What one training injected and what its pool's quality control said; JSON-ready.

    Warm-up ends at the first epoch that reaches the run's largest injection probability. A fold
    without `lgesynth.jsonl` (a stock trainer) has None everywhere.
    """
    log = _log_of(training)
    summary = {**training.key, "trainer": training.recipe.trainer, "preset": training.recipe.preset,
               "epochs": len(log) or None, **_origin(training, log), **_injection(log),
               **_drafts(log, judged=training.recipe.preset is not None),
               "minutes": _minutes(log),
               **{name: log[-1].get(name) if log else None for name in LIKENESS}}
    return {**summary, **_pool(training.folder / "lgesynth_pool" / "manifest.jsonl")}


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


def read_labels(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Labels (Z, Y, X) and spacing (z, y, x) in mm of a file; `UserError` where it has none."""
    if not path.is_file():
        raise UserError(f"{path} is missing; finish the training's validation (lgesynth train ... "
                        "--val) or correct the folder.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as an image; write it anew.") from error
    array = sitk.GetArrayFromImage(image)
    if array.ndim != 3:
        raise UserError(f"{path} has {array.ndim} dimensions, 3 are needed (slice, row, column).")
    return array, tuple(image.GetSpacing()[::-1])


def _log_of(training: Training) -> list[dict]:
    """One row an epoch, in order; an epoch repeated after a resume counts once, the later run."""
    rows = {r["epoch"]: r for r in read_rows(training.folder / "lgesynth.jsonl")}
    return [rows[epoch] for epoch in sorted(rows)]


def _injection(log: list[dict]) -> dict:
    if not log:
        return dict.fromkeys(("injected_fraction", "injected_fraction_last",
                              "injected_fraction_all", "unique_slices", "unique_cases"))
    fractions = [r["injected_fraction"] or 0.0 for r in log]
    probabilities = [r.get("probability") or 0.0 for r in log]
    full = int(np.argmax(probabilities))
    return {"injected_fraction": float(np.mean(fractions[full:])),
            "injected_fraction_last": fractions[-1],
            "injected_fraction_all": float(np.mean(fractions)),
            "unique_slices": log[-1].get("unique_slices_served"),
            "unique_cases": log[-1].get("unique_cases_served")}


def _origin(training: Training, log: list[dict]) -> dict:
    """Device and versions that trained, where the training's log tells, else of this process."""
    told = log[-1] if log and "versions" in log[-1] else {
        "device": machine(training.device), "versions": versions()}
    return {"commit": told["versions"]["nnunet_lgesynth"], "device": told["device"],
            "versions": told["versions"], "date": date.today().isoformat()}


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


def _drafts(log: list[dict], judged: bool) -> dict:
    """Drafts and, where a judge saw them, their pass rate: the painter's checks alone are none."""
    drafted, accepted = _total(log, "drafted"), _total(log, "accepted")
    return {"drafted": drafted, "accepted": accepted,
            "qc_pass_own": (accepted or 0) / drafted if drafted and judged else None,
            "seconds_synthesis": _total(log, "seconds_synthesis")}


def _minutes(log: list[dict]) -> float | None:
    """Epochs, and what was waited for the pool before them."""
    epochs = _total(log, "seconds_epoch")
    return None if epochs is None else (epochs + (_total(log, "seconds_waited") or 0)) / 60


def _total(log: list[dict], name: str) -> float | None:
    values = [r[name] for r in log if r.get(name) is not None]
    return sum(values) if values else None


def _pool(manifest: Path) -> dict:
    """Counts over the verdicts that the manifest keeps, and how often each check failed."""
    lines = read_rows(manifest)
    verdicts = [v for line in lines for v in _verdicts(line)]
    failed = Counter(name for v in verdicts for name, check in v.get("checks", {}).items()
                     if not check["passed"])
    return {"pool_cases": dict(Counter(line["kind"] for line in lines)),
            "pool_slices": sum(len(line["slices"]) for line in lines),
            "verdicts": len(verdicts), "verdicts_accepted": sum(v["accepted"] for v in verdicts),
            "failed_checks": dict(failed),
            "generators": sorted({str(line["generator"]) for line in lines if "generator" in line})}


def _verdicts(line: dict) -> list[dict]:
    found = line.get("verdicts", {})          # slice -> verdict, or a list of verdicts
    return list(found.values()) if isinstance(found, dict) else found
