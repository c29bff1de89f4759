"""What a benchmark refuses: generators, judges, trainings and images that know too much."""

import json

import numpy as np
import pytest
from toy_benchmark import (
    NAME,
    fill_pool,
    finish,
    fold_folder,
    go,
    heart,
    words,
    write_generator,
    write_image,
    write_network,
)

from nnunet_lgesynth.benchmark.fits import check_generators
from nnunet_lgesynth.benchmark.records import read_rows
from nnunet_lgesynth.benchmark.settings import Settings
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.judge.segmenter import Segmenter


def test_a_generator_of_more_patients_than_its_arm_has_is_refused(workspace):
    three = {"train": ["t0", "t1", "v0"], "val": ["v1", "v2", "v3"]}
    (workspace / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps([three]))
    folder = write_generator(workspace)
    few = folder.parent.with_name(folder.parent.name.replace("demo", "demo-n2")) / folder.name
    few.mkdir(parents=True)
    told = json.loads((folder / "config.json").read_text())
    told["config"] |= {"preset": "demo-n2", "patients": 2}
    subset = Fold.open(NAME, "2d", 0).subset(2).train
    (few / "config.json").write_text(json.dumps({**told, "train": list(subset)}))
    settings = Settings(NAME, "2d", ("lgesynth:n=2",), (0,), 1, workspace, preset="demo")
    fold = Fold.open(NAME, "2d", 0)
    check_generators(settings, {0: fold})
    for split, refused in ((fold.subset(2).split_hash, False), (fold.split_hash, True)):
        (workspace / "lgesynth.jsonl").write_text(json.dumps({"epoch": 0, "split": split}) + "\n")
        (few / "config.json").write_text(json.dumps({
            **told, "train": list(subset),
            "reward": {"checkpoint": str(workspace / "checkpoint_final.pth"), "hash": "0"}}))
        if refused:
            with pytest.raises(UserError, match=r"lgesynth\.jsonl does not show that the judge"):
                check_generators(settings, {0: fold})
        else:
            check_generators(settings, {0: fold})
    (few / "config.json").write_text(json.dumps({**told, "train": three["train"]}))
    with pytest.raises(UserError, match="not among the 2 training cases of the arm"):
        go(workspace, ["lgesynth:n=2"], plan_only=True)


def test_a_generator_whose_judge_is_gone_or_another_one_is_named(workspace):
    told = {"checkpoint": str(workspace / "gone.pth"), "hash": "0"}
    write_generator(workspace, reward=told)
    with pytest.raises(UserError, match=r"the judge that tuned it, .*gone\.pth, is gone"):
        go(workspace, ["lgesynth"], plan_only=True)
    judge = write_network(fold_folder(workspace, "real"))
    write_generator(workspace, reward={**told, "checkpoint": str(judge)})
    with pytest.raises(UserError, match="it was trained anew"):
        go(workspace, ["lgesynth"], plan_only=True)
    write_generator(workspace, reward={"checkpoint": str(judge), "hash": Segmenter.load_fold(
        judge.parent, "cpu").hash})
    lines = go(workspace, ["lgesynth"], plan_only=True)["plan"]
    assert [words(line)[1][3] for line in lines] == ["train"]


def test_a_generator_that_saw_the_validation_cases_is_refused(workspace):
    folder = write_generator(workspace, train=["t0", "v1"])
    with pytest.raises(UserError, match=r"1 validation cases of fold 0 \(first: v1\)"):
        go(workspace, ["real", "lgesynth"], plan_only=True)
    (folder / "config.json").write_text(json.dumps({"val": []}))
    with pytest.raises(UserError, match=r"lacks \['config', 'reward', 'train'\]"):
        go(workspace, ["lgesynth"], plan_only=True)


