"""Statistics over per-case rows: arms, paired differences, and the sentence that sums them up.

The patient is the unit. A patient's metric is averaged over seeds, then over patients; in ratios
(AUROC, accuracies) it is what a patient puts into them that is averaged over seeds. Intervals are
95 %, bias-corrected and accelerated (BCa) bootstrap over patients (Efron 1987). A difference uses
only the patients and seeds both arms have; its p value flips, patient by patient, which arm is
which (for a mean: the sign of the difference). `<metric>_seed_std` is the standard deviation of the
per-seed values, kept apart from the interval, which says nothing about seeds; that of the
differences is `<metric>_diff_seed_std_vs_<reference>`.

The verdict rests on the primary metrics alone, their p values corrected by Holm's method over arms
and metrics (`<metric>_p_holm_vs_<reference>`); all others are not corrected. The smallest
difference that a t-test of the patients who changed at all could have shown, by the spread that
was seen, is `<metric>_detectable_vs_<reference>`. Differences to `further_references` (the painter,
more real patients) are not corrected and decide nothing. Whether scar is found in a patient (by
most seeds) is compared by McNemar's test. A difference in Dice is the sum of
`dice_diff_from_scarred` and `dice_diff_from_empty`: what patients with and without scar give to it.
What is undefined is null: an interval of one patient, or of equal values. Metrics of patients with
scar against those without (`STRATIFIED`) are resampled among each apart: no resample lacks one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nnunet_lgesynth.benchmark.arms import (
    COUNTS,
    PER_PATIENT,
    UNITS,
    Arm,
    found_by_most,
    mark_small,
    nanmean,
    patient_of,
    run_of,
)
from nnunet_lgesynth.benchmark.collect import FILTERED, LIKENESS, origin_of
from nnunet_lgesynth.benchmark.statistics import (
    detectable,
    finite,
    flip_p,
    holm,
    interval,
    mcnemar_p,
)
from nnunet_lgesynth.benchmark.variants import (
    REFERENCE,
    further_references,
    is_tested,
    reference_of,
)
from nnunet_lgesynth.benchmark.verdict import PRIMARY, tests_of, verdict
from nnunet_lgesynth.config import QCConfig, UserError

__all__ = ["Comparison", "compare", "mean_difference", "mixed_generators", "number_row",
           "run_difference", "training_rows"]

FLIPS_A_RESAMPLE = 5       # p values must stand a correction for many arms, intervals need not


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
    resamples : of the bootstrap; permutation tests that are not exhaustive take five times as many.
    """
    by_arm: dict[str, list[dict]] = {}
    for row in mark_small(cases):
        by_arm.setdefault(row["arm"], []).append(row)
    if not by_arm:
        raise UserError("There are no per-case rows to compare; name a finished fold and seed.")
    _refuse_two_patients(row for found in by_arm.values() for row in found)
    rows, patients, uneven = [], [], []
    tests = tests_of(by_arm, sum(metric not in PER_PATIENT or any(
        row.get(metric) is not None for found in by_arm.values() for row in found)
        for metric in PRIMARY))
    for name, arm_rows in by_arm.items():
        arm, about = Arm.of(arm_rows), _about(name, arm_rows, context)
        rows += _arm_rows(arm, about, resamples)
        uneven += [name] * (not arm.common.all() and not name.endswith(FILTERED))
        patients += [{"arm": name, "case": case,
                      **{m: finite(arm.per_patient(m)[i]) for m in PER_PATIENT}}
                     for i, case in enumerate(arm.cases)]
        if name == REFERENCE:
            rows += _real_pass_rows(arm_rows, about)
        corrected = reference_of(name)
        for reference in (corrected, *further_references(name, by_arm)):
            if name != reference and reference in by_arm:
                both = {**about, **origin_of([*arm_rows, *by_arm[reference]])}
                rows += _difference_rows(
                    arm_rows, by_arm[reference], reference, both, resamples,
                    tests if reference == corrected and is_tested(name) else None)
    rows += [row for filtered in (False, True) for row in _holm_rows(rows, filtered)]
    notes = [f"Not every patient has every seed in {', '.join(uneven)}: the spread between seeds "
             "is of those who have."] * bool(uneven)
    return Comparison(rows, patients, [*verdict(rows), *notes])


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


def mixed_generators(summaries: Iterable[dict]) -> list[str]:
    """A sentence for each arm and fold whose trainings drew from different generators."""
    used: dict[tuple, set[str]] = {}
    for s in summaries:
        used.setdefault((s["arm"], s["fold"]), set()).update(s.get("generators", ()))
    return [f"{arm}, fold {fold}: its trainings drew from {len(found)} generators "
            f"({', '.join(sorted(found))}), so they are not one arm's seeds."
            for (arm, fold), found in used.items() if len(found) > 1]


