"""Laws of `benchmarks.generator`: a fixed test set, distances and classifiers that can tell."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_fold import write_tiny_fold
from tiny_inpaint import haar_config
from tiny_nnunet import write_tiny_model

from benchmarks import drafts, realism, records, testset
from benchmarks.generator import Bench, _refuse_twice, _row
from benchmarks.judges import RESIDUAL_PLANS, halves, residual_plans
from benchmarks.tables import COLUMNS, markdown, table
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.generators.inpaint.train import fit
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.judge.segmenter import Segmenter

ABOUT = {"benchmark": "generator", "dataset": "tiny", "split": "validation, fold 0", "seeds": [0],
         "device": "cpu", "command": "", "versions": {}, "date": "2026-01-01"}


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    return write_tiny_fold(tmp_path_factory.mktemp("fold"), cases=10)


@pytest.fixture(scope="module")
def patients(fold):
    return testset.patients(fold)


@pytest.fixture(scope="module")
def requests(fold):
    return testset.draw(fold, n=12)


def test_the_test_set_is_read_as_it_was_drawn(fold, patients, requests, tmp_path):
    testset.write(tmp_path / "set.jsonl", requests)
    assert testset.read(tmp_path / "set.jsonl") == requests == testset.draw(fold, n=12)
    for asked in requests:
        assert asked.case in fold.val and patients[asked.case].anatomy.paintable[asked.z]
        mask = asked.mask(patients[asked.case])
        assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [asked.z]
        assert (mask > 0).sum() == asked.pixels >= QCConfig().min_pixels


def test_a_changed_heart_or_a_missing_set_is_refused(patients, requests, tmp_path):
    wrong = dataclasses.replace(requests[0], pixels=requests[0].pixels + 1)
    with pytest.raises(UserError, match="Draw a new set"):
        wrong.mask(patients[wrong.case])
    with pytest.raises(UserError, match=r"benchmarks\.testset"):
        testset.read(tmp_path / "none.jsonl")


def test_judges_share_no_patient_and_each_has_scars(fold):
    mine = halves(fold)
    assert sorted(mine["own"] + mine["independent"]) == list(fold.train)
    assert not set(mine["own"]) & set(mine["independent"])
    for half in mine.values():
        assert 0 < sum(np.isin(fold.read(i).labels, fold.info.roles.scars).any() for i in half)
    plans = residual_plans(fold)
    assert plans["plans_name"] == RESIDUAL_PLANS != fold.plans_name
    kind = plans["configurations"]["2d"]["architecture"]["network_class_name"]
    assert kind.endswith("ResidualEncoderUNet")


def test_distances_are_zero_without_a_difference_and_grow_with_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 20))
    measures = {realism.kernel_distance: 5, realism.frechet_distance: 1}
    for measure, noise in measures.items():
        near, far, farther = (measure(a + shift, b) for shift in (0, 0.5, 1))
        assert abs(near) < noise < far < farther
    patients = [str(k % 20) for k in range(300)]
    value, low, high = realism.distance_interval(a, b, patients, patients)
    assert low < value < high and low < 0 < high      # unbiased: below 0 half of the time
    assert realism.distance_interval(a, b, ["one"] * 300, patients) == (value, None, None)


def test_a_distance_varies_as_its_patients_do():
    """Crops of a patient that are alike tell no more than one of them."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(20, 20)).repeat(15, 0) for _ in "ab")
    alike, apart = ([str(k // m) for k in range(300)] for m in (15, 1))
    width = [np.diff(realism.distance_interval(a, b, of, of)[1:])[0] for of in (alike, apart)]
    assert width[0] > 2 * width[1]


def test_a_gain_in_distance_is_the_difference_of_two_with_its_sign():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 20))
    near, far = a + 0.3, a + 0.6
    of = [str(k % 20) for k in range(300)], [str(k % 30) for k in range(300)]
    value, low, high = realism.distance_gain(near, far, b, *of)
    assert np.isclose(value, realism.kernel_distance(near, b) - realism.kernel_distance(far, b))
    assert low < value < high < 0
    again = realism.distance_gain(far, near, b, *of)
    assert np.allclose(again, (-value, -high, -low))     # the same halves serve both
    assert realism.distance_gain(near, near, b, *of) == (0, 0, 0)


class Brighter(Painter):
    def drafts(self, conditions, seeds):
        return [c.source + 0.5 for c in conditions]


class Untouched(Painter):
    def drafts(self, conditions, seeds):
        return [c.source for c in conditions]


def test_the_classifier_tells_what_can_be_told_and_nothing_else(patients, requests):
    for painter, ring, least, most in ((Brighter(), False, 0.9, 1), (Brighter(), True, 0.9, 1),
                                       (Untouched(), False, 0.5, 0.5)):
        asked = drafts.requests_of(requests * 4, patients, painter, healthy=True)
        value, low, high, n = realism.classifier_auc(drafts.draft(painter, asked)[0], ring)
        assert least <= value <= most and low <= value <= high and n == len(asked)


def test_a_scar_painted_again_is_not_seen_before(fold, patients):
    asked = drafts.in_place(patients, fold.info.roles, Painter(), seeds=2)
    assert asked
    for one in asked:
        assert (one.request > 0).sum() == ((one.heart.labels[one.z] == 3)
                                           | (one.heart.labels[one.z] == 4)).sum()
        assert not one.condition.source[one.condition.region].any()
    ssim, rmse = realism.in_place_scores(drafts.draft(Painter(), asked)[0])
    assert (ssim < 1).all() and (rmse > 0).all()


def test_all_rows_of_a_generator(fold, patients, requests, tmp_path_factory):
    judge = Segmenter.load_fold(write_tiny_model(tmp_path_factory.mktemp("results")), "cpu")
    bench = Bench(fold, patients, requests, {"own": judge, "independent": judge}, ABOUT, True)
    rows = bench.real() + bench.arm("paint", "cpu")
    json.dumps(rows)
    mine = {r["metric"]: r for r in rows if r["arm"] == "paint" and "burdens" not in r["split"]}
    assert {"qc_pass_own", "qc_pass_independent", "qc_pass_healthy", "burden_error", "ks_contrast",
            "segment_jaccard", "transmurality_error", "feature_distance", "frechet_distance",
            "ssim_crop", "rmse_crop", "shortcut_auc", "seam_auc", "seconds_per_draft",
            "seconds_per_accepted", "changed_outside", "dice_pass_anywhere_own"} <= set(mine)
    assert mine["changed_outside"]["value"] == 0 and mine["qc_pass_own"]["n"] == 12
    parts = [r for r in rows if r["arm"] == "paint" and r["metric"] == "qc_pass_own"
             and "burdens" in r["split"]]
    assert sum(r["n"] for r in parts) == 12
    real = {r["metric"]: r["value"] for r in rows if r["arm"] == "real"}
    assert {"dice_pass_own", "dice_pass_own_as_asked", "dice_pass_anywhere_own"} <= set(real)
    assert not any(m.startswith("qc_pass") for m in real)   # what is new there, none can tell
    assert "seam_auc" in table(rows)
    heading, _, real, paint = markdown(rows).splitlines()
    assert heading.count("|") == real.count("|") == paint.count("|") == len(COLUMNS) + 2
    assert f"| {mine['feature_distance']['value']:.3f} (" in paint and " - " in real
    bench.compared["paint"]["ssim_crop"] -= 0.5
    again = {r["metric"]: r for r in bench.measure(Painter(), None, "again")}
    assert again["ssim_crop_diff_vs_paint"]["value"] == pytest.approx(0.5)
    assert again["rmse_crop_diff_vs_paint"]["value"] == 0


def test_what_is_found_elsewhere_counts_in_the_whole_slice_alone():
    scar = np.zeros((20, 20), bool)
    scar[5:9, 5:9] = True
    elsewhere = np.zeros_like(scar)
    elsewhere[15:, 15:] = True
    for hit, found, anywhere in ((scar, True, True), (scar | elsewhere, True, False),
                                 (elsewhere, False, False)):
        row = drafts._found(hit, hit & ~elsewhere, scar, QCConfig())
        assert (row["found"], row["found_anywhere"]) == (found, anywhere)
        assert (row["dice"] == 1) == found


def test_pass_rates_are_compared_request_by_request(fold, patients, requests, tmp_path_factory):
    judge = Segmenter.load_fold(write_tiny_model(tmp_path_factory.mktemp("results")), "cpu")
    bench = Bench(fold, patients, requests, {"own": judge}, ABOUT, False)
    first = bench.measure(Painter(), None, "first")
    assert not any("diff" in r["metric"] for r in first)
    second = {r["metric"]: r for r in bench.measure(Painter(), None, "second")}
    for metric in ("dice_pass_own", "qc_pass_own"):
        assert second[f"{metric}_diff_vs_first"]["value"] == 0
    bench.compared["first"] = {m: v - 1 for m, v in bench.compared["first"].items()}
    third = {r["metric"]: r for r in bench.measure(Painter(), None, "third")}
    assert third["qc_pass_own_diff_vs_first"]["value"] == 1
    assert third["qc_pass_own_diff_vs_second"]["value"] == 0


def test_a_generator_is_measured_as_what_it_is_or_not_at_all(fold, patients, requests, tmp_path,
                                                             without_pictures):
    judge = Segmenter.load_fold(write_tiny_model(tmp_path / "judge"), "cpu")
    other = Segmenter.load_fold(write_tiny_model(tmp_path / "other", seed=1), "cpu")
    folder = tmp_path / "LGESynth_tiny__nnUNetPlans__2d" / "fold_0"
    fit(fold, haar_config(seed=3), folder, "cpu", judge)
    rows = Bench(fold, patients, requests, {"own": judge}, ABOUT, False).arm(str(folder), "cpu")
    hashes = {r["versions"]["generator"] for r in rows}
    told = json.loads((folder / "config.json").read_text())
    assert hashes == {told["hash"]} and all(r["seeds"] == [3] for r in rows)
    assert next(r["value"] for r in rows if r["metric"] == "fit_minutes") > 0
    with pytest.raises(UserError, match="tuned by another judge"):
        Bench(fold, patients, requests, {"own": other}, ABOUT, False).arm(str(folder), "cpu")
    bench = Bench(fold, patients, requests, {"own": judge}, ABOUT, False)
    renamed = tmp_path / "LGESynth_roi-cpu__nnUNetPlans__2d" / "fold_0"
    shutil.copytree(folder, renamed)
    with pytest.raises(UserError, match="as the preset roi-cpu has it"):
        bench.arm(str(renamed), "cpu")
    told["train"].append(fold.val[0])
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="validation cases"):
        bench.arm(str(folder), "cpu")