def test_a_training_whose_pool_holds_validation_cases_is_refused(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    fill_pool(workspace, "paint")
    path = fold_folder(workspace, "paint") / "lgesynth_pool" / "manifest.jsonl"
    path.write_text(path.read_text().replace('"source": "t0"', '"source": "v1"'))
    with pytest.raises(UserError, match=r"manifest\.jsonl names 1 validation cases .*first: v1"):
        go(workspace)
    assert {r["arm"] for r in read_rows(workspace / "out" / f"cases_{NAME}.jsonl")} == {
        "real", "real+filter"}


def test_a_training_of_another_split_is_refused(workspace):
    finish(workspace, "real", 8, 0.0)
    path = fold_folder(workspace, "real") / "lgesynth.jsonl"
    told = path.read_text()
    path.write_text(told.replace("{", '{"split": "0123456789ab", ', 1))
    with pytest.raises(UserError, match=r"lgesynth\.jsonl is of another split .*0123456789ab"):
        go(workspace, ["real"])
    summary = fold_folder(workspace, "real") / "validation" / "summary.json"
    told_cases = summary.read_text()
    path.write_text(told)
    summary.write_text(json.dumps({"metric_per_case": [
        {"reference_file": f"{c}.nii.gz"} for c in ("t0", "v1", "v2", "v3")]}))
    with pytest.raises(UserError, match=r"summary\.json is of another split: v0"):
        go(workspace, ["real"])
    summary.write_text(told_cases)
    mine = Fold.open(NAME, "2d", 0).split_hash
    path.write_text(told.replace("{", f'{{"split": "{mine}", ', 1))
    assert go(workspace, ["real"])["results"].is_file()


def test_an_external_image_that_was_trained_on_is_refused(workspace, capsys):
    images, labels = workspace / "images", workspace / "labels"
    rng = np.random.default_rng(0)
    for path in (images / "e0_0000.nii.gz", images / "e1_0000.nii.gz",
                 workspace / "nnUNet_raw" / NAME / "imagesTr" / "t1_0000.nii.gz"):
        write_image(path, image := rng.normal(size=(3, 16, 16)).astype(np.float32))
    for case in ("e0", "e1"):
        write_image(labels / f"{case}.nii.gz", heart(3))
    go(workspace, ["real"], images=images, labels=labels, plan_only=True)
    told = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["validation", "external"]             # what patients can show, nothing else
    raw = workspace / "nnUNet_raw" / NAME
    (raw / "imagesTr").rename(raw / "away")
    go(workspace, ["real"], images=images, labels=labels, plan_only=True)
    told = capsys.readouterr()
    assert "is not there, so it is not checked" in told.err and "checked" not in told.out
    (raw / "away").rename(raw / "imagesTr")
    write_image(images / "e1_0000.nii.gz", image)
    with pytest.raises(UserError, match=r"e1_0000\.nii\.gz is the training image .*t1_0000"):
        go(workspace, ["real"], images=images, labels=labels, plan_only=True)


def test_a_generator_of_other_settings_is_not_recorded_as_the_preset(workspace):
    write_generator(workspace, config={"crop_pixels": 32, "text_encoder": "bert"})
    with pytest.raises(UserError, match="crop_pixels 32, not 48; text_encoder bert, not None"):
        go(workspace, ["lgesynth"], plan_only=True)


def test_a_generator_that_saw_a_patient_of_no_training_set_is_refused(workspace):
    """It may be one of the external test cases, taken out of the dataset since."""
    write_generator(workspace, train=["t0", "t1", "e0"])
    with pytest.raises(UserError, match="fitted on e0, which is not among the 2 training cases"):
        go(workspace, ["lgesynth"], plan_only=True)


@pytest.mark.parametrize("told, message", [
    ({"probability": 0.25}, "probability 0.25, not None"), ({"epochs": 5}, "epochs 5, not 2"),
    ({"seed": 1}, "seed 1, not 0"), ({}, None)])
def test_a_training_that_the_shell_changed_is_not_recorded_as_its_arm(workspace, told, message):
    finish(workspace, "paint", 2, 0.4)
    path = fold_folder(workspace, "paint") / "lgesynth.jsonl"
    wanted = {"epochs": 2, "iterations": 1, "probability": None, "warm_up": None,
              "no_reflow_share": None, "seed": 0, "patients": None}
    path.write_text("".join(json.dumps({**row, "told": {**wanted, **told}}) + "\n"
                            for row in read_rows(path)))
    if message is None:
        assert go(workspace, ["paint"])["results"].is_file()
        return
    with pytest.raises(UserError, match=message):
        go(workspace, ["paint"])
    assert not (workspace / "out" / f"cases_{NAME}.jsonl").exists()
