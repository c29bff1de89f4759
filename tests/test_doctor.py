"""Laws of the doctor: it never raises, finds each planted fault, and names a remedy for it."""

import configparser
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_fold import SPACING, tiny_case
from tiny_nnunet import tiny_dataset_json, tiny_plans, write_tiny_model

from nnunet_lgesynth import doctor
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.dataset.roles import DatasetInfo, Roles, write_info
from nnunet_lgesynth.discovery import VARIABLE, trainers_folder
from nnunet_lgesynth.doctor_dataset import DATASET_CHECKS, Target
from nnunet_lgesynth.judge.segmenter import Segmenter

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "Dataset116_Hearts"
TARGET = Target(NAME, "2d", "nnUNetPlans", 0)
IN_3D = Target(NAME, "3d_fullres", "nnUNetPlans", 0)
CASES = ("a", "b", "c", "d")


def check(name, *arguments):
    """The findings of one of the doctor's own checks."""
    return doctor._run(name, getattr(doctor, f"_{name}"), *arguments)


def check_dataset(name, target=TARGET):
    return doctor._run(name, DATASET_CHECKS[name], target)


def only(findings, status):
    """The single finding expected; a fault always has a remedy, health never."""
    assert [f.status for f in findings] == [status]
    assert findings[0].message and bool(findings[0].remedy) == (status != "ok")
    return findings[0]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A healthy small dataset in nnU-Net's folders; returns {raw, preprocessed, results}."""
    folders = {}
    for part in ("raw", "preprocessed", "results"):
        folders[part] = tmp_path / part / NAME
        folders[part].mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    monkeypatch.delenv("LGESYNTH_GENERATOR", raising=False)
    described = tiny_dataset_json(regions=True)
    plans = tiny_plans(dataset=NAME)
    plans["configurations"] |= tiny_plans(configuration="3d_fullres", patch=(4, 32, 32),
                                          spacing=SPACING)["configurations"]
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres",
                                                     "previous_stage": "3d_lowres"}
    _put(folders["raw"] / "dataset.json", described)
    write_info(folders["raw"], DatasetInfo(Roles(1, 2, 3, no_reflow=4)))
    _put(folders["preprocessed"] / "dataset.json", described)
    _put(folders["preprocessed"] / "nnUNetPlans.json", plans)
    _put(folders["preprocessed"] / "splits_final.json",
         [{"train": ["a", "b", "c"], "val": ["d"]}, {"train": ["b", "c", "d"], "val": ["a"]}])
    cases = folders["preprocessed"] / "nnUNetPlans_2d"
    _put(cases / "format.b2nd", "")                 # tells nnU-Net the folder's format
    fold = Fold.of_training(plans, "2d", 0, described, cases, [], [])
    for number, case in enumerate(CASES):           # a and c are scarred
        fold.write(replace(tiny_case(number), identifier=case), cases)
    (cases / "format.b2nd").unlink()
    write_tiny_model(tmp_path / "results", plans=plans, regions=True)
    _put(folders["results"] / "LGESynth_demo__nnUNetPlans__2d/fold_0/config.json",
         {"train": ["a", "b", "c"], "reward": None})
    return folders


def _put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_package_bounds_are_those_of_the_install():
    config = configparser.ConfigParser(inline_comment_prefixes=("#",))
    config.read(REPOSITORY / "setup.cfg")
    wanted = [line.partition(">=") for line in
              config["options"]["install_requires"].splitlines() if line.strip()]
    bounds = {name.strip(): oldest.strip() or "0" for name, _, oldest in wanted}
    for name, oldest, _ in doctor.PACKAGES:
        assert bounds[name] == oldest


def test_package_present_missing_old_and_broken(monkeypatch):
    only(check("package", "numpy", "1.0", "ndarray"), "ok")
    assert "not installed" in only(check("package", "nnunet-lgesynth-none", "1", "x"),
                                   "error").message
    assert "older than 999" in only(check("package", "numpy", "999.1", "ndarray"), "error").message

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "import_module", broken)
    found = only(check("package", "torchvision", "0", "ops"), "error")
    assert "nms" in found.message and "torch torchvision" in found.remedy


def test_versions_compare_as_numbers():
    assert doctor._numbers("2.10.0+cu126") > doctor._numbers("2.8.1")
    assert doctor._numbers("2.8.1.post1") == doctor._numbers("2.8.1")


def test_folder_unset_missing_unwritable_and_well(monkeypatch, tmp_path):
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert "export nnUNet_results" in only(check("folder", "nnUNet_results"), "error").remedy
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "none"))
    assert "mkdir" in only(check("folder", "nnUNet_results"), "error").remedy
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    only(check("folder", "nnUNet_results"), "ok")
    assert not list(tmp_path.iterdir())

    def refused(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    assert "Read-only" in only(check("folder", "nnUNet_results"), "error").message
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))        # training only reads this one
    only(check("folder", "nnUNet_raw"), "warning")


def test_low_disk_is_a_warning(dataset, monkeypatch):
    only(check("disk"), "ok")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10e9, 9e9, 1e9))
    assert "1.0 GB" in only(check("disk"), "warning").message


