"""One arm's per-case rows as arrays, ready to be resampled by patient; and its metrics.

Rows: patients. Columns: runs, one a seed (one a fold and seed on external images). A resample is a
list of patient indices. Metrics are means over patients (`PER_PATIENT`) or belong to a whole run
(`PER_RUN`): ratios of sums over patients, so that thousands of resamples are a few matrix products
with the counts c of each patient:

    AUROC = c' W c / (c'P c'N),  W[i, j] = wins of i's positives over j's negatives

with P and N their numbers (a tie is half a win).

    slice_auroc     true slice holds scar (0/1) against predicted slice burden, over the slices in
                    which the truth shows wall
    patient_auroc   patient has scar against predicted scar volume, % of wall
    segment_kappa   quadratic weighted kappa (Cohen 1968) of AHA segments' scar in the five classes
                    0, 1-25, 26-50, 51-75, 76-100 %, over all segments of all patients
    lesion_f1       2 found / (2 found + false + missed) lesions
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["COUNTS", "PER_PATIENT", "PER_RUN", "STRATIFIED", "UNITS", "Arm", "found_by_most",
           "mark_small", "nanmean", "run_of"]

COUNTS = ("tn", "fp", "fn", "tp")
SCARRED_SEGMENT = 0.01           # share of its wall from which a segment counts as scarred
CLASSES = (0.01, 0.255, 0.505, 0.755)      # lower bounds of a segment's classes of scar above 0


def _off(unit: str, of: str = "") -> Callable[[dict], float | None]:
    """Predicted minus true of a row."""
    def difference(row: dict) -> float | None:
        true, found = row.get(f"{of}true_{unit}"), row.get(f"{of}predicted_{unit}")
        return None if true is None or found is None else found - true
    return difference


def _absolute(value: Callable[[dict], float | None]) -> Callable[[dict], float | None]:
    return lambda row: None if (found := value(row)) is None else abs(found)


def _where_scarred(value: Callable[[dict], float | None]) -> Callable[[dict], float | None]:
    return lambda row: value(row) if row["has_scar"] else None


def _jaccard(row: dict) -> float | None:
    if "segments" not in row:
        return None
    true, found = ({s[0] for s in row["segments"] if s[k] >= SCARRED_SEGMENT} for k in (1, 2))
    return len(true & found) / len(true | found) if true | found else 1.0


def _segment_error(row: dict) -> float | None:
    errors = [abs(found - true) for _, true, found in row.get("segments", ())]
    return 100 * float(np.mean(errors)) if errors else None


# metric -> its value in a per-case row, None where it is undefined
PER_PATIENT: dict[str, Callable[[dict], float | None]] = {
    **{name: (lambda row, name=name: row.get(name)) for name in (
        "dice_tp", "no_reflow_dice", "dice", "dice_tp_small", "hd95_mm", "asd_mm")},
    "volume_mae_percent": _absolute(_off("percent")), "volume_bias_percent": _off("percent"),
    "volume_mae_ml": _absolute(_off("ml")), "volume_bias_ml": _off("ml"),
    "no_reflow_mae_ml": _absolute(_off("ml", "no_reflow_")),
    "no_reflow_bias_ml": _off("ml", "no_reflow_"),
    "no_reflow_mae_percent": _absolute(_off("percent", "no_reflow_")),
    "no_reflow_bias_percent": _off("percent", "no_reflow_"),
    "transmurality_mae": _where_scarred(_absolute(_off("transmurality"))),
    "segment_mae_percent": _segment_error, "segment_jaccard": _jaccard}
PER_RUN = ("slice_auroc", "patient_auroc", "accuracy", "balanced_accuracy", "sensitivity",
           "specificity", "slice_accuracy", "slice_balanced_accuracy", "slice_sensitivity",
           "slice_specificity", "lesion_f1", "segment_kappa")
# of patients with scar against those without
STRATIFIED = ("patient_auroc", "balanced_accuracy", "sensitivity", "specificity")
UNITS = {**dict.fromkeys((*PER_PATIENT, *PER_RUN), "fraction"), "hd95_mm": "mm", "asd_mm": "mm",
         **dict.fromkeys(("volume_mae_percent", "volume_bias_percent", "no_reflow_mae_percent",
                          "no_reflow_bias_percent", "segment_mae_percent"), "% of wall"),
         **dict.fromkeys(("volume_mae_ml", "volume_bias_ml", "no_reflow_mae_ml",
                          "no_reflow_bias_ml"), "mL")}


@dataclass(frozen=True)
class Arm:
    """Cells of one arm; n patients, R runs."""

    cases: list
    values: dict[str, np.ndarray]    # metric of PER_PATIENT -> (n, R), NaN where undefined
    found: np.ndarray                # (n, R) bool as float: scar was found; NaN where not predicted
    sums: list[dict]                 # per run: what the ratios are made of, see `_sums`

    @classmethod
    def of(cls, rows: list[dict]) -> Arm:
        """From per-case rows of one arm and split."""
        cases, runs = sorted({r["case"] for r in rows}), sorted({run_of(r) for r in rows})
        values, found = {}, np.full((len(cases), len(runs)), np.nan)
        cells = [(cases.index(r["case"]), runs.index(run_of(r))) for r in rows]
        for metric, value in PER_PATIENT.items():
            values[metric] = np.full(found.shape, np.nan)
            for cell, row in zip(cells, rows):
                values[metric][cell] = np.nan if (number := value(row)) is None else number
        for cell, row in zip(cells, rows):
            found[cell] = row["found_scar"]
        by_run = [[r for r in rows if run_of(r) == run] for run in runs]
        return cls(cases, values, found, [_sums(group, cases) for group in by_run])

    def per_patient(self, metric: str) -> np.ndarray:
        """(n,) means over runs; NaN where the metric is undefined for the patient."""
        return nanmean(self.values[metric], 1)

    @property
    def common(self) -> np.ndarray:
        """(n,) bool: predicted in every run."""
        return ~np.isnan(self.found).any(axis=1)

    def strata(self, metric: str) -> np.ndarray | None:
        """(n,) bool: the truth holds scar, where resamples of a metric must keep their number."""
        if metric not in STRATIFIED:
            return None
        return np.max([s["patient", "positive"] for s in self.sums], axis=0) > 0

    def per_run(self, metric: str, among: np.ndarray | None = None) -> np.ndarray:
        """(R,) of each run alone, over all patients or those `among` them (n,) bool; NaN where
        undefined."""
        use = np.ones(len(self.cases), bool) if among is None else among
        if metric in PER_PATIENT:
            return nanmean(self.values[metric][use], 0)
        return np.array([_ratio(metric, use.astype(float), s) for s in self.sums])

    def counts(self, name: str, of: str = "patient") -> float:
        """tn, fp, fn or tp over patients or slices; of each patient the mean over its runs."""
        runs = (~np.isnan(self.found)).sum(axis=1)
        return float((np.sum([s[of, name] for s in self.sums], axis=0) / runs).sum())

    def resampled(self, metric: str, patients: np.ndarray) -> np.ndarray:
        """A run's metric, mean over runs, for resamples (..., any) of patient indices -> (...)."""
        counts = (patients[..., None] == np.arange(len(self.cases))).sum(axis=-2).astype(float)
        return nanmean(np.array([_ratio(metric, counts, s) for s in self.sums]), 0)


