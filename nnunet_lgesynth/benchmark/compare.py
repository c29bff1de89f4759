"""Statistics over per-case rows: arms, paired differences, and the sentence that sums them up.

The patient is the unit. A patient's metric is averaged over seeds, then over patients; metrics of a
whole run (slice AUROC, accuracies) are taken per seed and then averaged. Intervals are 95 %,
bias-corrected and accelerated (BCa) bootstrap over patients (Efron 1987). A difference uses only
the patients and seeds both arms have; its p value flips, patient by patient, which arm is which
(for a mean: the sign of the difference). `<metric>_seed_std` is the standard deviation of the
per-seed values, kept apart from the interval, which says nothing about seeds.
Nothing is corrected for the number of comparisons. What is undefined is null: an interval of one
patient, of equal values, or of a resample with a single class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_lgesynth.benchmark.arms import PER_PATIENT, Arm, run_of
from nnunet_lgesynth.benchmark.collect import FILTERED, LIKENESS, origin_of
from nnunet_lgesynth.config import QCConfig, UserError

__all__ = ["PRIMARY", "REFERENCE", "Comparison", "compare", "flip_p", "interval", "number_row",
           "reference_of", "training_rows", "verdict"]

REFERENCE = "real"
PRIMARY = {"dice_tp": "Dice-TP", "no_reflow_dice": "no-reflow Dice", "slice_auroc": "slice AUROC"}
UNITS = {"dice_tp": "fraction", "no_reflow_dice": "fraction", "slice_auroc": "fraction",
         "dice": "fraction", "accuracy": "fraction", "balanced_accuracy": "fraction",
         "volume_mae_percent": "% of wall"}
COUNTS = ("tn", "fp", "fn", "tp")
SIGNIFICANCE = 0.05
BATCH = 500            # resamples at a time, to bound memory


@dataclass(frozen=True)
class Comparison:
    """Number rows, per-patient means over seeds ([{"arm", "case", metric: value}]), sentences."""

    rows: list[dict]
    patients: list[dict]
    verdict: list[str]


def compare(cases: Iterable[dict], context: dict, resamples: int = 2000) -> Comparison:
    """Compare the arms of one split.

    Parameters
    ----------
    cases : per-case rows (`collect.collect_cases`) of one split.
    context : every number row's benchmark, dataset, split and command; device, versions and date
        are those of the rows a number is made of.
    resamples : of the bootstrap, and of the permutation test where it is not exhaustive.
    """
    by_arm: dict[str, list[dict]] = {}
    for row in cases:
        by_arm.setdefault(row["arm"], []).append(row)
    if not by_arm:
        raise UserError("There are no per-case rows to compare; name a finished fold and seed.")
    rows, patients = [], []
    for name, arm_rows in by_arm.items():
        arm, about = Arm.of(arm_rows), _about(name, arm_rows, context)
        rows += _arm_rows(arm, about, resamples)
        patients += [{"arm": name, "case": case,
                      **{m: _number(arm.per_patient(m)[i]) for m in PER_PATIENT}}
                     for i, case in enumerate(arm.cases)]
        if name == REFERENCE:
            rows += _real_pass_rows(arm_rows, about)
        reference = reference_of(name)
        if name != reference and reference in by_arm:
            both = {**about, **origin_of([*arm_rows, *by_arm[reference]])}
            rows += _difference_rows(arm_rows, by_arm[reference], reference, both, resamples)
    return Comparison(rows, patients, verdict(rows))


def reference_of(arm: str) -> str:
    """The arm that `arm` is compared with: `real`, or filtered `real` where `arm` is filtered."""
    filtered = arm.endswith(FILTERED) and arm != REFERENCE + FILTERED
    return REFERENCE + FILTERED if filtered else REFERENCE


def interval(n: int, statistic: Callable[[np.ndarray], np.ndarray],
             resamples: int) -> tuple[float | None, float | None]:
    """95 % BCa interval over n patients; (None, None) where undefined.

    `statistic` maps resamples (..., any) of the indices 0..n-1 to values (...).
    """
    if n < 2:
        return None, None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")     # degenerate data: scipy warns and returns NaN
        found = stats.bootstrap((np.arange(n),), _along_last(statistic), method="BCa",
                                vectorized=True, n_resamples=resamples, batch=BATCH,
                                rng=0).confidence_interval
    low, high = _number(found.low), _number(found.high)
    return (None, None) if low is None or high is None or low == high else (low, high)


def flip_p(data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray],
           resamples: int = 9999) -> float:
    """Two-sided p of paired data (differences, or two arms): flips patient by patient, every way
    where 2**n <= resamples. `statistic` reduces the last axis."""
    if len(data[0]) < 2:
        return 1.0        # one patient: both flips are as extreme as what was seen
    return float(stats.permutation_test(data, _along_last(statistic), vectorized=True, axis=-1,
                                        permutation_type="samples", n_resamples=resamples,
                                        batch=BATCH, rng=0).pvalue)


def training_rows(summaries: Iterable[dict], context: dict) -> list[dict]:
    """Number rows of `collect.training_summary` per arm: injected fraction, QC pass rate, and the
    means of the pool's scars beside those of the training folds' real ones."""
    by_arm: dict[str, list[dict]] = {}
    for summary in summaries:
        by_arm.setdefault(summary["arm"], []).append(summary)
    rows = []
    for arm, group in by_arm.items():
        about = _about(arm, group, context)
        for name in ("injected_fraction", *LIKENESS):
            values = [s[name] for s in group if s.get(name) is not None]
            if values:
                unit = "normalised intensity" if name.endswith("contrast") else None
                rows.append(number_row(about, name, np.mean(values), n=len(values), unit=unit))
        judged = [s for s in group if s.get("qc_pass_own") is not None]
        if judged:
            drafted, accepted = (sum(s[k] for s in judged) for k in ("drafted", "accepted"))
            rows.append(number_row(about, "qc_pass_own", accepted / drafted, n=drafted))
    return rows


def verdict(rows: list[dict]) -> list[str]:
    """The headline, then one sentence an arm. A gain or loss counts as shown only where the
    interval excludes 0 and p < 0.05."""
    found = {(r["arm"], r["metric"]): r for r in rows}
    arms = list(dict.fromkeys(r["arm"] for r in rows if not r["arm"].endswith(FILTERED)))
    if REFERENCE not in arms or len(arms) < 2:
        return [f"No comparison: it needs the arm '{REFERENCE}' and at least one other arm."]
    gains, losses, sentences = [], [], []
    for arm in (a for a in arms if a != REFERENCE):
        parts = []
        for metric, name in PRIMARY.items():
            row = found.get((arm, f"{metric}_diff_vs_{REFERENCE}"))
            if row is None or row["value"] is None:
                continue
            parts.append(f"{name} {_signed(row)}")
            p = found[arm, f"{metric}_p_vs_{REFERENCE}"]["value"]
            proven = row["low"] is not None and p is not None and p < SIGNIFICANCE
            if proven and row["low"] * row["high"] > 0:
                (gains if row["low"] > 0 else losses).append(f"{arm}, {parts[-1]}")
        sentences.append(f"{arm} against {REFERENCE}: {'; '.join(parts) or 'nothing shared'}.")
    headline = (f"Gain shown: {'; '.join(gains)}." if gains else
        f"No gain shown: no arm beats {REFERENCE} in {', '.join(PRIMARY.values())} beyond "
        "chance.") + (f" Loss shown: {'; '.join(losses)}." if losses else "")
    if min(len(r["seeds"]) for r in rows) < 2:
        sentences.append("One seed: the spread between seeds is not known.")
    return [headline, *sentences]


def _arm_rows(arm: Arm, about: dict, resamples: int) -> list[dict]:
    rows = []
    for metric in UNITS:
        per_run = _present(arm.points[metric])
        if metric in PER_PATIENT:
            values = _present(arm.per_patient(metric))
            value, n = values.mean() if values.size else np.nan, values.size
            bounds = interval(n, lambda i, v=values: v[i].mean(axis=-1), resamples)
        else:
            value, n = arm.points[metric].mean(), len(arm.cases)
            bounds = interval(n, lambda i, m=metric: arm.resampled(m, i), resamples)
        rows.append(number_row(about, metric, value, *bounds, n=n))
        spread = per_run.std(ddof=1) if per_run.size > 1 else np.nan
        rows.append(number_row(about, f"{metric}_seed_std", spread, n=per_run.size))
    for count in COUNTS:
        rows.append(number_row(about, count, arm.points[count].mean(), n=len(arm.cases),
                         unit="patients, mean over seeds"))
    return rows


def _real_pass_rows(rows: list[dict], about: dict) -> list[dict]:
    """`qc_pass_real`: share of real scar slices in which the real-only model reaches the Dice that
    the quality control asks of samples; it bounds what a generator can be held to."""
    found = [overlap for row in rows for _, overlap in row.get("scar_slices", [])]
    passed = np.mean(np.array(found) >= QCConfig().min_dice) if found else np.nan
    return [number_row(about, "qc_pass_real", passed, n=len(found))]


def _difference_rows(rows: list[dict], reference_rows: list[dict], reference: str, about: dict,
                     resamples: int) -> list[dict]:
    """Paired differences arm - reference over the cells both have."""
    shared = ({(r["case"], run_of(r)) for r in rows}
              & {(r["case"], run_of(r)) for r in reference_rows})
    both = [{**r, "case": (side, r["case"])} for side, group in enumerate((reference_rows, rows))
            for r in group if (r["case"], run_of(r)) in shared]
    if not both:
        return []
    arm = Arm.of(both)               # the reference's patients first, then the arm's
    n = len(arm.cases) // 2
    found = []
    for metric in UNITS:
        if metric in PER_PATIENT:
            values = arm.per_patient(metric)
            value, bounds, p, count = _mean_difference(values[n:] - values[:n], resamples)
        else:
            value, bounds, p, count = _run_difference(arm, metric, n, resamples)
        found.append(number_row(about, f"{metric}_diff_vs_{reference}", value, *bounds, n=count))
        found.append(number_row(about, f"{metric}_p_vs_{reference}", p, n=count, unit="p"))
    return found


def _mean_difference(differences: np.ndarray, resamples: int):
    differences = _present(differences)
    if not differences.size:
        return np.nan, (None, None), np.nan, 0
    bounds = interval(differences.size, lambda i: differences[i].mean(axis=-1), resamples)
    return differences.mean(), bounds, flip_p((differences,), _last_mean), differences.size


def _run_difference(arm: Arm, metric: str, n: int, resamples: int):
    def difference(a, b):
        return arm.resampled(metric, a) - arm.resampled(metric, b)

    patients = np.arange(n)
    bounds = interval(n, lambda i: difference(i + n, i), resamples)
    value = float(difference(patients + n, patients))
    p = flip_p((patients + n, patients), difference, resamples) if np.isfinite(value) else np.nan
    return value, bounds, p, n


def _along_last(statistic: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`statistic` as scipy calls it; scipy has moved the axis to the end by then."""
    return lambda *samples, axis: statistic(*samples)


def _last_mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def _about(arm: str, rows: list[dict], context: dict) -> dict:
    return {**context, **origin_of(rows), "arm": arm, "seeds": sorted({r["seed"] for r in rows}),
            "preset": rows[0]["preset"]}


def number_row(about: dict, metric: str, value: float, low: float | None = None,
               high: float | None = None, *, n: int, unit: str | None = None) -> dict:
    """One number as every file in benchmarks/results holds it; `about` has the fields that say
    where it comes from."""
    base = metric.split("_diff_vs_")[0].removesuffix("_seed_std")
    numbers = {"value": _number(value), "low": _number(low), "high": _number(high), "n": int(n)}
    return {"benchmark": about["benchmark"], "arm": about["arm"], "metric": metric, **numbers,
            "unit": unit or UNITS.get(base, "fraction"),
            **{k: about[k] for k in ("dataset", "split", "device", "seeds", "preset", "command",
                                     "versions", "date")}}


def _present(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def _signed(row: dict) -> str:
    bounds = ("no interval" if row["low"] is None
              else f"95 % interval {row['low']:+.3f} to {row['high']:+.3f}")
    return f"{row['value']:+.3f} ({bounds}, {row['n']} patients)"
