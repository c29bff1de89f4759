"""Laws of finding a generator: the right one is loaded with its judge, a wrong one is refused."""

import dataclasses
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_fold import in_3d
from tiny_inpaint import tiny_config
from tiny_nnunet import write_tiny_model
from tiny_training import enter_nnunet, write_tiny_training

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.fitted import generator_folder
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.generator import (
    find_inpainter,
    fit_generator,
    load_generator,
    usable_device,
)

CPU = torch.device("cpu")
DATASET = "Dataset116_EMIDECROI"
FIT = "lgesynth fit -d Dataset116_EMIDECROI -c 2d -f 0 -p nnUNetPlans"


@pytest.fixture
def fold(tmp_path, monkeypatch) -> Fold:
    enter_nnunet(monkeypatch, tmp_path)
    return write_tiny_training(tmp_path)


def write_config(tmp_path, preset="tiny", **values):
    """A fitted generator's config.json, without its weights."""
    folder = generator_folder(tmp_path / "nnUNet_results", DATASET, preset, "nnUNetPlans", "2d", 0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"train": [], "reward": None, **values}))
    return folder


def test_the_painter_needs_neither_fit_nor_judge(fold):
    painter, judge = load_generator("paint", fold, CPU)
    assert isinstance(painter, Painter) and judge is None


def test_an_unknown_generator_is_named(fold):
    with pytest.raises(UserError, match="no generator 'gan'; choose 'paint' or 'lgesynth'"):
        load_generator("gan", fold, CPU)


def test_an_unfitted_generator_is_refused_with_the_command_that_fits_it(fold, monkeypatch):
    with pytest.raises(UserError, match=f"No generator is fitted.*{FIT}"):
        load_generator("lgesynth", fold, CPU)
    monkeypatch.setenv("LGESYNTH_GENERATOR", "/nowhere")
    with pytest.raises(UserError, match=f"LGESYNTH_GENERATOR=/nowhere holds no.*{FIT}"):
        load_generator("lgesynth", fold, CPU)


def test_the_newest_fitted_preset_is_found_and_an_unfinished_one_is_not(fold, tmp_path,
                                                                        monkeypatch):
    old, new = (write_config(tmp_path, preset) for preset in ("b", "a"))
    os.utime(old / "config.json", (1, 1))
    assert find_inpainter(fold) == new
    os.utime(old / "config.json")
    os.utime(new / "config.json", (1, 1))
    assert find_inpainter(fold) == old
    (old / "config.json").unlink()
    assert find_inpainter(fold) == new
    monkeypatch.setenv("LGESYNTH_GENERATOR", str(old))
    with pytest.raises(UserError, match="holds no fitted generator"):
        find_inpainter(fold)


def test_a_3d_fold_is_served_by_the_inpainter_and_the_judge_of_2d(fold, tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_lgesynth.generators.inpaint.train.draw_picture", lambda *_: None)
    stacks = in_3d(fold)
    (fold.folder.parent / "nnUNetPlans.json").write_text(json.dumps(stacks.plans))
    with pytest.raises(UserError, match=rf"fitted for {DATASET}, 2d, fold 0; run: {FIT}"):
        load_generator("lgesynth", stacks, CPU)
    with pytest.raises(UserError, match=r"'3d_fullres' is 3D.*fit it with -c 2d, 3D trainings use"):
        fit_generator("116", "3d_fullres", 0, "nnUNetPlans", tiny_config(), None, "cpu")
    judge_folder = write_tiny_model(tmp_path / "nnUNet_results", seed=1)
    folder = fit_generator("116", "2d", 0, "nnUNetPlans", tiny_config(reward_steps=0), None, "cpu")
    assert find_inpainter(stacks) == folder
    generator, judge = load_generator("lgesynth", stacks, CPU)
    assert generator.hash == json.loads((folder / "config.json").read_text())["hash"]
    assert judge.source == judge_folder / "checkpoint_final.pth" and judge.configuration == "2d"
    stacks.plans["configurations"]["3d_fullres"]["spacing"] = [10.0, 1.5, 1.5]
    with pytest.raises(UserError, match=r"spacing \[1.37, 1.37\] \(here \[1.5, 1.5\]\)"):
        load_generator("lgesynth", stacks, CPU)
    leaky = dataclasses.replace(stacks, train=stacks.train[1:], val=stacks.train[:1])
    with pytest.raises(UserError, match=r"fitted on 1 validation cases of fold 0 \(first: case_00"):
        load_generator("lgesynth", leaky, CPU)


def test_a_generator_that_saw_validation_cases_is_refused(fold, tmp_path):
    write_config(tmp_path, train=[*fold.train, fold.val[1]])
    with pytest.raises(UserError, match=r"fitted on 1 validation cases of fold 0 \(first: case_05"):
        load_generator("lgesynth", fold, CPU)


def test_a_damaged_config_is_refused(fold, tmp_path):
    path = write_config(tmp_path) / "config.json"
    path.write_text("{")
    with pytest.raises(UserError, match="not readable"):
        load_generator("lgesynth", fold, CPU)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"lacks \['reward', 'train'\]"):
        load_generator("lgesynth", fold, CPU)


def test_without_its_judge_the_default_one_is_asked_for(fold, tmp_path):
    write_config(tmp_path, reward={"checkpoint": "/moved/checkpoint_final.pth", "hash": "0"})
    with pytest.raises(UserError, match="real-only nnU-Net of this fold is needed as judge"):
        load_generator("lgesynth", fold, CPU)


