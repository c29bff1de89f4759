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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_lgesynth.benchmark.arms import (
    COUNTS,
    PER_PATIENT,
    UNITS,
    Arm,
    mark_small,
    patient_of,
    present,
    run_means,
    spread,
)
from nnunet_lgesynth.benchmark.collect import LIKENESS
from nnunet_lgesynth.benchmark.differences import difference_rows
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.benchmark.records import FILTERED, origin_of
from nnunet_lgesynth.benchmark.statistics import finite, holm, interval
from nnunet_lgesynth.benchmark.variants import (
    REFERENCE,
    further_references,
    is_tested,
    reference_of,
)
from nnunet_lgesynth.benchmark.verdict import PRIMARY, tests_of, verdict
from nnunet_lgesynth.config import QCConfig, UserError

__all__ = ["Comparison", "compare", "mixed_generators", "training_rows"]


@dataclass(frozen=True)
class Comparison:
    """Number rows, per-patient means over seeds ([{"arm", "case", metric: value}]), sentences."""

    rows: list[dict]
    patients: list[dict]
    verdict: list[str]


def compare(cases: Iterable[dict], context: dict, resamples: int = 2000,
            absent: Sequence[str] = ()) -> Comparison:
    """Compare the arms of one split.

    Parameters
    ----------
    cases : per-case rows (`collect.collect_cases`) of one split.
    context : every number row's benchmark, dataset, split and command; device, versions and date
        are those of the rows a number is made of.
    resamples : of the bootstrap; permutation tests that are not exhaustive take five times as many.
    absent : further arms that were asked for and have no rows yet: their tests count, so that an
        early look has no milder correction.
    """
    by_arm: dict[str, list[dict]] = {}
    for row in mark_small(cases):
        by_arm.setdefault(row["arm"], []).append(row)
    if not by_arm:
        raise UserError("There are no per-case rows to compare; name a finished fold and seed.")
    _refuse_two_patients(row for found in by_arm.values() for row in found)
    rows, patients, uneven = [], [], []
    defined = sum(metric not in PER_PATIENT or any(
        row.get(metric) is not None for found in by_arm.values() for row in found)
        for metric in PRIMARY)
    tests = tests_of([*by_arm, *absent], defined)
    to_come = tests - tests_of(by_arm, defined)
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
                rows += difference_rows(
                    arm_rows, by_arm[reference], reference, both, resamples,
                    tests if reference == corrected and is_tested(name) else None)
    rows += [row for filtered in (False, True) for row in _holm_rows(rows, filtered, to_come)]
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
            values = present(arm.per_patient(metric))
            value, n = values.mean() if values.size else np.nan, values.size
            bounds = interval(n, lambda i, v=values: v[i].mean(axis=-1), resamples)
        else:
            n = len(arm.cases)
            value = float(arm.resampled(metric, np.arange(n)))
            bounds = interval(n, lambda i, m=metric: arm.resampled(m, i), resamples,
                              arm.strata(metric))
        rows.append(number_row(about, metric, value, *bounds, n=n))
        if len(arm.sums) > 1:
            deviation, runs = spread(run_means(arm.values[metric]) if metric in PER_PATIENT
                                   else arm.per_run(metric, arm.common))
            rows.append(number_row(about, f"{metric}_seed_std", deviation, n=runs))
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


def _holm_rows(rows: list[dict], filtered: bool, to_come: int) -> list[dict]:
    """Corrected p values of the primary metrics, over metrics and all arms, filtered or not, and
    over the tests that are `to_come`."""
    family = [r for metric in PRIMARY for r in rows
              if r["metric"] == f"{metric}_p_vs_{reference_of(r['arm'])}"
              and is_tested(r["arm"]) and r["arm"].endswith(FILTERED) == filtered]
    return [{**row, "metric": row["metric"].replace("_p_vs_", "_p_holm_vs_"), "value": finite(p)}
            for row, p in zip(family, holm([*(r["value"] for r in family), *[1.0] * to_come]))]


def _about(arm: str, rows: list[dict], context: dict) -> dict:
    return {**context, **origin_of(rows), "arm": arm, "seeds": sorted({r["seed"] for r in rows}),
            "preset": rows[0]["preset"]}
