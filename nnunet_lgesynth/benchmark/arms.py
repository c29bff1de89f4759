"""One arm's per-case rows as arrays, ready to be resampled by patient; and its metrics.

Rows: patients; of one with several stacks everything is the mean over these. Columns: runs, one a
seed (one a fold and seed on external images). A resample is a list of patient indices. Metrics are
means over patients (`PER_PATIENT`) or ratios of sums over patients (`PER_RUN`), each patient's the
mean over the runs that have it, so that patients with more seeds weigh no more. Thousands of
resamples are a few matrix products with the counts c of each patient:

    AUROC = c' W c / (c'P c'N),  W[i, j] = wins of i's positives over j's negatives

with P and N their numbers (a tie is half a win), W the mean over the runs that have both patients.

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
           "mark_small", "nanmean", "patient_of", "present", "run_means", "run_of", "spread"]

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

    cases: list                      # patients
    values: dict[str, np.ndarray]    # metric of PER_PATIENT -> (n, R), NaN where undefined
    found: np.ndarray                # (n, R): share of stacks in which scar was found, or NaN
    sums: list[dict]                 # per run: what the ratios are made of, see `_sums`
    pooled: dict                     # the same, mean over each patient's runs

    @classmethod
    def of(cls, rows: list[dict]) -> Arm:
        """From per-case rows of one arm and split."""
        cases, runs = sorted(set(map(patient_of, rows))), sorted(set(map(run_of, rows)))
        cells = [(cases.index(patient_of(r)), runs.index(run_of(r))) for r in rows]

        def table(value: Callable[[dict], float | None]) -> np.ndarray:
            held = np.full((len(cases), len(runs)), None)
            for cell, row in zip(cells, rows):
                if (number := value(row)) is not None:
                    held[cell] = [*(held[cell] or ()), number]
            return np.array([[np.nan if v is None else np.mean(v) for v in line] for line in held])

        sums = [_sums([r for r in rows if run_of(r) == run], cases) for run in runs]
        return cls(cases, {metric: table(value) for metric, value in PER_PATIENT.items()},
                   table(lambda row: row["found_scar"]), sums,
                   {key: nanmean(np.array([s[key] for s in sums]), 0) for key in sums[0]})

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
        return self.pooled["patient", "positive"] > 0

    def per_run(self, metric: str, among: np.ndarray | None = None) -> np.ndarray:
        """(R,) of each run alone, over those patients `among` all (n,) bool whom every run has, or
        over its own; NaN where undefined."""
        if metric in PER_PATIENT:
            return nanmean(self.values[metric][slice(None) if among is None else among], 0)
        return np.array([_ratio(metric, *_of_some(s, ~np.isnan(self.found[:, run])
                                                  if among is None else among))
                         for run, s in enumerate(self.sums)])

    def counts(self, name: str, of: str = "patient") -> float:
        """tn, fp, fn or tp over patients or slices; of each patient the mean over its runs."""
        return float(self.pooled[of, name].sum())

    def resampled(self, metric: str, patients: np.ndarray) -> np.ndarray:
        """A metric of PER_RUN for resamples (..., any) of patient indices -> (...); NaN where it is
        undefined, as an AUROC where two patients share no run."""
        counts = (patients[..., None] == np.arange(len(self.cases))).sum(axis=-2).astype(float)
        return _ratio(metric, counts, self.pooled)


def patient_of(row: dict):
    """Whose stack it is; rows of earlier versions have one a patient."""
    return row.get("patient", row["case"])


def run_of(row: dict) -> tuple[int, int]:
    """Cases of all folds share a seed's run; on external images every fold's model is a run."""
    return (row["fold"] if row["split"] == "external" else -1, row["seed"])


def found_by_most(arm: Arm) -> np.ndarray:
    """(n,) 1 where more than half of a patient's runs (and stacks) find scar, 0 where less do, NaN
    else."""
    votes = nanmean(arm.found, 1)
    return np.where(votes == 0.5, np.nan, np.round(votes))


def mark_small(rows: Iterable[dict]) -> list[dict]:
    """The rows with `dice_tp_small`: `dice_tp` of the third of scarred patients with the smallest
    true scars, % of wall; None elsewhere."""
    rows = list(rows)
    sizes: dict = {}
    for r in rows:
        if r["has_scar"] and "true_percent" in r:
            sizes.setdefault(patient_of(r), {})[r["case"]] = r["true_percent"]
    size = {patient: float(np.mean(list(of.values()))) for patient, of in sizes.items()}
    small = set(sorted(size, key=lambda patient: (size[patient], patient))[:round(len(size) / 3)])
    return [{**r, "dice_tp_small": r["dice_tp"] if patient_of(r) in small else None} for r in rows]


def nanmean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of what is defined; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # "mean of empty slice" is meant
        return np.nanmean(values, axis=axis)


def run_means(values: np.ndarray) -> np.ndarray:
    """(R,) means over the patients who have the metric in all runs; `values` (n, R), NaN where
    undefined. Else a run that misses a hard scar would seem better, and seeds to differ."""
    return nanmean(values[~np.isnan(values).any(axis=1)], 0)


def spread(runs: np.ndarray) -> tuple[float, int]:
    """Standard deviation of the runs that are defined, and how many they are."""
    runs = present(runs)
    return (runs.std(ddof=1) if runs.size > 1 else np.nan), runs.size


def present(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _sums(rows: list[dict], cases: list) -> dict:
    """Of one run, per patient (n, ...) the mean over its stacks, NaN where the run lacks it: counts
    of the four outcomes of patients and slices, what their AUROCs are made of, lesions [found,
    false, missed], and segments by true and predicted class."""
    at, n = [cases.index(patient_of(r)) for r in rows], len(cases)
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
    stacks = np.bincount(at, minlength=n)
    share = np.where(stacks > 0, 1 / np.maximum(stacks, 1), np.nan)
    return {key: value * (np.outer(share, share) if key[-1] == "wins" else
                          share.reshape(-1, *[1] * (value.ndim - 1)))
            for key, value in sums.items()}


def _of_some(sums: dict, use: np.ndarray) -> tuple[np.ndarray, dict]:
    """(counts, sums) of those patients alone: what the others lack must not make it undefined."""
    return np.ones(use.sum()), {key: value[use][:, use] if key[-1] == "wins" else value[use]
                                for key, value in sums.items()}


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
