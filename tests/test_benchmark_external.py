"""External test sets: found and compared before anything runs, predicted, scored."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from toy_benchmark import NAME, ROLES, finish, fold_folder, go, heart, write_image, write_network

from nnunet_lgesynth.benchmark.collect import collect_cases
from nnunet_lgesynth.benchmark.records import read_rows
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import DatasetInfo, Roles, write_info


def test_external_images_are_looked_for_before_anything_runs_also_by_the_plan(workspace):
    images, labels = workspace / "images", workspace / "labels"
    with pytest.raises(UserError, match=r"--labels .* holds no \*\.nii\.gz"):
        go(workspace, ["real"], images=images, labels=labels, plan_only=True)
    write_image(labels / "e0.nii.gz", heart(3))
    with pytest.raises(UserError, match=r"--images .* lacks e0_0000\.nii\.gz"):
        go(workspace, ["real"], images=images, labels=labels, plan_only=True)


def test_external_images_are_predicted_by_the_trained_network_and_scored(workspace):
    finish(workspace, "real", 8, 0.0)
    write_network(fold_folder(workspace, "real"))
    images, labels = workspace / "images", workspace / "labels"
    for case in ("e0", "e1"):
        write_image(images / f"{case}_0000.nii.gz",
                    np.random.default_rng(1).normal(size=(3, 16, 16)).astype(np.float32))
        write_image(labels / f"{case}.nii.gz", heart(12))
    outcome = go(workspace, ["real"], images=images, labels=labels)
    external = [r for r in read_rows(outcome["cases"]) if r["split"] == "external"]
    assert {(r["arm"], r["case"]) for r in external} == {
        (arm, case) for arm in ("real", "real+filter") for case in ("e0", "e1")}
    predicted = workspace / "out" / "seed_0" / "external" / "real" / "fold_0" / "e0.nii.gz"
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(predicted)))
    row = next(r for r in external if (r["arm"], r["case"]) == ("real", "e0"))
    assert row["predicted_voxels"] == np.isin(found, (3, 4)).sum()
    assert {r["split"] for r in outcome["rows"]} == {"validation, fold 0", "external, fold 0"}
    assert {r["split"] for r in go(workspace, ["real"])["rows"]} == {"validation, fold 0"}
    assert go(workspace, ["real"], images=images, labels=labels)["rows"] == outcome["rows"]
    (images / "e1_0000.nii.gz").unlink()
    with pytest.raises(UserError, match="e1_0000"):
        go(workspace, ["real"], images=images, labels=labels)


def test_an_ensemble_is_all_folds_networks_together(workspace):
    """Of two networks of which one is sure of scar everywhere: it decides."""
    (workspace / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(
        json.dumps([{"train": ["t0", "t1", "v2", "v3"], "val": ["v0", "v1"]},
                    {"train": ["t0", "t1", "v0", "v1"], "val": ["v2", "v3"]}]))
    finish(workspace, "real", 8, 0.0)
    first = fold_folder(workspace, "real")
    shutil.copytree(first, first.with_name("fold_1"))
    for folder in (first, first.with_name("fold_1")):
        write_network(folder)
    state = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    for name, weight in state["network_weights"].items():
        if "seg_layers" in name and name.endswith("bias"):
            weight[3] += 500
    torch.save(state, folder / "checkpoint_final.pth")
    images, labels = workspace / "images", workspace / "labels"
    write_image(images / "e0_0000.nii.gz",
                np.random.default_rng(1).normal(size=(3, 16, 16)).astype(np.float32))
    write_image(labels / "e0.nii.gz", heart(12))
    outcome = go(workspace, ["real"], images=images, labels=labels, folds=[0, 1], ensemble=True)
    rows = {(r["split"], r["fold"]): r for r in read_rows(outcome["cases"])
            if r["arm"] == "real" and r["case"] == "e0"}
    assert set(rows) == {("external", 0), ("external", 1), ("ensemble", -1)}
    pooled = {r["metric"]: r for r in outcome["rows"]
              if r["arm"] == "real" and r["split"] == "validation, folds 0+1"}
    assert pooled["dice_tp"]["n"] == 2 and pooled["dice"]["n"] == 4
    assert pooled["dice_tp"]["value"] == pytest.approx(            # 8 voxels missed in both
        (2 * 12 / (20 + 12) + 2 * 6 / (14 + 6)) / 2, abs=1e-6)
    assert [pooled[k]["value"] for k in ("tn", "fp", "fn", "tp")] == [2, 0, 0, 2]
    assert "dice_seed_std" not in pooled                    # two folds, and one seed
    everything = 3 * 16 * 16
    assert rows["external", 0]["predicted_voxels"] < everything == \
        rows["external", 1]["predicted_voxels"] == rows["ensemble", -1]["predicted_voxels"]
    assert {r["split"].split(",")[0] for r in outcome["rows"]} == {
        "validation", "external", "ensemble"}
    shutil.rmtree(first)
    assert go(workspace, ["real"], images=images, labels=labels, folds=[0, 1],
              ensemble=True)["rows"] == outcome["rows"]
    path = workspace / "out" / f"cases_{NAME}.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()
                            if json.loads(line)["split"] != "ensemble"))
    lines = go(workspace, ["real"], images=images, labels=labels, folds=[0, 1], ensemble=True,
               plan_only=True)["plan"]
    assert len(lines) == 1 and " 0 -tr" in lines[0]           # what an ensemble lacks is trained


@pytest.mark.parametrize("change, message", [
    ({"spacing": (1.0, 1.0, 1.0)}, r"e0\.nii\.gz has the spacing \(1, 1, 1\), its image"),
    ({"direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}, r"has the direction \(-1, 0, 0, "),
    ({"slices": 2}, r"has the size \(16, 16, 2\), its image .*\(16, 16, 3\)")])
def test_labels_that_lie_elsewhere_than_their_image_are_named(workspace, change, message):
    images, labels = workspace / "images", workspace / "labels"
    write_image(images / "e0_0000.nii.gz", np.zeros((3, 16, 16), np.float32))
    write_image(labels / "e0.nii.gz", heart(3))
    go(workspace, ["real"], images=images, labels=labels, plan_only=True)
    label = sitk.GetImageFromArray(heart(3)[:change.get("slices", 3)])
    label.SetSpacing(change.get("spacing", (1.0, 1.0, 8.0)))
    label.SetDirection(change.get("direction", (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    sitk.WriteImage(label, str(labels / "e0.nii.gz"))
    with pytest.raises(UserError, match=message):
        go(workspace, ["real"], images=images, labels=labels, plan_only=True)


@pytest.fixture
def external(workspace):
    """A finished real-only training, and an external case of a scarred heart."""
    finish(workspace, "real", 8, 0.0)
    write_network(fold_folder(workspace, "real"))
    write_image(workspace / "images" / "e0_0000.nii.gz",
                np.random.default_rng(1).normal(size=(3, 16, 16)).astype(np.float32))
    write_image(workspace / "labels" / "e0.nii.gz", heart(12))

    def run(**more):
        return go(workspace, ["real"], images=workspace / "images", labels=workspace / "labels",
                  **more)
    return run


def test_what_was_corrected_since_is_scored_again(workspace, external):
    def row():
        return next(r for r in read_rows(external()["cases"])
                    if (r["arm"], r["split"]) == ("real", "external"))
    before = row()
    write_image(workspace / "labels" / "e0.nii.gz", heart(3))
    corrected = row()
    assert corrected["true_voxels"] < before["true_voxels"] == 12
    assert corrected["predicted_voxels"] == before["predicted_voxels"]
    write_image(workspace / "images" / "e0_0000.nii.gz",
                np.random.default_rng(2).normal(size=(3, 16, 16)).astype(np.float32))
    os.utime(workspace / "images" / "e0_0000.nii.gz", (1, 1))          # copied with its old date
    assert row()["predicted_voxels"] != before["predicted_voxels"]
    assert row() == row()


def test_arms_are_compared_on_the_same_files_alone(workspace, external):
    finish(workspace, "paint", 2, 0.4)
    write_network(fold_folder(workspace, "paint"))
    both = {"images": workspace / "images", "labels": workspace / "labels"}
    go(workspace, **both)
    write_image(workspace / "labels" / "e0.nii.gz", heart(3))

    def compared(outcome) -> set:
        return {r["split"] for r in outcome["rows"]
                if (r["arm"], r["metric"]) == ("paint", "dice_tp_diff_vs_real")}
    alone = external()
    assert compared(alone) == {"validation, fold 0"}
    assert any("Left out, scored before external files were changed: e0 by paint, fold 0, seed 0" in
               said for said in alone["sentences"])
    again = go(workspace, **both)
    assert compared(again) == {"validation, fold 0", "external, fold 0"}
    assert not any("Left out" in said for said in again["sentences"])
    shutil.rmtree(fold_folder(workspace, "paint"))
    write_image(workspace / "labels" / "e0.nii.gz", heart(6))
    assert go(workspace, plan_only=True, **both)["plan"] == []       # nothing is trained for that
    assert any("Left out" in said for said in go(workspace, **both)["sentences"])


def test_a_prediction_that_was_not_recorded_is_of_the_image_that_it_saw(workspace, external,
                                                                       monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nnunet_lgesynth.benchmark.run.collect_cases", lambda *a, **k: (
            killed() if "external" in a else collect_cases(*a, **k)))
        external()
    write_image(workspace / "images" / "e0_0000.nii.gz",
                np.random.default_rng(2).normal(size=(3, 16, 16)).astype(np.float32))
    os.utime(workspace / "images" / "e0_0000.nii.gz", (1, 1))
    first = read_rows(external()["cases"])
    shutil.rmtree(workspace / "out" / "seed_0" / "external")
    (workspace / "out" / f"cases_{NAME}.jsonl").unlink()
    assert read_rows(external()["cases"]) == first


def test_what_is_not_predicted_yet_is_named(workspace, external):
    finish(workspace, "paint", 2, 0.4)
    both = {"images": workspace / "images", "labels": workspace / "labels"}
    go(workspace)
    shutil.rmtree(fold_folder(workspace, "paint"))
    outcome = go(workspace, collect_only=True, **both)
    assert ("Not ended yet, so in no number: paint, fold 0, seed 0, on the external images."
            in outcome["sentences"])
    assert {r["arm"] for r in outcome["rows"] if r["split"].startswith("external")} == {
        "real", "real+filter"}
    assert len(go(workspace, plan_only=True, **both)["plan"]) == 1


def test_all_rows_of_a_training_are_of_one_network(workspace, external):
    """Here of the one that was trained again, after the recorded one's folder was lost."""
    finish(workspace, "real", 8, 0.0)
    write_network(fold_folder(workspace, "real"))
    go(workspace, ["real"])
    finish(workspace, "real", 2, 0.0)
    write_network(fold_folder(workspace, "real"))

    def missed(outcome) -> float:
        return next(r["dice"] for r in read_rows(outcome["cases"])
                    if (r["arm"], r["case"]) == ("real", "v0"))
    assert missed(go(workspace, ["real"])) == pytest.approx(24 / 32)      # as recorded
    assert missed(external()) == pytest.approx(36 / 38)                   # as predicted now


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the device that must be missing")
def test_images_that_cannot_be_predicted_here_are_one_sentence(workspace, external):
    with pytest.raises(UserError, match="-device cuda: this machine has none"):
        external(device="cuda", collect_only=True)
    assert read_rows(workspace / "out" / f"cases_{NAME}.jsonl")           # the rest is recorded


