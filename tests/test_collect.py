"""Laws of collecting: rows come from the files, merging is idempotent, the log is read honestly."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_lgesynth.benchmark.collect import collect_cases, training_summary
from nnunet_lgesynth.benchmark.records import (
    CASE_KEY,
    Recipe,
    Records,
    Training,
    merge_rows,
    read_rows,
)
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import DatasetInfo, Roles
from nnunet_lgesynth.provenance import machine, package_commit, versions

INFO = DatasetInfo(Roles(cavity=1, myocardium=2, scar=3, no_reflow=4))
RECIPE = Recipe("Dataset900_Toy", "2d", "nnUNetPlans", "nnUNetTrainerLGEPaint", 3, 2)


def write_labels(path, scar_voxels: int) -> None:
    """100 wall voxels a slice in two slices of 1.5 x 1.5 x 8 mm; scar in the first."""
    labels = np.zeros((2, 10, 20), np.uint8)
    labels[:, :, :10] = 2
    wall = np.full(100, 2, np.uint8)
    wall[:scar_voxels] = 3
    labels[0, :, :10] = wall.reshape(10, 10)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((1.5, 1.5, 8.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def training(tmp_path):
    folder = tmp_path / "fold_0"
    for case, truth, prediction in (("a", 20, 20), ("b", 0, 2)):
        write_labels(tmp_path / "labelsTr" / f"{case}.nii.gz", truth)
        write_labels(folder / "validation" / f"{case}.nii.gz", prediction)
    return Training("paint", 0, 1, folder, RECIPE, "cpu")


def rows_of(training, cases=("a", "b")):
    return collect_cases(training, training.predictions,
                         training.folder.parent / "labelsTr", cases, INFO)


def test_rows_hold_what_the_files_hold(training):
    rows = {(r["arm"], r["case"]): r for r in rows_of(training)}
    assert len(rows) == 4
    assert rows["paint", "a"]["dice"] == 1.0 and rows["paint", "b"]["dice"] == 0.0
    assert rows["paint", "a"]["true_ml"] == pytest.approx(20 * 1.5 * 1.5 * 8 / 1000)
    assert rows["paint+filter", "b"]["dice"] == 1.0     # 1 % of the wall is below the bound
    assert rows["paint+filter", "a"]["dice"] == 1.0
    assert {(r["fold"], r["seed"], r["epochs"], r["device"]) for r in rows.values()} == {
        (0, 1, 3, machine("cpu"))}
    assert rows["paint", "a"]["config_hash"] != rows["paint+filter", "a"]["config_hash"]
    assert package_commit() == rows["paint", "a"]["commit"]
    assert rows["paint", "a"]["versions"] == versions()
    then = {"device": "elsewhere", "versions": {"nnunet_lgesynth": "then", "torch": "1"}}
    (training.folder / "lgesynth.jsonl").write_text(json.dumps(epoch(0, 0, 0, **then)))
    assert all(then.items() <= r.items() and r["commit"] == "then"       # of what trained
               for r in [*rows_of(training), training_summary(training)])
    json.dumps(rows["paint", "b"], allow_nan=False)


def test_nothing_is_scored_in_the_ignored_region(training):
    """As nnU-Net does; here where the prediction holds scar that the truth lacks."""
    case, = (p for p in (training.folder.parent / "labelsTr").glob("b.nii.gz"))
    image = sitk.ReadImage(str(case))
    labels = sitk.GetArrayFromImage(image)
    labels[0, 0, :2] = 5
    ignored = sitk.GetImageFromArray(labels)
    ignored.CopyInformation(image)
    sitk.WriteImage(ignored, str(case))
    found = [next(r for r in collect_cases(training, training.predictions, case.parent, ["b"], INFO,
                                           ignore=value) if r["arm"] == "paint")
             for value in (None, 5)]
    assert [r["dice"] for r in found] == [0.0, 1.0] and not found[1]["found_scar"]


def test_missing_or_flat_files_are_named(training):
    with pytest.raises(UserError, match=r"c\.nii\.gz is missing"):
        rows_of(training, ("a", "c"))
    (training.predictions / "a.nii.gz").write_bytes(b"not an image")
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(training)


def test_merging_twice_changes_nothing_and_new_values_replace(training, tmp_path):
    path = tmp_path / "cases_Toy.jsonl"
    rows = rows_of(training)
    assert merge_rows(path, rows, CASE_KEY) == rows
    first = path.read_bytes()
    merge_rows(path, rows, CASE_KEY)
    assert path.read_bytes() == first
    changed = [{**rows[0], "dice": 0.25}]
    assert len(merge_rows(path, changed, CASE_KEY)) == len(rows)
    assert read_rows(path)[0]["dice"] == 0.25
    for other in ({"seed": 2}, {"config_hash": "other"}, {"arm": "real"}, {"fold": 1}):
        before = len(read_rows(path))
        assert len(merge_rows(path, [{**rows[0], **other}], CASE_KEY)) == before + 1
    assert not list(tmp_path.glob("*.part*"))


def test_records_hold_a_training_only_with_all_its_patients_and_its_summary(training, tmp_path):
    records = Records.below(tmp_path, "Toy")
    assert not records.holds(training, ["a", "b"])
    records.add(rows_of(training))
    assert not records.holds(training, ["a", "b"])          # no summary yet
    records.add([], [training_summary(training)])
    assert records.holds(training, ["a", "b"])
    assert not records.holds(training, ["a", "b", "c"])
    assert not records.holds(training, ["a"], "external")
    assert not records.holds(replace(training, seed=2), ["a"])
    assert not records.holds(replace(training, recipe=replace(RECIPE, epochs=9)), ["a"])
    rows, summaries = records.of([("paint", RECIPE)], [0])
    assert {r["arm"] for r in rows} == {"paint", "paint+filter"} and len(rows) == 4
    assert summaries == [training_summary(training)]
    assert records.of([("paint", RECIPE)], [1]) == ([], [])
    assert records.of([("paint", replace(RECIPE, epochs=9))], [0]) == ([], [])
    records.trainings.write_text('{"arm": "paint"}\n')
    with pytest.raises(UserError, match=r"trainings_Toy\.jsonl has a row without 'fold'"):
        records.of([("paint", RECIPE)], [0])


def test_a_line_cut_by_a_kill_is_left_out_and_a_broken_middle_is_named(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_rows(path)
    assert read_rows(tmp_path / "absent.jsonl") == []


def epoch(number, probability, fraction, **more):
    return {"epoch": number, "probability": probability, "injected_fraction": fraction,
            "drafted": 10, "accepted": 4, "unique_slices_served": number, "seconds_epoch": 60.0,
            "seconds_synthesis": 2.0, "seconds_waited": 30.0 * (number == 0), **more}


def test_injected_fraction_is_read_after_warm_up_and_a_resumed_epoch_counts_once(training):
    log = [epoch(0, 0.0, 0.0), epoch(1, 0.25, 0.1), epoch(2, 0.5, 0.9), epoch(2, 0.5, 0.4),
           epoch(3, 0.5, 0.6)]
    (training.folder / "lgesynth.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    summary = training_summary(training)
    assert summary["injected_fraction"] == pytest.approx(0.5)
    assert summary["injected_fraction_last"] == 0.6
    assert summary["injected_fraction_all"] == pytest.approx((0 + 0.1 + 0.4 + 0.6) / 4)
    assert (summary["epochs"], summary["drafted"], summary["accepted"]) == (4, 40, 16)
    assert summary["qc_pass_own"] is None                # no judge saw the painter's samples
    fitted = replace(training, recipe=replace(RECIPE, preset="demo"))
    assert training_summary(fitted)["qc_pass_own"] == pytest.approx(0.4)
    assert summary["pool_burden"] is None
    (training.folder / "lgesynth.jsonl").write_text(json.dumps(
        epoch(0, 0.5, 0.4, pool_burden=0.2, real_burden=0.21)) + "\n")
    again = training_summary(training)
    assert (again["pool_burden"], again["real_burden"], again["pool_contrast"]) == (0.2, 0.21, None)
    assert summary["unique_slices"] == 3 and summary["minutes"] == pytest.approx((4 * 60 + 30) / 60)


def test_manifest_gives_pass_counts_and_reasons(training):
    def check(passed):
        return {"value": 1, "bound": 1, "passed": passed}

    verdicts = [{"accepted": True, "checks": {"dice": check(True), "source": check(True)}},
                {"accepted": False, "checks": {"dice": check(False), "source": check(True)}},
                {"accepted": False, "checks": {"dice": check(False), "source": check(False)}}]
    lines = [{"identifier": "x", "kind": "scar", "slices": [1, 2], "generator": "abc",
              "verdicts": dict(zip("123", verdicts))},
             {"identifier": "y", "kind": "healthy", "slices": [3], "verdicts": []}]
    folder = training.folder / "lgesynth_pool"
    folder.mkdir()
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = training_summary(training)
    assert summary["pool_cases"] == {"scar": 1, "healthy": 1} and summary["pool_slices"] == 3
    assert (summary["verdicts"], summary["verdicts_accepted"]) == (3, 1)
    assert summary["failed_checks"] == {"dice": 2, "source": 1}
    assert summary["generators"] == ["abc"]


def test_a_stock_training_has_no_injection_to_report(training):
    summary = training_summary(training)
    assert summary["injected_fraction"] is None and summary["drafted"] is None
    assert summary["pool_cases"] == {}
