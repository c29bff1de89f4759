"""Laws of the comparison: known permutation p, honest nulls, pairing, and no gain without proof."""

import json

import numpy as np
import pytest

from nnunet_lgesynth.benchmark.arms import Arm
from nnunet_lgesynth.benchmark.compare import (
    compare,
    flip_p,
    interval,
    training_rows,
    verdict,
)
from nnunet_lgesynth.benchmark.metrics import aggregate
from nnunet_lgesynth.config import UserError

CONTEXT = {"benchmark": "test", "dataset": "Dataset900_Toy", "split": "fold 0",
           "command": "lgesynth benchmark"}
KEYS = ["benchmark", "arm", "metric", "value", "low", "high", "n", "unit", "dataset", "split",
        "device", "seeds", "preset", "command", "versions", "date"]


def case(arm, name, dice, seed=0, scar=True, found=True, no_reflow=None, burdens=None, fold=0,
         split="validation"):
    slices = burdens or [[0, 0.2 * scar, 0.2 * found], [1, 0.0, 0.0]]
    return {"arm": arm, "fold": fold, "seed": seed, "case": name, "split": split, "preset": None,
            "dice": dice, "dice_tp": dice if scar else None, "no_reflow_dice": no_reflow,
            "volume_error_percent": -2.0, "has_scar": scar, "found_scar": found, "slices": slices}


def number(found, arm, metric):
    hits = [r for r in found.rows if (r["arm"], r["metric"]) == (arm, metric)]
    assert len(hits) == 1, (arm, metric)
    return hits[0]


def last_mean(values):
    return values.mean(axis=-1)


def cohort(gain, n=10, seeds=(0,), noise=0.02):
    rng = np.random.default_rng(3)
    rows = []
    for i in range(n):
        base = rng.uniform(0.3, 0.7)
        for seed in seeds:
            real, other = base + noise * rng.normal(size=2)
            rows += [case("real", f"p{i}", real, seed), case("paint", f"p{i}", other + gain, seed)]
    return rows


def test_sign_flip_is_exhaustive_for_few_patients():
    assert flip_p((np.array([0.1, 0.2, 0.3, 0.4, 0.5]),), last_mean) == pytest.approx(2 / 32)
    # sums at least as large as that of (1, 2, -0.5): 2 of 8 sign patterns, 2.5 and 3.5
    assert flip_p((np.array([1.0, 2.0, -0.5]),), last_mean) == pytest.approx(2 * 2 / 8)
    assert flip_p((np.zeros(4),), last_mean) == 1.0
    assert flip_p((np.array([0.3]),), last_mean) == 1.0


def test_means_are_over_seeds_within_a_patient_then_over_patients():
    rows = [case("real", "a", 0.2, 0), case("real", "a", 0.4, 1), case("real", "b", 0.9, 0)]
    found = compare(rows, CONTEXT, 50)
    row = number(found, "real", "dice_tp")
    assert row["value"] == pytest.approx((0.3 + 0.9) / 2) and row["n"] == 2
    assert row["seeds"] == [0, 1]
    spread = number(found, "real", "dice_tp_seed_std")
    assert spread["value"] == pytest.approx(np.std([0.55, 0.4], ddof=1)) and spread["n"] == 2
    assert {"arm": "real", "case": "a", "dice_tp": 0.3}.items() <= found.patients[0].items()


def test_rows_have_the_fields_of_every_number():
    for row in compare(cohort(0.1), CONTEXT, 50).rows:
        assert list(row) == KEYS
    json.dumps(compare(cohort(0.1), CONTEXT, 50).rows, allow_nan=False)