def test_stacks_of_one_patient_count_once(workspace, external):
    for kind, name in (("images", "e{}_0000.nii.gz"), ("labels", "e{}.nii.gz")):
        shutil.copy(workspace / kind / name.format(0), workspace / kind / name.format(1))
    write_info(workspace / "labels", DatasetInfo(ROLES, same_as={"e1": "e0"}))
    outcome = external()
    told = {(r["split"], r["metric"]): r["n"] for r in outcome["rows"] if r["arm"] == "real"}
    assert told["external, fold 0", "dice"] == 1
    assert all(r["patient"] == "e0" for r in read_rows(outcome["cases"]) if r["case"] == "e1")
    assert "1 patients, 1 with scar" in json.loads(
        (workspace / "out" / "benchmark.json").read_text())["before"]["external"][0]


def test_labels_that_mean_something_else_are_refused(workspace, external):
    write_info(workspace / "labels", DatasetInfo(Roles(cavity=4, myocardium=2, scar=1)))
    with pytest.raises(UserError, match=r"lgesynth\.json gives the labels another mean.*cavity=4"):
        external(plan_only=True)
    (workspace / "labels" / "lgesynth.json").unlink()
    labels = heart(12)
    labels[0, 0, 0] = 9
    write_image(workspace / "labels" / "e0.nii.gz", labels)
    with pytest.raises(UserError, match=r"e0\.nii\.gz has the values \[9\], which the data"):
        external(plan_only=True)


