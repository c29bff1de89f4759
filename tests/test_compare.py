"""Laws of the comparison: pairing, honest nulls, no verdict without proof, and metrics of a run as
scikit-learn has them."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    recall_score,
    roc_auc_score,
)

from nnunet_lgesynth.benchmark.arms import CLASSES, PER_RUN, Arm
from nnunet_lgesynth.benchmark.compare import compare, mixed_generators, training_rows
from nnunet_lgesynth.benchmark.verdict import verdict
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
            "has_scar": scar, "found_scar": found, "slices": slices}


def number(found, arm, metric):
    hits = [r for r in found.rows if (r["arm"], r["metric"]) == (arm, metric)]
    assert len(hits) == 1, (arm, metric)
    return hits[0]


def cohort(gain, n=10, seeds=(0,), noise=0.02):
    rng = np.random.default_rng(3)
    rows = []
    for i in range(n):
        base = rng.uniform(0.3, 0.7)
        for seed in seeds:
            real, other = base + noise * rng.normal(size=2)
            rows += [case("real", f"p{i}", real, seed), case("paint", f"p{i}", other + gain, seed)]
    return rows


def test_means_are_over_seeds_within_a_patient_then_over_patients():
    rows = [case("real", "a", 0.2, 0), case("real", "a", 0.4, 1), case("real", "b", 0.9, 0)]
    found = compare(rows, CONTEXT, 50)
    row = number(found, "real", "dice_tp")
    assert row["value"] == pytest.approx((0.3 + 0.9) / 2) and row["n"] == 2
    assert row["seeds"] == [0, 1]
    spread = number(found, "real", "dice_tp_seed_std")
    # of patient a alone: b, which one seed lacks, says nothing about seeds
    assert spread["value"] == pytest.approx(np.std([0.2, 0.4], ddof=1), abs=1e-6)
    assert spread["n"] == 2
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
    assert gain.verdict[0].startswith("Helps: paint, Dice-TP +0.")
    none = compare(cohort(0.0), CONTEXT, 500)
    difference = number(none, "paint", "dice_tp_diff_vs_real")
    assert difference["low"] < 0 < difference["high"]
    assert none.verdict[0].startswith("No evidence")
    loss = compare(cohort(-0.2), CONTEXT, 500)
    assert loss.verdict[0].startswith("Harms: paint, Dice-TP -0.")


def test_two_patients_never_show_a_gain():
    rows = [case(arm, name, dice) for arm, name, dice in (
        ("real", "a", 0.1), ("real", "b", 0.2), ("paint", "a", 0.8), ("paint", "b", 0.7))]
    assert compare(rows, CONTEXT, 200).verdict[0].startswith("No evidence")


def test_a_difference_pairs_only_what_both_arms_have():
    rows = cohort(0.1, n=6, noise=0)
    rows += [case("real", "only_real", 0.0), case("paint", "p0", 0.0, seed=7)]
    difference = number(compare(rows, CONTEXT, 50), "paint", "dice_tp_diff_vs_real")
    assert difference["value"] == pytest.approx(0.1) and difference["n"] == 6


def test_comparisons_with_the_painter_and_with_more_patients_decide_nothing():
    """However clear they are."""
    gains = {"real": 0, "paint": 0.2, "lgesynth": 0, "real:n=20": -0.2, "lgesynth:n=20": -0.2,
             "real:n=40": 0}
    rng = np.random.default_rng(0)
    rows = [case(arm, f"p{i}", 0.5 + gain + 0.02 * rng.normal()) for arm, gain in gains.items()
            for i in range(10)]
    found = compare(rows, CONTEXT, 200)
    headline = found.verdict[0].partition(" One seed of")[0]
    assert re.findall(r"Helps|Harms|lgesynth|paint", headline) == ["Helps", "paint"]
    told = " ".join(found.verdict)
    assert "lgesynth against paint, which decides nothing: Dice-TP -0." in told
    assert "lgesynth:n=20 against real:n=40, which decides nothing: Dice-TP -0." in told
    less = number(found, "lgesynth", "dice_tp_diff_vs_paint")
    assert less["high"] < 0 and number(found, "lgesynth", "dice_tp_p_vs_paint")["value"] < 0.05
    corrected = {r["metric"].partition("_vs_")[2] for r in found.rows if "_p_holm_" in r["metric"]}
    assert corrected == {"real", "real:n=20"}


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
    again = [{**rows[0], "seed": 1, "scar_slices": [[0, 0.1], [1, 0.1], [2, 0.1]]}]
    found = compare([*rows, *again], CONTEXT)          # of two seeds, three slices by one half each
    assert (number(found, "real", "qc_pass_real")["value"],
            number(found, "real", "qc_pass_real")["n"]) == (0.25, 4)
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
    assert re.match("No evidence|No comparison", found.verdict[0])
    json.dumps(found.rows, allow_nan=False)


def test_nothing_compared_is_no_evidence_of_anything():
    for arm in ("lgesynth:n=20", "real:n=20"):
        rows = [case(a, name, 0.5) for a in ("real", arm) for name in "ab"]
        assert compare(rows, CONTEXT, 50).verdict[0].startswith("No comparison")


def test_a_run_that_lacks_patients_costs_neither_means_nor_spread():
    rows = [case("real", f"p{i}", 0.1 * i, seed, scar=i < 4) for i in range(8) for seed in (0, 1)
            if seed == 0 or i < 4]                       # seed 1 has scarred patients alone
    found = compare(rows, CONTEXT, 50)
    for metric in ("slice_auroc", "specificity", "accuracy"):
        assert number(found, "real", metric)["value"] is not None
    assert number(found, "real", "dice_seed_std")["value"] == 0        # the same in both seeds


def test_counts_add_up_to_the_patients_however_many_seeds_each_has():
    rows = [case("real", f"p{i}", 0.5, seed, scar=i < 2, found=seed > 0) for i in range(4)
            for seed in range(3) if seed == 0 or i < 3]
    found = compare(rows, CONTEXT, 50)
    counts = {c: number(found, "real", c)["value"] for c in ("tn", "fp", "fn", "tp")}
    assert counts == pytest.approx({"tn": 4 / 3, "fp": 2 / 3, "fn": 2 / 3, "tp": 4 / 3})
    assert sum(counts.values()) == pytest.approx(4)
    assert any("Not every patient has every seed in real" in told for told in found.verdict)
    assert not any("Not every" in told for told in compare(cohort(0.1), CONTEXT, 50).verdict)


def test_a_difference_tells_the_seeds_it_is_made_of_and_their_spread():
    rows = [case(arm, f"p{i}", 0.5 + gain * seed, seed) for i in range(4)
            for arm, gain, seeds in (("real", 0.0, (0, 1)), ("paint", 0.1, (0, 1, 2)))
            for seed in seeds]
    found = compare(rows, CONTEXT, 50)
    assert number(found, "paint", "dice_tp")["seeds"] == [0, 1, 2]
    assert number(found, "paint", "dice_tp_diff_vs_real")["seeds"] == [0, 1]
    spread = number(found, "paint", "dice_tp_diff_seed_std_vs_real")
    assert spread["n"] == 2
    assert spread["value"] == pytest.approx(np.std([0.0, 0.1], ddof=1), abs=1e-6)
    assert number(found, "paint", "slice_auroc_diff_seed_std_vs_real")["value"] == 0
    one = compare([r for r in rows if (r["arm"], r["seed"]) not in (("real", 1), ("paint", 0))]
                  + [case("real", f"p{i}", 0.4, 2) for i in range(4)], CONTEXT, 50)
    assert number(one, "paint", "dice_tp_diff_vs_real")["seeds"] == [2]
    assert one.verdict[-1].startswith("One seed of paint, in some patients at least: ")


def test_a_scar_that_one_seed_misses_is_no_spread_between_seeds():
    """Its distance is undefined there; the others' is the same in all seeds."""
    rows = [{**case(arm, name, 0.5, seed), "hd95_mm": None if missed else mm}
            for arm in ("real", "paint") for name, mm in (("easy", 5.0), ("hard", 40.0))
            for seed in (0, 1)
            for missed in [(arm, name, seed) == ("paint", "hard", 1)]]
    found = compare(rows, CONTEXT, 50)
    for metric in ("hd95_mm_seed_std", "hd95_mm_diff_seed_std_vs_real"):
        assert number(found, "paint", metric)["value"] == 0