def test_a_clear_gain_is_shown_and_an_interval_around_zero_is_not():
    gain = compare(cohort(0.2), CONTEXT, 500)
    difference = number(gain, "paint", "dice_tp_diff_vs_real")
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert number(gain, "paint", "dice_tp_p_vs_real")["value"] == pytest.approx(
        2 / 2 ** 10, abs=1e-6)
    assert gain.verdict[0].startswith("Gain shown: paint, Dice-TP +0.")
    none = compare(cohort(0.0), CONTEXT, 500)
    difference = number(none, "paint", "dice_tp_diff_vs_real")
    assert difference["low"] < 0 < difference["high"]
    assert none.verdict[0].startswith("No gain shown")
    loss = compare(cohort(-0.2), CONTEXT, 500)
    assert loss.verdict[0].startswith("No gain shown") and "Loss shown: paint" in loss.verdict[0]


def test_two_patients_never_show_a_gain():
    rows = [case(arm, name, dice) for arm, name, dice in (
        ("real", "a", 0.1), ("real", "b", 0.2), ("paint", "a", 0.8), ("paint", "b", 0.7))]
    assert compare(rows, CONTEXT, 200).verdict[0].startswith("No gain shown")


def test_a_difference_pairs_only_what_both_arms_have():
    rows = cohort(0.1, n=6, noise=0)
    rows += [case("real", "only_real", 0.0), case("paint", "p0", 0.0, seed=7)]
    difference = number(compare(rows, CONTEXT, 50), "paint", "dice_tp_diff_vs_real")
    assert difference["value"] == pytest.approx(0.1) and difference["n"] == 6


def test_filtered_arms_are_compared_with_the_filtered_reference():
    rows = cohort(0.1, n=4)
    rows += [{**r, "arm": r["arm"] + "+filter"} for r in rows]
    metrics = {(r["arm"], r["metric"]) for r in compare(rows, CONTEXT, 50).rows}
    assert ("paint+filter", "dice_tp_diff_vs_real+filter") in metrics
    assert ("real+filter", "dice_tp_diff_vs_real") in metrics
    assert ("paint+filter", "dice_tp_diff_vs_real") not in metrics


def test_the_real_slices_own_pass_rate_is_that_of_the_reference_over_slices():
    rows = [{**case("real", "a", 0.5), "scar_slices": [[0, 0.7], [1, 0.6], [2, 0.59]]},
            {**case("real", "b", 0.5), "scar_slices": [[0, 0.1]]},
            {**case("paint", "a", 0.5), "scar_slices": [[0, 0.9]]}]
    found = compare(rows, CONTEXT)
    assert (number(found, "real", "qc_pass_real")["value"],
            number(found, "real", "qc_pass_real")["n"]) == (0.5, 4)
    assert not [r for r in found.rows if r["metric"] == "qc_pass_real" and r["arm"] != "real"]


@pytest.mark.parametrize("rows", [
    [case("real", "a", 0.5), case("paint", "a", 0.6)],
    [case(arm, name, 0.5) for arm in ("real", "paint") for name in "abc"],
    [case(arm, name, 1.0, scar=False, found=False) for arm in ("real", "paint") for name in "ab"],
    [case("real", "a", 0.5), case("paint", "b", 0.5)],
], ids=["one patient", "all equal", "nobody has scar", "nothing shared"])
def test_degenerate_input_gives_null_intervals(rows):
    found = compare(rows, CONTEXT, 50)
    assert all(r["low"] is None and r["high"] is None for r in found.rows)
    assert found.verdict[0].startswith("No gain shown")
    json.dumps(found.rows, allow_nan=False)


def test_slice_auroc_and_counts_are_per_seed_then_averaged():
    perfect = [[0, 0.3, 0.3], [1, 0.0, 0.0]]
    wrong = [[0, 0.3, 0.0], [1, 0.0, 0.3]]
    rows = [case("real", "a", 0.5, 0, burdens=perfect), case("real", "a", 0.5, 1, burdens=wrong),
            case("real", "b", 0.0, 0, scar=False, found=True, burdens=[[0, 0.0, 0.1]]),
            case("real", "b", 1.0, 1, scar=False, found=False, burdens=[[0, 0.0, 0.1]])]
    found = compare(rows, CONTEXT, 50)
    assert number(found, "real", "slice_auroc")["value"] == pytest.approx((1 + 0) / 2)
    counts = [number(found, "real", c)["value"] for c in ("tn", "fp", "fn", "tp")]
    assert counts == [0.5, 0.5, 0, 1]