def test_every_channel_is_looked_for_before_anything_runs(workspace, external):
    path = workspace / "nnUNet_preprocessed" / NAME / "dataset.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "channel_names": {"0": "LGE", "1": "T2"}}))
    with pytest.raises(UserError, match=r"lacks e0_0001\.nii\.gz .* a file a channel"):
        external(plan_only=True)


def test_a_kill_while_predicting_leaves_no_half_prediction(workspace, monkeypatch):
    """ITK reads a file that was cut short without complaint."""
    finish(workspace, "real", 8, 0.0)
    write_network(fold_folder(workspace, "real"))
    images, labels = workspace / "images", workspace / "labels"
    write_image(images / "e0_0000.nii.gz", np.zeros((3, 16, 16), np.float32))
    write_image(labels / "e0.nii.gz", heart(3))

    def killed(self, files, outputs):
        Path(f"{outputs[0]}.nii.gz").write_bytes(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(nnUNetPredictor, "predict_from_files_sequential", killed)
    with pytest.raises(KeyboardInterrupt):
        go(workspace, ["real"], images=images, labels=labels)
    assert list((workspace / "out" / "seed_0" / "external").rglob("*.nii.gz")) == []


def test_labels_given_later_stay_and_other_ones_are_refused(workspace):
    finish(workspace, "real", 8, 0.0)
    write_network(fold_folder(workspace, "real"))
    go(workspace, ["real"])
    for name in ("first", "second"):
        write_image(workspace / name / "e0_0000.nii.gz", np.zeros((3, 16, 16), np.float32))
        write_image(workspace / f"{name} labels" / "e0.nii.gz", heart(3))
    go(workspace, ["real"], images=workspace / "first", labels=workspace / "first labels")
    with pytest.raises(UserError, match=r"labels \S*first labels -> \S*second labels"):
        go(workspace, ["real"], images=workspace / "first", labels=workspace / "second labels")