def test_the_headline_names_what_was_tested_alone():
    assert compare(cohort(0.0), CONTEXT, 200).verdict[0] == (
        "No evidence: no difference from real is shown in Dice-TP, slice AUROC.")
    cored = [{**r, "no_reflow_dice": 0.1} for r in cohort(0.0)]
    assert "Dice-TP, no-reflow Dice, slice AUROC." in compare(cored, CONTEXT, 200).verdict[0]


def test_a_gain_of_one_seed_is_one_of_these_networks():
    one, two = (compare(cohort(0.2, seeds=seeds), CONTEXT, 200).verdict for seeds in ((0,), (0, 1)))
    assert one[0].startswith("Helps: paint") and "One seed of paint: these networks" in one[0]
    assert two[0].startswith("Helps: paint") and "One seed" not in " ".join(two)


def test_an_external_image_seen_by_several_folds_has_one_seed():
    rows = [{**r, "split": "external", "fold": fold} for r in cohort(0.2) for fold in range(3)]
    found = compare(rows, CONTEXT, 200)
    assert number(found, "paint", "fewest_seeds_vs_real")["value"] == 1
    assert "One seed of paint: these networks" in found.verdict[0]


def test_who_has_one_seed_is_told_arm_by_arm_and_by_the_patient_who_has_fewest():
    rows = [r for r in cohort(0.2, seeds=(0, 1)) if (r["arm"], r["seed"]) != ("paint", 1)]
    rows += [{**r, "arm": "lgesynth"} for r in cohort(0.2, seeds=(0, 1)) if r["arm"] == "paint"]
    told = compare(rows, CONTEXT, 200).verdict
    assert "lgesynth" in told[0] and "One seed of paint: these" in told[0]
    assert told[-1].startswith("One seed of paint, in some")
    some = [r for r in cohort(0.2, seeds=(0, 1)) if r["seed"] == 0 or r["case"] < "p5"]
    assert "One seed of paint: these" in compare(some, CONTEXT, 200).verdict[0]