def test_resampling_by_counts_is_the_metric_of_the_repeated_rows():
    rng = np.random.default_rng(5)
    rows = []
    for i in range(7):
        scar = i % 3 > 0
        burdens = [[z, float(scar and rng.random() < 0.6), float(rng.integers(0, 4)) / 4]
                   for z in range(5)]
        rows.append(case("real", f"p{i}", 0.5, scar=scar, found=bool(rng.random() < 0.5),
                         burdens=burdens))
    arm = Arm.of(rows)
    resamples = rng.integers(0, 7, (20, 7))
    for metric in ("slice_auroc", "accuracy", "balanced_accuracy"):
        expected = [aggregate([rows[i] for i in r])[metric] for r in resamples]
        assert arm.resampled(metric, resamples) == pytest.approx(expected)


def test_swapping_identical_arms_changes_nothing():
    rows = cohort(0.0, n=5, noise=0)
    found = compare(rows, CONTEXT, 50)
    assert number(found, "paint", "slice_auroc_diff_vs_real")["value"] == 0
    assert number(found, "paint", "slice_auroc_p_vs_real")["value"] == 1


def test_external_runs_are_fold_and_seed():
    rows = [case("real", "a", d, seed, fold=fold, split="external")
            for d, seed, fold in ((0.1, 0, 0), (0.2, 0, 1), (0.6, 1, 0))]
    found = compare(rows, CONTEXT, 50)
    assert number(found, "real", "dice_tp")["value"] == pytest.approx(0.3)
    assert number(found, "real", "dice_tp_seed_std")["n"] == 3


def test_the_interval_covers_the_mean_of_a_normal_sample():
    values = np.random.default_rng(0).normal(size=40)
    low, high = interval(40, lambda i: values[i].mean(-1), 1000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(40)
    assert low == pytest.approx(values.mean() - half, abs=0.08)
    assert high == pytest.approx(values.mean() + half, abs=0.08)


def test_training_rows_and_missing_reference():
    summary = {"arm": "paint", "seed": 0, "preset": None, "injected_fraction": 0.3,
               "drafted": 10, "accepted": 4, "qc_pass_own": 0.4, "pool_burden": 0.2,
               "real_burden": None}
    rows = training_rows([summary, {**summary, "seed": 1, "injected_fraction": 0.5}], CONTEXT)
    assert [(r["metric"], r["value"], r["n"]) for r in rows] == [
        ("injected_fraction", 0.4, 2), ("pool_burden", 0.2, 2), ("qc_pass_own", 0.4, 20)]
    unjudged = training_rows([{**summary, "qc_pass_own": None}], CONTEXT)
    assert "qc_pass_own" not in {r["metric"] for r in unjudged}
    assert verdict(rows)[0].startswith("No comparison")
    with pytest.raises(UserError):
        compare([], CONTEXT)


def test_numbers_come_with_the_device_versions_and_date_of_their_own_rows():
    trained = {"real": {"device": "gpu", "versions": {"torch": "2.14"}, "date": "2026-02-01"},
               "paint": {"device": "cpu", "versions": {"torch": "2.15"}, "date": "2026-01-01"}}
    found = compare([{**r, **trained[r["arm"]]} for r in cohort(0.1)], CONTEXT, 30)
    for arm, origin in trained.items():
        assert origin.items() <= number(found, arm, "dice_tp").items()
    both = {"device": "cpu, gpu", "versions": {"torch": "2.14, 2.15"}, "date": "2026-02-01"}
    assert both.items() <= number(found, "paint", "dice_tp_diff_vs_real").items()
    untold = compare(cohort(0.1), CONTEXT, 30)
    assert {r["device"] for r in untold.rows} == {"unknown"}