def test_trainers_are_found_by_nnunet_in_a_fresh_process(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv(VARIABLE, str(trainers_folder()))
    only(check("trainers"), "ok")


def test_trainers_not_found_tells_the_export_or_the_failing_file(monkeypatch):
    def fails(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nImportError: no torch9\n")

    monkeypatch.setattr(doctor.subprocess, "run", fails)
    monkeypatch.delenv(VARIABLE, raising=False)
    found = only(check("trainers"), "error")
    assert found.remedy == f'export {VARIABLE}="$(lgesynth trainers --path)"'
    monkeypatch.setenv(VARIABLE, str(trainers_folder()))
    assert "no torch9" in only(check("trainers"), "error").message


def test_lookup_does_not_see_the_working_directory(tmp_path, monkeypatch):
    """A console script does not import from where it is run, so neither may the check."""
    (tmp_path / "nnunetv2.py").write_text("raise SystemExit(7)")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    head = doctor.LOOKUP.partition("from nnunetv2")[0]
    code = head + "from importlib.util import find_spec; print(find_spec('nnunetv2').origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    assert str(tmp_path) not in done.stdout


def test_device_that_is_there_and_one_that_is_not():
    only(check("device", "cpu"), "ok")
    assert "-device cpu" in only(check("device", "cuda:99"), "error").remedy
    only(check("device", "abacus"), "error")


@pytest.mark.parametrize(("value", "status"), [("1", "ok"), ("0", "ok"), ("two", "error")])
def test_worker_count_is_checked(monkeypatch, value, status):
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    only(check("workers"), status)


def test_too_many_workers_on_a_small_machine(monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    assert only(check("workers"), "warning").remedy == "export nnUNet_n_proc_DA=1"


def test_a_check_that_breaks_becomes_a_finding_after_what_it_had_found():
    def breaks():
        yield "ok", "First."
        raise MemoryError("no room\nfor more")

    first, second = doctor._run("name", breaks)
    assert (first.status, second.status) == ("ok", "error")
    assert second.message == "MemoryError: no room" and second.remedy


def test_healthy_dataset_has_no_fault(dataset):
    for name in DATASET_CHECKS:
        only(check_dataset(name), "ok")


def test_a_3d_training_needs_the_judge_and_the_generator_of_2d(dataset):
    shutil.copytree(dataset["preprocessed"] / "nnUNetPlans_2d",
                    dataset["preprocessed"] / "nnUNetPlans_3d_fullres")
    for name in DATASET_CHECKS:
        only(check_dataset(name, IN_3D), "ok")
    other = replace(IN_3D, fold=1)
    assert "nnUNetv2_train 116 2d 1" in only(check_dataset("judge", other), "warning").remedy
    assert "lgesynth fit -d 116 -c 2d -f 1" in only(check_dataset("generator", other),
                                                    "warning").remedy


def test_unknown_dataset_and_fold(dataset):
    assert "99" in only(check("dataset", 99, 0), "error").message
    only(check("dataset", "Hearts", 0), "error")
    only(check("dataset", "116", "first"), "error")
    only(check("dataset", NAME, "all"), "ok")


def test_unset_folder_is_named(dataset, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "export nnUNet_preprocessed" in only(check_dataset("plans"), "error").remedy


def test_labels_need_roles_that_the_dataset_has(dataset):
    write_info(dataset["raw"], DatasetInfo(Roles(1, 2, 3, no_reflow=7)))
    found = only(check_dataset("labels"), "error")
    assert "[7]" in found.message and "lgesynth roles -d 116" in found.remedy
    write_info(dataset["raw"], DatasetInfo(Roles(1, 2, 3, lge_channel=1)))
    assert "channel 1" in only(check_dataset("labels"), "error").message
    (dataset["raw"] / "lgesynth.json").unlink()
    assert "lgesynth roles" in only(check_dataset("labels"), "error").remedy
    (dataset["raw"] / "dataset.json").write_text("{")
    assert "not readable" in only(check_dataset("labels"), "error").message


def test_plans_configuration_and_cases_must_exist(dataset):
    other = Target(NAME, "2d_tall", "nnUNetPlans", 0)
    assert "2d_tall" in only(check_dataset("plans", other), "error").message
    assert "nnUNetPlans_3d_fullres is missing" in only(check_dataset("plans", IN_3D),
                                                       "error").message
    found = only(check_dataset("plans", Target(NAME, "3d_cascade_fullres", "nnUNetPlans", 0)),
                 "error")
    assert "second stage of a cascade" in found.message and "-c 3d_fullres" in found.remedy
    only(check_dataset("plans", Target(NAME, "2d", "nnUNetResEncUNetMPlans", 0)), "error")
    (dataset["preprocessed"] / "nnUNetPlans_2d").rename(dataset["preprocessed"] / "moved")
    found = only(check_dataset("plans"), "error")
    assert "nnUNetv2_plan_and_preprocess -d 116 -c 2d" in found.remedy


def test_splits_must_be_separate_complete_and_hold_the_fold(dataset):
    path = dataset["preprocessed"] / "splits_final.json"
    assert "2 folds" in only(check_dataset("splits", Target(NAME, "2d", "nnUNetPlans", 5)),
                             "error").message
    only(check_dataset("splits", Target(NAME, "2d", "nnUNetPlans", "all")), "ok")
    _put(path, [{"train": ["a", "b", "d"], "val": ["d"]}])
    assert "first: d" in only(check_dataset("splits"), "error").message
    _put(path, [{"train": ["a", "b", "ghost"], "val": ["d"]}])
    assert "ghost" in only(check_dataset("splits"), "error").message
    path.unlink()
    only(check_dataset("splits"), "warning")
    assert not path.exists()


def relabel(dataset, identifiers, change):
    fold = Fold.open(NAME, "2d", 0)
    for identifier in identifiers:
        case = fold.read(identifier)
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (fold.folder / f"{identifier}{ending}").unlink()
        fold.write(replace(case, labels=change(case.labels)), fold.folder)


def test_hearts_say_what_there_is_to_learn_from_and_to_paint_into(dataset):
    found = only(check_dataset("hearts"), "ok")
    assert "3 training cases: 2 with a scar" in found.message and "1 of these free" in found.message
    relabel(dataset, "b", lambda a: a * 0)
    first, second = check_dataset("hearts")
    assert first.status == second.status == "warning" and second.remedy
    assert "1 of 3" in first.message and "left out; the first: b: " in first.message
    assert "tells a scar" in second.message
    relabel(dataset, "ac", lambda a: np.where(a > 2, 2, a))
    assert "no measurable scar" in check_dataset("hearts")[-1].message
    relabel(dataset, "ac", lambda a: np.where(a == 1, 0, a))
    assert check_dataset("hearts")[-1].status == "error"


def test_hearts_leave_to_others_what_others_report(dataset):
    (dataset["preprocessed"] / "splits_final.json").unlink()
    assert check_dataset("hearts") == []
    (dataset["preprocessed"] / "nnUNetPlans_2d").rename(dataset["preprocessed"] / "moved")
    assert check_dataset("hearts") == []
    assert not (dataset["preprocessed"] / "splits_final.json").exists()


def test_missing_judge_and_generator_are_warnings_with_their_command(dataset):
    fold = Target(NAME, "2d", "nnUNetPlans", 1)
    assert "nnUNetv2_train 116 2d 1" in only(check_dataset("judge", fold), "warning").remedy
    assert "lgesynth fit -d 116 -c 2d -f 1" in only(check_dataset("generator", fold),
                                                    "warning").remedy


def test_a_judge_that_does_not_load_or_match_is_an_error(dataset):
    folder = dataset["results"] / "nnUNetTrainer__nnUNetPlans__2d"
    model = folder / "dataset.json"
    model.write_text(model.read_text().replace("LGE", "cine"))
    assert "['cine'] (here ['LGE'])" in only(check_dataset("judge"), "error").remedy
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"garbage")
    assert "checkpoint_final.pth" in only(check_dataset("judge"), "error").message


def test_generator_that_saw_validation_cases_is_an_error(dataset):
    config = dataset["results"] / "LGESynth_demo__nnUNetPlans__2d/fold_0/config.json"
    _put(config, {"train": ["a", "d"], "reward": None})
    assert "first: d" in only(check_dataset("generator"), "error").message
    _put(config, {})
    only(check_dataset("generator"), "error")


def test_generator_whose_judge_was_trained_anew_is_an_error(dataset):
    judge = dataset["results"] / "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth"
    config = dataset["results"] / "LGESynth_demo__nnUNetPlans__2d/fold_0/config.json"
    told = {"train": ["a"], "reward": {"checkpoint": str(judge), "hash": "another"}}
    _put(config, told)
    assert "it was trained anew" in only(check_dataset("generator"), "error").message
    told["reward"]["hash"] = Segmenter.load_fold(judge.parent, "cpu").hash
    _put(config, told)
    assert str(judge) in only(check_dataset("generator"), "ok").message


def test_told_generator_is_the_one_examined(dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("LGESYNTH_GENERATOR", str(tmp_path / "none"))
    assert str(tmp_path / "none") in only(check_dataset("generator"), "error").message


def test_examine_covers_machine_and_dataset(dataset, monkeypatch):
    def finds(command, **_):
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(doctor.subprocess, "run", finds)
    monkeypatch.setattr(doctor, "PACKAGES", (("numpy", "1.0", "ndarray"),))
    findings = doctor.examine(116, device="cpu")
    checks = {f.check for f in findings}
    assert {"python", "numpy", "disk", "trainers", "device", "workers", "dataset"} <= checks
    assert set(DATASET_CHECKS) | set(doctor.FOLDERS) <= checks
    assert not [f for f in findings if f.status == "error"]
    unknown = doctor.examine(99, device="cpu")
    assert unknown[-1].check == "dataset" and unknown[-1].status == "error"