def test_patients_with_more_seeds_weigh_no_more():
    """A second seed on one fold that found the same changes nothing, in any metric."""
    rng, rows = np.random.default_rng(2), []
    for fold in range(3):
        for i in range(6):
            scar = i < 4
            for arm, shift in (("real", 0.0), ("paint", 0.1)):
                rows.append({**case(arm, f"f{fold}p{i}", float(rng.random()), scar=scar,
                                    found=bool(rng.random() < 0.7), fold=fold, burdens=[
                                        [z, float(scar and z < 2), float(rng.random() + shift * z)]
                                        for z in range(4)]),
                             "predicted_percent": float(rng.random()), "true_percent": 3.0 * scar,
                             "lesions": rng.integers(0, 3, 3).tolist(),
                             "segments": [[s, *rng.random(2)] for s in range(1, 7)]})
    once, again = (compare([*rows, *more], CONTEXT, 100) for more in (
        [], [{**r, "seed": 1} for r in rows if r["fold"] == 0]))
    found = {(r["arm"], r["metric"]): r for r in again.rows}
    for row in once.rows:
        same = found[row["arm"], row["metric"]]
        for name in ("value", "low", "high", "n"):
            assert same[name] == pytest.approx(row[name], abs=1e-9), (row["metric"], name)
    assert any("Not every patient has every seed in real, paint" in s for s in again.verdict)