def run_of(row: dict) -> tuple[int, int]:
    """Cases of all folds share a seed's run; on external images every fold's model is a run."""
    return (row["fold"] if row["split"] == "external" else -1, row["seed"])


def found_by_most(arm: Arm) -> np.ndarray:
    """(n,) 1 where more than half of a patient's runs find scar, 0 where less do, NaN else."""
    votes = nanmean(arm.found, 1)
    return np.where(votes == 0.5, np.nan, np.round(votes))


def mark_small(rows: Iterable[dict]) -> list[dict]:
    """The rows with `dice_tp_small`: `dice_tp` of the third of scarred patients with the smallest
    true scars, % of wall; None elsewhere."""
    rows = list(rows)
    sizes = {r["case"]: r["true_percent"] for r in rows if r["has_scar"] and "true_percent" in r}
    small = set(sorted(sizes, key=lambda case: (sizes[case], case))[:round(len(sizes) / 3)])
    return [{**r, "dice_tp_small": r["dice_tp"] if r["case"] in small else None} for r in rows]


def nanmean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of what is defined; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # "mean of empty slice" is meant
        return np.nanmean(values, axis=axis)


def _sums(rows: list[dict], cases: list) -> dict:
    """Per patient, (n, ...): counts of the four outcomes of patients and slices, what their AUROCs
    are made of, lesions [found, false, missed], and segments by true and predicted class."""
    at, n = [cases.index(r["case"]) for r in rows], len(cases)
    slices = [(i, truth > 0, predicted) for i, row in zip(at, rows)
              for _, truth, predicted in row["slices"]]
    patients = [(i, r["has_scar"], r.get("predicted_percent", np.nan)) for i, r in zip(at, rows)]
    sums = {"lesions": np.zeros((n, 3)), "classes": np.zeros((n, len(CLASSES) + 1,
                                                              len(CLASSES) + 1))}
    for i, row in zip(at, rows):
        sums["lesions"][i] += row.get("lesions", (0, 0, 0))
        for _, truth, predicted in row.get("segments", ()):
            sums["classes"][i, np.digitize(truth, CLASSES), np.digitize(predicted, CLASSES)] += 1
    found = {"patient": [r["found_scar"] for r in rows], "slice": [s[2] > 0 for s in slices]}
    for what, seen in (("patient", patients), ("slice", slices)):
        owner, positive, score = (np.array([s[k] for s in seen]) for k in range(3))
        sums.update({(what, name): value
                     for name, value in _wins(owner, positive.astype(bool), score, n).items()})
        for name, truth, predicted in zip(COUNTS, (False, False, True, True),
                                          (False, True, False, True)):
            hit = (positive == truth) & (np.array(found[what], bool) == predicted)
            sums[what, name] = np.bincount(owner[hit].astype(int), minlength=n)
    return sums


