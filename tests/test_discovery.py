"""Laws of trainer discovery: the folder is real, naming it twice changes nothing."""

import os
import subprocess
import sys

from nnunet_lgesynth.discovery import (
    VARIABLE,
    add_to_environment,
    in_environment,
    list_trainers,
    trainers_folder,
)


def test_folder_holds_every_listed_trainer():
    names = [name for name, _ in list_trainers()]
    assert "nnUNetTrainerLGESynth" in names and names == sorted(names)
    for name in names:
        assert f"class {name}(" in (trainers_folder() / f"{name}.py").read_text()


def test_every_trainer_says_what_it_does_in_one_line():
    assert all(line.endswith(".") and len(line) < 100 for _, line in list_trainers())


def test_adding_keeps_other_folders_and_adds_once(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert not in_environment()
    add_to_environment()
    once = os.environ[VARIABLE]
    add_to_environment()
    assert in_environment()
    assert os.environ[VARIABLE] == once == os.pathsep.join([str(tmp_path), str(trainers_folder())])


def test_adding_to_an_unset_variable_names_our_folder_alone(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")     # so that monkeypatch restores the variable
    monkeypatch.delenv(VARIABLE)
    add_to_environment()
    assert os.environ[VARIABLE] == str(trainers_folder())


def test_importing_it_imports_no_nnunet():
    code = ("import sys, nnunet_lgesynth.discovery as d; d.list_trainers(); "
            "sys.exit('nnunetv2' in sys.modules or 'torch' in sys.modules)")
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0