def test_stacks_of_one_patient_count_as_one_patient(many):
    """Each number is that of a cohort in which the patient has the mean of both."""
    pair = [{**many[1], "case": f"stack{k}", "patient": "stack0", "dice": dice, "dice_tp": dice,
             "has_scar": True, "true_percent": 4.0} for k, dice in enumerate((0.2, 0.6))]
    rows = [{**r, "arm": arm, "true_percent": 9.0 * r["has_scar"], "dice": r["dice"] + gain,
             "dice_tp": r["dice"] + gain if r["has_scar"] else None}
            for arm, gain in (("real", 0.0), ("paint", 0.1)) for r in [*many, *pair]]
    found = compare(rows, CONTEXT, 100)
    one = compare([{**r, "case": "stack0", "dice": r["dice"] + 0.2, "dice_tp": r["dice_tp"] + 0.2}
                   if r["case"] == "stack0" else r for r in rows if r["case"] != "stack1"],
                  CONTEXT, 100)
    assert len(found.patients) == 2 * 8 and number(found, "real", "dice")["n"] == 8
    assert number(found, "paint", "dice_tp_diff_vs_real")["n"] == 5
    alone = {(r["arm"], r["metric"]): r for r in one.rows}
    for row in found.rows:
        same = alone[row["arm"], row["metric"]]
        for name in ("value", "low", "high", "n"):
            assert row[name] == pytest.approx(same[name], abs=1e-9), (row["metric"], name)


def test_arms_that_tell_other_patients_of_a_stack_are_refused():
    rows = cohort(0.1)
    told = [{**r, "patient": "p0"} if r["arm"] == "paint" and r["case"] == "p1" else r
            for r in rows]
    with pytest.raises(UserError, match=r"p1 is of p1 in one row and of p0 in another"):
        compare(told, CONTEXT, 50)


def test_what_the_filter_alone_shows_is_told_below_the_headline():
    rows = cohort(0.0) + [{**r, "arm": r["arm"] + "+filter"} for r in cohort(0.2)]
    found = compare(rows, CONTEXT, 200).verdict
    assert found[0].startswith("No evidence")
    assert any(told.startswith("After the volume filter, corrected among filtered arms: Helps: "
                               "paint+filter, Dice-TP +0.") for told in found)


def test_arms_of_few_patients_need_no_real_with_all():
    rows = [{**r, "arm": {"real": "real:n=20", "paint": "paint:n=20"}[r["arm"]]}
            for r in cohort(0.2)]
    assert compare(rows, CONTEXT, 200).verdict[0].startswith("Helps: paint:n=20, Dice-TP +0.")


def test_seeds_of_different_generators_are_no_seeds_of_one_arm():
    def trained(seed, *hashes):
        return {"arm": "lgesynth", "fold": 0, "seed": seed, "generators": list(hashes)}
    assert mixed_generators([trained(0, "a"), trained(1, "a"), trained(2)]) == []
    told, = mixed_generators([trained(0, "a"), trained(1, "b")])
    assert told.startswith("lgesynth, fold 0: its trainings drew from 2 generators (a, b)")


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