def _wins(owner: np.ndarray, positive: np.ndarray, score: np.ndarray, n: int) -> dict:
    """Per patient: numbers of positives and negatives (n,), wins (n, n)."""
    member = (owner[:, None] == np.arange(n)).astype(float)
    beats = np.sign(score[positive][:, None] - score[~positive][None]) / 2 + 0.5
    return {"positive": member[positive].sum(axis=0), "negative": member[~positive].sum(axis=0),
            "wins": member[positive].T @ beats @ member[~positive]}


def _ratio(metric: str, counts: np.ndarray, sums: dict) -> np.ndarray:
    """A metric of PER_RUN for patients that count so often (..., n); NaN where undefined."""
    with np.errstate(all="ignore"):
        if metric == "lesion_f1":
            found, false, missed = np.moveaxis(counts @ sums["lesions"], -1, 0)
            return 2 * found / (2 * found + false + missed)
        if metric == "segment_kappa":
            return _kappa(np.tensordot(counts, sums["classes"], 1))
        what = "slice" if metric.startswith("slice_") else "patient"
        name = metric.removeprefix(f"{what}_")
        if name == "auroc":
            wins = ((counts @ sums[what, "wins"]) * counts).sum(axis=-1)
            return wins / ((counts @ sums[what, "positive"]) * (counts @ sums[what, "negative"]))
        tn, fp, fn, tp = (counts @ sums[what, k] for k in COUNTS)
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        both = (sensitivity + specificity) / 2
        return {"accuracy": (tn + tp) / (tn + fp + fn + tp), "sensitivity": sensitivity,
                "specificity": specificity,
                "balanced_accuracy": np.where(np.isnan(both), np.fmax(sensitivity, specificity),
                                              both)}[name]


def _kappa(table: np.ndarray) -> np.ndarray:
    """Quadratic weighted kappa of tables (..., k, k)."""
    k = np.arange(table.shape[-1])
    weight = (k[:, None] - k) ** 2
    chance = table.sum(-1)[..., :, None] * table.sum(-2)[..., None, :] / table.sum(
        (-1, -2))[..., None, None]
    return 1 - (table * weight).sum((-1, -2)) / (chance * weight).sum((-1, -2))
