"""One arm's per-case rows as arrays, ready to be resampled by patient.

Rows: patients. Columns: runs, one a seed (one a fold and seed on external images). A resample is a
list of patient indices; every metric of a run is a ratio of sums over patients, so thousands of
resamples are a few matrix products with the counts c of each patient:

    slice AUROC = c' W c / (c'P c'N),  W[i, j] = wins of i's scarred over j's scar-free slices

with P and N the numbers of such slices (a tie is half a win). A test holds this to `metrics`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from nnunet_lgesynth.benchmark.metrics import aggregate

__all__ = ["PER_PATIENT", "Arm", "run_of"]

PER_PATIENT = ("dice_tp", "no_reflow_dice", "dice", "volume_mae_percent")


@dataclass(frozen=True)
class Arm:
    """Cells of one arm; n patients, R runs."""

    cases: list
    values: dict[str, np.ndarray]    # metric of PER_PATIENT -> (n, R), NaN where undefined
    points: dict[str, np.ndarray]    # every metric -> (R,), NaN where undefined
    sums: list[dict]                 # per run: what the ratios are made of, see `_sums`

    @classmethod
    def of(cls, rows: list[dict]) -> Arm:
        """From per-case rows of one arm and split."""
        cases, runs = sorted({r["case"] for r in rows}), sorted({run_of(r) for r in rows})
        values = {m: np.full((len(cases), len(runs)), np.nan) for m in PER_PATIENT}
        for row in rows:
            cell = cases.index(row["case"]), runs.index(run_of(row))
            for metric in PER_PATIENT:
                values[metric][cell] = _float(_cell(row, metric))
        by_run = [[r for r in rows if run_of(r) == run] for run in runs]
        totals = [aggregate(group) for group in by_run]
        points = {m: np.array([_float(t[m]) for t in totals]) for m in totals[0]}
        return cls(cases, values, points, [_sums(group, cases) for group in by_run])

    def per_patient(self, metric: str) -> np.ndarray:
        """(n,) means over runs; NaN where the metric is undefined for the patient."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)     # "mean of empty slice" is meant
            return np.nanmean(self.values[metric], axis=1)

    def resampled(self, metric: str, patients: np.ndarray) -> np.ndarray:
        """A run's metric, mean over runs, for resamples (..., any) of patient indices -> (...)."""
        counts = (patients[..., None] == np.arange(len(self.cases))).sum(axis=-2).astype(float)
        with np.errstate(all="ignore"):
            return np.mean([_ratio(metric, counts, s) for s in self.sums], axis=0)


def run_of(row: dict) -> tuple[int, int]:
    """Cases of all folds share a seed's run; on external images every fold's model is a run."""
    return (row["fold"] if row["split"] == "external" else -1, row["seed"])


def _sums(rows: list[dict], cases: list) -> dict:
    """Per patient: counts of the four outcomes (n,), slices P and N (n,), wins W (n, n)."""
    found = {k: np.zeros(len(cases)) for k in ("tn", "fp", "fn", "tp")}
    owner, positive, score = [], [], []
    for row in rows:
        i = cases.index(row["case"])
        outcome = ("fn", "tp") if row["has_scar"] else ("tn", "fp")
        found[outcome[row["found_scar"]]][i] += 1
        for _, truth, predicted in row["slices"]:
            owner.append(i)
            positive.append(truth > 0)
            score.append(predicted)
    member = (np.array(owner)[:, None] == np.arange(len(cases))).astype(float)     # (slices, n)
    positive, score = np.array(positive, bool), np.array(score, float)
    beats = np.sign(score[positive][:, None] - score[~positive][None]) / 2 + 0.5
    return {**found, "positive": member[positive].sum(axis=0),
            "negative": member[~positive].sum(axis=0),
            "wins": member[positive].T @ beats @ member[~positive]}


def _ratio(metric: str, counts: np.ndarray, sums: dict) -> np.ndarray:
    if metric == "slice_auroc":
        wins = ((counts @ sums["wins"]) * counts).sum(axis=-1)
        return wins / ((counts @ sums["positive"]) * (counts @ sums["negative"]))
    tn, fp, fn, tp = (counts @ sums[k] for k in ("tn", "fp", "fn", "tp"))
    if metric == "accuracy":
        return (tn + tp) / (tn + fp + fn + tp)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    both = (sensitivity + specificity) / 2
    return np.where(np.isnan(both), np.fmax(sensitivity, specificity), both)


def _cell(row: dict, metric: str) -> float | None:
    return abs(row["volume_error_percent"]) if metric == "volume_mae_percent" else row[metric]


def _float(value: float | None) -> float:
    return np.nan if value is None else float(value)