@pytest.fixture
def many():
    """Seven patients with all that the metrics of a run are made of."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(7):
        scar = i % 3 > 0
        burdens = [[z, float(scar and rng.random() < 0.6), float(rng.integers(0, 4)) / 4]
                   for z in range(5)]
        rows.append({**case("real", f"p{i}", 0.5, scar=scar, found=bool(rng.random() < 0.5),
                            burdens=burdens), "predicted_percent": float(rng.integers(0, 4)),
                     "lesions": rng.integers(0, 4, 3).tolist(),
                     "segments": [[s, *rng.random(2)] for s in range(1, 7)]})
    return rows


def test_metrics_of_a_run_are_scikit_learns(many):
    """So are those of a resample: each patient counts as often as it was drawn."""
    arm = Arm.of(many)
    for chosen in (np.arange(7), *np.random.default_rng(1).integers(0, 7, (20, 7))):
        drawn = [many[i] for i in chosen]
        slices = np.array([s[1:] for r in drawn for s in r["slices"]])
        patients = np.array([(r["has_scar"], r["found_scar"]) for r in drawn], bool)
        segments = np.array([s[1:] for r in drawn for s in r["segments"]])
        found, false, missed = np.sum([r["lesions"] for r in drawn], axis=0)
        expected = {"lesion_f1": 2 * found / (2 * found + false + missed),
                    "segment_kappa": cohen_kappa_score(*np.digitize(segments, CLASSES).T,
                                                       weights="quadratic")}
        volumes = np.array([r["predicted_percent"] for r in drawn])
        for of, truth, score, seen in (
                ("", patients[:, 0], volumes, patients[:, 1]),
                ("slice_", slices[:, 0] > 0, slices[:, 1], slices[:, 1] > 0)):
            if len(set(truth)) < 2:
                continue
            expected |= {
                "slice_auroc" if of else "patient_auroc": roc_auc_score(truth, score),
                f"{of}accuracy": accuracy_score(truth, seen),
                f"{of}balanced_accuracy": balanced_accuracy_score(truth, seen),
                f"{of}sensitivity": recall_score(truth, seen),
                f"{of}specificity": recall_score(truth, seen, pos_label=0)}
        for metric, value in expected.items():
            assert arm.resampled(metric, chosen) == pytest.approx(value), metric
        if len(expected) == len(PER_RUN) and (chosen == np.arange(7)).all():
            assert {m: arm.per_run(m)[0] for m in PER_RUN} == pytest.approx(expected)
            counts = confusion_matrix(slices[:, 0] > 0, slices[:, 1] > 0).ravel()
            assert [arm.counts(c, "slice") for c in ("tn", "fp", "fn", "tp")] == counts.tolist()
    assert arm.per_run("slice_auroc").shape == (1,)


def test_rows_of_an_earlier_version_lack_what_was_not_measured_then(many):
    bare = [case("real", f"p{i}", 0.5, scar=i > 3) for i in range(7)]
    found = compare(bare, CONTEXT, 50)
    for metric in ("hd95_mm", "volume_mae_ml", "segment_jaccard", "segment_kappa", "lesion_f1"):
        assert number(found, "real", metric)["value"] is None
    assert number(found, "real", "slice_accuracy")["value"] is not None


def test_bias_has_a_sign_and_error_has_none():
    rows = [{**case("real", name, 0.5), "true_ml": 10.0, "predicted_ml": 10 + off,
             "true_percent": 5.0, "predicted_percent": 5.0 - off, "true_transmurality": 0.5,
             "predicted_transmurality": 0.4}
            for name, off in (("a", 3.0), ("b", -1.0))]
    found = compare(rows, CONTEXT, 50)
    for metric, value in (("volume_mae_ml", 2), ("volume_bias_ml", 1), ("volume_mae_percent", 2),
                          ("volume_bias_percent", -1), ("transmurality_mae", 0.1)):
        assert number(found, "real", metric)["value"] == pytest.approx(value)


def test_the_smallest_scars_are_the_third_of_patients_in_every_arm():
    rows = [{**case(arm, f"p{i}", 0.1 * i + shift, scar=i < 6), "true_percent": float(i + 1)}
            for arm, shift in (("real", 0.0), ("paint", 0.05)) for i in range(9)]
    found = compare(rows, CONTEXT, 50)
    small = number(found, "real", "dice_tp_small")
    assert (small["value"], small["n"]) == (pytest.approx(0.05), 2)
    assert number(found, "paint", "dice_tp_small_diff_vs_real")["value"] == pytest.approx(0.05)


def test_a_difference_in_dice_is_what_patients_with_and_without_scar_give():
    rows = [case("real", f"p{i}", 0.0, scar=i < 4) for i in range(10)]
    rows += [case("paint", f"p{i}", 0.1 if i < 4 else 0.5, scar=i < 4) for i in range(10)]
    found = compare(rows, CONTEXT, 50)
    parts = [number(found, "paint", f"dice_diff_{part}vs_real")["value"]
             for part in ("", "from_scarred_", "from_empty_")]
    assert parts == pytest.approx([0.34, 0.04, 0.3])
    assert "+0.040 is from patients with scar and +0.300 from those without" in found.verdict[1]


def test_mcnemar_counts_patients_that_one_arm_alone_tells_right():
    rows = [case("real", f"p{i}", 0.5, scar=i < 6, found=True) for i in range(9)]
    rows += [case("paint", f"p{i}", 0.5, scar=i < 6, found=0 < i < 7) for i in range(9)]
    found = compare(rows, CONTEXT, 50)
    assert [number(found, "paint", f"detection_{name}_vs_real")["value"]
            for name in ("gained", "lost", "p_mcnemar")] == [2, 1, 1.0]
    # two of three seeds must agree
    seeds = [case(arm, "a", 0.5, seed, scar=True, found=arm == "real" or seed == 0)
             for arm in ("real", "paint") for seed in range(3)]
    lost = number(compare(seeds, CONTEXT, 50), "paint", "detection_lost_vs_real")
    assert lost["value"] == 1
    tie = compare([r for r in seeds if r["seed"] < 2], CONTEXT, 50)      # neither right nor wrong
    assert number(tie, "paint", "detection_lost_vs_real")["value"] == 0


def test_a_gain_must_stand_the_correction_over_arms_and_metrics():
    alone = cohort(0.02, n=8)
    others = [{**r, "arm": f"nnUNetTrainer{k}"} for k in range(6) for r in cohort(0.0, n=8)
              if r["arm"] == "paint"]
    few, many = compare(alone, CONTEXT, 500), compare([*alone, *others], CONTEXT, 500)
    raw, one, seven = (number(found, "paint", f"dice_tp_{p}_vs_real")["value"]
                       for found, p in ((few, "p"), (few, "p_holm"), (many, "p_holm")))
    assert raw <= one < 0.05 < seven
    assert few.verdict[0].startswith("Helps: paint") and many.verdict[0].startswith("No evidence")
    assert number(few, "paint", "dice_tp_detectable_vs_real")["value"] > 0
    # 14 tests of 8 patients: 14 x 2 / 2**8 is above .05 whatever the effect
    assert not [r for r in many.rows if "detectable" in r["metric"]]


def test_an_early_look_is_corrected_over_the_arms_that_are_to_come():
    rows = cohort(0.015)
    alone, early = compare(rows, CONTEXT, 200), compare(rows, CONTEXT, 200, absent=["lgesynth"])
    raw = number(alone, "paint", "dice_tp_p_vs_real")["value"]
    slices = number(alone, "paint", "slice_auroc_p_vs_real")["value"]
    assert raw < 0.2 and slices == 1.0                   # two primary metrics are defined
    assert number(alone, "paint", "dice_tp_p_holm_vs_real")["value"] == pytest.approx(2 * raw)
    assert number(early, "paint", "dice_tp_p_holm_vs_real")["value"] == pytest.approx(4 * raw)
    assert (number(early, "paint", "dice_tp_detectable_vs_real")["value"]
            > number(alone, "paint", "dice_tp_detectable_vs_real")["value"])
    assert not any(r["arm"].startswith("lgesynth") for r in early.rows)


def test_patients_who_did_not_change_show_nothing():
    """Flips of their signs are none: three who changed have no p below 0.25."""
    rows = cohort(0.1, n=9)
    still = [{**r, "dice_tp": 0.5} if r["case"] in {f"p{i}" for i in range(3, 9)} else r
             for r in rows]
    sizes = [[r["metric"] for r in compare(found, CONTEXT, 100).rows if "detectable" in r["metric"]]
             for found in (rows, still)]
    assert sizes == [["dice_tp_detectable_vs_real"], []]
    filtered = [{**r, "arm": r["arm"] + "+filter"} for r in rows]
    assert not [r for r in compare(rows + filtered, CONTEXT, 100).rows
                if r["arm"] == "real+filter" and "detectable" in r["metric"]]


def test_patients_are_told_apart_in_every_resample():
    """Of 14 patients with 3 scar-free ones most studies of 2,000 resamples would miss the latter in
    one."""
    rng = np.random.default_rng(0)
    rows = [{**case(arm, f"p{i}", 0.5, scar=i > 2, found=bool(rng.random() < 0.7)),
             "predicted_percent": 5.0 * (i > 2) + 4 * rng.normal()}
            for arm in ("real", "paint") for i in range(14)]
    found = compare(rows, CONTEXT, 500)
    for metric in ("patient_auroc", "balanced_accuracy", "patient_auroc_diff_vs_real"):
        row = number(found, "paint", metric)
        assert row["low"] < row["value"] < row["high"], metric


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