def _refuse_two_patients(rows: Iterable[dict]) -> None:
    """Whose a stack is must be the same in all arms, or patients would be paired with others."""
    of: dict = {}
    for row in rows:
        if of.setdefault(row["case"], patient_of(row)) != patient_of(row):
            raise UserError(f"{row['case']} is of {of[row['case']]} in one row and of "
                            f"{patient_of(row)} in another; record all arms with one lgesynth.json "
                            "(same_as).")


def _arm_rows(arm: Arm, about: dict, resamples: int) -> list[dict]:
    rows = []
    for metric in UNITS:
        if metric in PER_PATIENT:
            values = _present(arm.per_patient(metric))
            value, n = values.mean() if values.size else np.nan, values.size
            bounds = interval(n, lambda i, v=values: v[i].mean(axis=-1), resamples)
        else:
            n = len(arm.cases)
            value = float(arm.resampled(metric, np.arange(n)))
            bounds = interval(n, lambda i, m=metric: arm.resampled(m, i), resamples,
                              arm.strata(metric))
        rows.append(number_row(about, metric, value, *bounds, n=n))
        if len(arm.sums) > 1:
            spread, runs = _spread(_by_run(arm.values[metric]) if metric in PER_PATIENT
                                   else arm.per_run(metric, arm.common))
            rows.append(number_row(about, f"{metric}_seed_std", spread, n=runs))
    for of in ("patient", "slice"):
        for count in COUNTS:
            name = count if of == "patient" else f"slice_{count}"
            rows.append(number_row(about, name, arm.counts(count, of), n=len(arm.cases),
                                   unit=f"{of}s, mean over seeds"))
    return rows


def _real_pass_rows(rows: list[dict], about: dict) -> list[dict]:
    """`qc_pass_real`: share of real scar slices in which the real-only model reaches the Dice that
    the quality control asks of samples, mean over seeds; it bounds what a generator can be held to.
    """
    found: dict[tuple, list[bool]] = {}
    for row in rows:
        for z, overlap in row.get("scar_slices", []):
            found.setdefault((row["case"], z), []).append(overlap >= QCConfig().min_dice)
    passed = np.mean([np.mean(seeds) for seeds in found.values()]) if found else np.nan
    return [number_row(about, "qc_pass_real", passed, n=len(found))]


