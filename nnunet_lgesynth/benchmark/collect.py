"""From a finished nnU-Net fold on disk to rows: one a patient, and one summary of its training.

A fold's predictions (`validation/*.nii.gz`) are read beside the raw labels, and every arm is
collected twice: as predicted, and as `<arm>+filter` after the volume filter, the same for all.
The training's own log (`lgesynth.jsonl`) and its pool's manifest tell what was injected.
Both outlive the trainings, see `records`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.anatomy.priors import MEASURES
from nnunet_lgesynth.benchmark.metrics import case_metrics, volume_filter
from nnunet_lgesynth.benchmark.records import FILTERED, Training, read_rows
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import DatasetInfo
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["LIKENESS", "collect_cases", "read_labels", "training_summary"]

LIKENESS = tuple(f"{whose}_{name}" for name in MEASURES for whose in ("pool", "real"))


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
