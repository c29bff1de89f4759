"""Paired differences between two arms, over the patients and seeds that both have."""

from __future__ import annotations

import numpy as np

from nnunet_lgesynth.benchmark.arms import (
    PER_PATIENT,
    UNITS,
    Arm,
    found_by_most,
    patient_of,
    present,
    run_means,
    run_of,
    spread,
)
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.benchmark.statistics import detectable, flip_p, interval, mcnemar_p
from nnunet_lgesynth.benchmark.verdict import PRIMARY

__all__ = ["difference_rows", "mean_difference", "run_difference"]

FLIPS_A_RESAMPLE = 5       # p values must stand a correction for many arms, intervals need not


def difference_rows(rows: list[dict], reference_rows: list[dict], reference: str, about: dict,
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
            moved = present(change[change != 0])      # flips of the others are none
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
                by_run = run_means(arm.values[metric][n:] - arm.values[metric][:n])
            else:
                by_run = arm.per_run(metric, halves[1]) - arm.per_run(metric, halves[0])
            deviation, runs = spread(by_run)
            found.append(number_row(about, f"{metric}_diff_seed_std_vs_{reference}", deviation,
                                    n=runs, unit=UNITS[metric]))
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


def mean_difference(differences: np.ndarray, resamples: int):
    """(mean, 95 % interval, p, n) of paired differences (n,); NaN are no pairs."""
    differences = present(differences)
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