def _difference_rows(rows: list[dict], reference_rows: list[dict], reference: str, about: dict,
                     resamples: int, tests: int | None) -> list[dict]:
    """Paired differences arm - reference over the cells both have; `tests` as in `detectable`,
    None where no test is made."""
    shared = ({(r["case"], run_of(r)) for r in rows}
              & {(r["case"], run_of(r)) for r in reference_rows})
    both = [{**r, "patient": (side, patient_of(r))}
            for side, group in enumerate((reference_rows, rows))
            for r in group if (r["case"], run_of(r)) in shared]
    if not both:
        return []
    about = {**about, "seeds": sorted({r["seed"] for r in both})}
    arm = Arm.of(both)               # the reference's patients first, then the arm's
    n = len(arm.cases) // 2
    halves = [arm.common & (np.arange(2 * n) // n == side) for side in (0, 1)]
    found = []
    for metric in UNITS:
        if metric in PER_PATIENT:
            values = arm.per_patient(metric)
            change = values[n:] - values[:n]
            value, bounds, p, count = mean_difference(change, resamples)
            moved = _present(change[change != 0])      # flips of the others are none
            size = detectable(moved.size, tests) if tests and metric in PRIMARY else None
            if size is not None:
                found.append(number_row(about, f"{metric}_detectable_vs_{reference}",
                                        moved.std(ddof=1) * size * moved.size / count, n=count,
                                        unit=UNITS[metric]))
        else:
            value, bounds, p, count = run_difference(arm, metric, n, resamples)
        found.append(number_row(about, f"{metric}_diff_vs_{reference}", value, *bounds, n=count))
        if len(arm.sums) > 1:
            if metric in PER_PATIENT:
                by_run = _by_run(arm.values[metric][n:] - arm.values[metric][:n])
            else:
                by_run = arm.per_run(metric, halves[1]) - arm.per_run(metric, halves[0])
            spread, runs = _spread(by_run)
            found.append(number_row(about, f"{metric}_diff_seed_std_vs_{reference}", spread, n=runs,
                                    unit=UNITS[metric]))
        found.append(number_row(about, f"{metric}_p_vs_{reference}", p, n=count, unit="p"))
    seeds: dict = {}
    for r in both:
        seeds.setdefault(r["patient"], set()).add(r["seed"])
    fewest = min(map(len, seeds.values()))
    return [*found, number_row(about, f"fewest_seeds_vs_{reference}", fewest, n=n,
                               unit="seeds of a patient"),
            *_share_rows(arm, n, reference, about, both),
            *_detection_rows(arm, n, reference, about, both)]


def _share_rows(arm: Arm, n: int, reference: str, about: dict, rows: list[dict]) -> list[dict]:
    """What patients with and without scar give to the difference in Dice; they add up to it."""
    change = arm.per_patient("dice")[n:] - arm.per_patient("dice")[:n]
    scarred = _scarred(arm, n, rows)
    return [number_row(about, f"dice_diff_from_{name}_vs_{reference}", change[chosen].sum() / n,
                       n=int(chosen.sum()), unit=UNITS["dice"])
            for name, chosen in (("scarred", scarred), ("empty", ~scarred))]


def _detection_rows(arm: Arm, n: int, reference: str, about: dict, rows: list[dict]) -> list[dict]:
    """Patients whom only one of the two arms tells right, and McNemar's p."""
    votes, scarred = found_by_most(arm), np.tile(_scarred(arm, n, rows), 2)
    right, wrong = votes == scarred, votes == 1 - scarred          # neither where half find scar
    gained, lost = (int((right[a] & wrong[b]).sum()) for a, b in (
        (slice(n, None), slice(n)), (slice(n), slice(n, None))))
    return [number_row(about, f"{name}_vs_{reference}", value, n=n, unit=unit)
            for name, value, unit in (("detection_gained", gained, "patients"),
                                      ("detection_lost", lost, "patients"),
                                      ("detection_p_mcnemar", mcnemar_p(gained, lost), "p"))]


def _scarred(arm: Arm, n: int, rows: list[dict]) -> np.ndarray:
    """(n,) bool: the truth holds scar, in any stack."""
    told = {patient_of(r) for r in rows if r["has_scar"]}
    return np.array([patient in told for patient in arm.cases[:n]], bool)


def _holm_rows(rows: list[dict], filtered: bool) -> list[dict]:
    """Corrected p values of the primary metrics, over metrics and all arms, filtered or not."""
    family = [r for metric in PRIMARY for r in rows
              if r["metric"] == f"{metric}_p_vs_{reference_of(r['arm'])}"
              and is_tested(r["arm"]) and r["arm"].endswith(FILTERED) == filtered]
    return [{**row, "metric": row["metric"].replace("_p_vs_", "_p_holm_vs_"), "value": finite(p)}
            for row, p in zip(family, holm([r["value"] for r in family]))]


def mean_difference(differences: np.ndarray, resamples: int):
    """(mean, 95 % interval, p, n) of paired differences (n,); NaN are no pairs."""
    differences = _present(differences)
    if not differences.size:
        return np.nan, (None, None), np.nan, 0
    bounds = interval(differences.size, lambda i: differences[i].mean(axis=-1), resamples)
    return differences.mean(), bounds, flip_p((differences,), _last_mean), differences.size


def run_difference(arm: Arm, metric: str, n: int, resamples: int):
    """(difference, 95 % interval, p, n) of a metric of PER_RUN; the first n patients of `arm` are
    the reference's, the others the same ones of the arm that is compared with it."""
    def difference(a, b):
        return arm.resampled(metric, a) - arm.resampled(metric, b)

    patients = np.arange(n)
    strata = arm.strata(metric)
    bounds = interval(n, lambda i: difference(i + n, i), resamples,
                      None if strata is None else strata[:n])
    value = float(difference(patients + n, patients))
    p = np.nan
    if np.isfinite(value):
        p = flip_p((patients + n, patients), difference, FLIPS_A_RESAMPLE * resamples)
    return value, bounds, p, n


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
    numbers = {"value": finite(value), "low": finite(low), "high": finite(high), "n": int(n)}
    return {"benchmark": about["benchmark"], "arm": about["arm"], "metric": metric, **numbers,
            "unit": unit or UNITS.get(base, "fraction"),
            **{k: about[k] for k in ("dataset", "split", "device", "seeds", "preset", "command",
                                     "versions", "date")}}


def _by_run(values: np.ndarray) -> np.ndarray:
    """(R,) means over the patients who have the metric in all runs; `values` (n, R), NaN where
    undefined. Else a run that misses a hard scar would seem better, and seeds to differ."""
    return nanmean(values[~np.isnan(values).any(axis=1)], 0)


def _spread(runs: np.ndarray) -> tuple[float, int]:
    """Standard deviation of the runs that are defined, and how many they are."""
    runs = _present(runs)
    return (runs.std(ddof=1) if runs.size > 1 else np.nan), runs.size


def _present(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