def test_a_request_for_another_splits_patient_is_refused(patients, requests):
    gone = {k: v for k, v in patients.items() if k != requests[0].case}
    with pytest.raises(UserError, match="was the split changed"):
        drafts.requests_of(requests, gone, Painter())


def test_intervals_are_of_patients_not_of_requests():
    values = np.repeat(np.arange(10) % 3 == 0, 50).astype(float)
    about = {**ABOUT, "arm": "x", "preset": None}
    by_patient, by_request = (_row(about, "x", values, of, np.mean, "") for of in (
        [str(k // 50) for k in range(500)], [str(k) for k in range(500)]))
    assert by_patient["value"] == by_request["value"] == 0.4
    wide, narrow = (r["high"] - r["low"] for r in (by_patient, by_request))
    assert wide > 5 * narrow


def line(arm, **values):
    return {**dict.fromkeys(records.FIELDS), "arm": arm, **values}


def number(arm, value=0.0, metric="x", n=12, split=ABOUT["split"], **versions):
    return {**ABOUT, "arm": arm, "metric": metric, "value": value, "n": n, "split": split,
            "versions": versions}


def test_arms_measured_again_keep_their_place_among_the_others(tmp_path):
    path = tmp_path / "rows.json"
    for values in ({"real": 1, "paint": 2, "plain": 3}, {"real": 4, "full": 5}):
        records.write(path, [number(a, v) for a, v in values.items()],
                      [line(a, dice=v) for a, v in values.items()])
    rows, lines = records.read(path)
    assert [(r["arm"], r["value"]) for r in rows] == [("real", 4), ("paint", 2), ("plain", 3),
                                                      ("full", 5)]
    assert [(x["arm"], x["dice"]) for x in lines] == [("real", "4"), ("paint", "2"),
                                                      ("plain", "3"), ("full", "5")]


def test_files_that_do_not_belong_together_are_refused_before_anything_is_measured(tmp_path):
    path = tmp_path / "rows.json"
    with pytest.raises(UserError, match=r"must end with \.json"):
        records.read(tmp_path / "rows.csv")
    records.write(path, [number("paint", judge_own="a"),
                         number("paint", judge_own="a", metric="changed_outside")],
                  [line("paint")])
    about = {**ABOUT, "versions": {"judge_own": "a", "scipy": "2"}}
    records.refuse_others(path, about, 12)
    for changed, n in (({}, 13), ({"split": "validation, fold 1"}, 12), ({"dataset": "other"}, 12),
                       ({"versions": {"judge_own": "b"}}, 12)):
        with pytest.raises(UserError, match="another fold, number of requests or judges"):
            records.refuse_others(path, {**about, **changed}, n)
    for text in ("arm,dice\npaint,1\n", path.with_suffix(".csv").read_text().replace(
            "paint", "plain"), ",".join(records.FIELDS)):
        path.with_suffix(".csv").write_text(text)
        with pytest.raises(UserError, match="do not hold the same arms"):
            records.read(path)


def test_a_third_of_the_burdens_is_of_the_same_test_set(tmp_path):
    path = tmp_path / "rows.json"
    records.write(path, [number("paint", split=ABOUT["split"] + ", small burdens")],
                  [line("paint")])
    records.refuse_others(path, {**ABOUT, "versions": {}}, 12)
    assert records.read(path)[0][0]["split"] != ABOUT["split"]
    with pytest.raises(UserError, match="another fold"):
        records.refuse_others(path, {**ABOUT, "split": "validation, fold 1", "versions": {}}, 12)


def test_a_generator_named_twice_is_refused():
    folder = "LGESynth_{}__nnUNetPlans__2d/fold_0"
    _refuse_twice(["paint", folder.format("a"), folder.format("a-seed1")])
    with pytest.raises(UserError, match="names a twice"):
        _refuse_twice(["paint", folder.format("a"), "elsewhere/" + folder.format("a")])


def test_every_slice_has_a_line_that_its_arms_numbers_can_be_computed_from(
        fold, patients, requests, tmp_path):
    judges = {name: Segmenter.load_fold(write_tiny_model(tmp_path / name, seed=k), "cpu")
              for k, name in enumerate(("own", "independent"))}
    path = tmp_path / "rows.json"
    bench = Bench(fold, patients, requests, judges, ABOUT, False)
    rows = bench.real()
    for arm, painter in (("paint", Painter()), ("brighter", Brighter())):
        rows += bench.measure(painter, None, arm)
        records.write(path, rows, bench.lines)
    rows, lines = records.read(path)
    parts = {(r["arm"], r["judge"]) for r in lines}
    assert parts == {(a, j) for a in ("real", "paint", "brighter") for j in judges}
    for arm, judge in parts:
        mine = [x for x in lines if (x["arm"], x["judge"]) == (arm, judge)]
        assert [int(x["request"]) for x in mine] == list(range(len(mine)))
        told = {r["metric"]: r["value"] for r in rows
                if r["arm"] == arm and "burdens" not in r["split"]}
        expected = {f"dice_pass_{judge}": ("found", np.mean)}
        if arm != "real":
            assert [x["case"] for x in mine] == [r.case for r in requests]
            expected[f"qc_pass_{judge}"] = "accepted", np.mean
        if judge == "own":
            expected |= {m: (m, np.median) for m in ("burden_error", "segment_jaccard",
                                                     "transmurality_error")}
        for metric, (name, statistic) in expected.items():
            assert np.isclose(told[metric], statistic([float(x[name]) for x in mine]), atol=1e-4)
    assert len({tuple(x["contrast"] for x in lines if x["arm"] == a)
                for a in ("paint", "brighter")}) == 2


def test_the_command_of_a_row_names_no_folder_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["x", "-d", "116", "--judges", str(tmp_path / "a" / "b")])
    assert testset.command_line("benchmarks.x") == "python -m benchmarks.x -d 116 --judges a/b"


def test_committed_test_sets_are_whole():
    files = sorted((Path(testset.__file__).parent / "requests").glob("*.jsonl"))
    assert files
    for path in files:
        asked = testset.read(path)
        assert len(asked) == testset.REQUESTS == len({a.seed for a in asked})


def test_labels_are_held_against_the_independent_judge(fold, patients, requests):
    bench = Bench(fold, patients, requests, {}, ABOUT, False)
    scars = [drafts.Draft(patients[r.case], r.z, r.mask(patients[r.case])[r.z], None, None, None,
                          False) for r in requests]
    masks = [s.request > 0 for s in scars]
    own = [{"accepted": k < 5, "mask": np.roll(m, 2, 0)} for k, m in enumerate(masks)]

    def dices(other):
        rows = bench._labels(bench._about("x", None), scars, own, [{"mask": m} for m in other])
        assert all(r["n"] == 5 for r in rows)
        return {r["metric"].removeprefix("label_dice_"): r["value"] for r in rows}

    assert dices(masks)["intended"] == 1 > dices(masks)["predicted"] > 0
    assert dices([r["mask"] for r in own])["predicted"] == 1
    assert bench._labels({}, scars, [{**r, "accepted": False} for r in own], own) == []