def test_a_judge_of_another_fold_is_refused(fold, tmp_path):
    other = write_tiny_model(tmp_path / "nnUNet_results", fold=1)
    write_config(tmp_path, reward={"checkpoint": str(other / "checkpoint_final.pth"), "hash": "0"})
    with pytest.raises(UserError, match="fold 1, which has seen validation cases of fold 0"):
        load_generator("lgesynth", fold, CPU)


def test_a_fitted_generator_comes_with_the_judge_that_tuned_it(fold, tmp_path, without_pictures):
    results = tmp_path / "nnUNet_results"
    judge_folder = write_tiny_model(results, seed=1)
    assert fit_generator(DATASET, "2d", 0, "nnUNetPlans", tiny_config(), None, "cpu",
                         dry_run=True) == generator_folder(results, DATASET, "tiny", "nnUNetPlans",
                                                           "2d", 0)
    with pytest.raises(UserError, match="Text encoder '/nowhere' cannot be loaded"):
        fit_generator(DATASET, "2d", 0, "nnUNetPlans", tiny_config(text_encoder="/nowhere"), None,
                      "cpu", dry_run=True)
    assert not list(results.glob("*/LGESynth*"))
    folder = fit_generator("116", "2d", 0, "nnUNetPlans", tiny_config(), None, "cpu")
    told = json.loads((folder / "config.json").read_text())
    with pytest.raises(UserError, match="fitted already"):
        fit_generator("116", "2d", 0, "nnUNetPlans", tiny_config(), None, "cpu", dry_run=True)
    assert told["train"] == list(fold.train)
    generator, judge = load_generator("lgesynth", fold, CPU)
    assert generator.hash == told["hash"] and judge.hash == told["reward"]["hash"]
    assert judge.source == judge_folder / "checkpoint_final.pth"
    assert (generator.pixels, generator.mm) == (32, 1.4) and np.isfinite(generator.feather_mm)


def test_a_preset_without_reward_is_fitted_without_a_judge_but_not_used_without(
        fold, tmp_path, without_pictures):
    results, call = tmp_path / "nnUNet_results", (DATASET, "2d", 0, "nnUNetPlans")
    with pytest.raises(UserError, match="real-only nnU-Net of this fold is needed as judge"):
        fit_generator(*call, tiny_config(), None, "cpu")
    folder = fit_generator(*call, tiny_config(reward_steps=0), None, "cpu")
    assert json.loads((folder / "config.json").read_text())["reward"] is None
    with pytest.raises(UserError, match="real-only nnU-Net of this fold is needed as judge"):
        load_generator("lgesynth", fold, CPU)
    judge_folder = write_tiny_model(results, seed=1)
    assert load_generator("lgesynth", fold, CPU)[1].source == judge_folder / "checkpoint_final.pth"


def test_a_leaky_start_is_refused_before_anything_is_written(fold, tmp_path):
    results, start = tmp_path / "nnUNet_results", tmp_path / "start"
    write_tiny_model(results, seed=1)
    start.mkdir()
    record = {"train": [*fold.train, fold.val[0]], "hash": "0", "minutes": {},
              "config": dataclasses.asdict(tiny_config())}
    (start / "config.json").write_text(json.dumps(record))
    for dry in (True, False):
        with pytest.raises(UserError, match=f"fitted on {fold.val[0]}, which is no training case"):
            fit_generator(DATASET, "2d", 0, "nnUNetPlans", tiny_config(), None, "cpu", start=start,
                          dry_run=dry)
    assert not list(results.glob("*/LGESynth*"))


@pytest.mark.parametrize("call, message", [
    (("999", "2d", 0), "dataset 999"), (("116", "3d_fullres", 0), "no configuration '3d_fullres'"),
    (("116", "2d", 7), "Fold 7 is not in")])
def test_what_cannot_be_fitted_is_refused(fold, call, message):
    with pytest.raises(UserError, match=message):
        fit_generator(*call, "nnUNetPlans", tiny_config(), None, "cpu")


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("change, message", [
    (lambda a: a * 0, "None of the 4 training cases"),
    (lambda a: np.where(a > 2, 2, a), "no measurable scar"),
    (lambda a: np.where(a == 2, 3, a), "None of the 4 training cases")])
def test_cases_are_examined_before_a_fit_also_in_a_dry_run(fold, tmp_path, change, message):
    write_tiny_model(tmp_path / "nnUNet_results")
    for identifier in fold.train:
        case = fold.read(identifier)
        for path in fold.folder.glob(f"{identifier}*"):
            path.unlink()
        fold.write(replace(case, labels=change(case.labels)), fold.folder)
    for dry in (True, False):
        with pytest.raises(UserError, match=message):
            fit_generator(DATASET, "2d", 0, "nnUNetPlans", tiny_config(), None, "cpu", dry_run=dry)
        assert not list((tmp_path / "nnUNet_results").glob("*/LGESynth*"))


def test_an_unwritable_results_folder_is_refused_before_anything_is_done(fold, tmp_path,
                                                                         monkeypatch):
    def refused(dir):
        raise OSError(30, "Read-only file system")

    write_tiny_model(tmp_path / "nnUNet_results")
    monkeypatch.setattr("nnunet_lgesynth.pool.generator.tempfile.TemporaryFile", refused)
    with pytest.raises(UserError, match=r"nnUNet_results.* is not writable \(Read-only"):
        fit_generator(DATASET, "2d", 0, "nnUNetPlans", tiny_config(), None, "cpu", dry_run=True)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    assert usable_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"-device cuda.*add -device cpu"):
        usable_device("cuda")
