"""Laws of the command line: exit codes, one readable line for a mistake, and light imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_nnunet import tiny_dataset_json
from tiny_training import enter_nnunet, write_tiny_training

from nnunet_lgesynth import __version__
from nnunet_lgesynth.cli import main
from nnunet_lgesynth.dataset.case import fold_folder, nnunet_path
from nnunet_lgesynth.dataset.roles import DatasetInfo, Frame, Roles, read_info, write_info

COMMANDS = ("demo", "convert", "roles", "doctor", "anatomy", "trainers", "fit", "synthesize",
            "train", "benchmark", "audit")
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    enter_nnunet(monkeypatch, tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", "")
    return tmp_path


@pytest.fixture
def fold(nnunet):
    return write_tiny_training(nnunet)


def refused(capsys, *argv: str) -> str:
    """The one line a mistake is answered with."""
    assert main(list(argv)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("lgesynth: error: ")
    assert said.err.count("\n") == 1 and "Traceback" not in said.err
    return said.err


def python(*argv: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("argv", [[], *[[c] for c in COMMANDS]])
def test_help_is_no_error(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "usage: lgesynth" in said and (argv or all(c in said for c in COMMANDS))


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.strip() == __version__


def test_help_runs_as_a_module_and_imports_nothing_heavy():
    done = python("-X", "importtime", "-m", "nnunet_lgesynth", "--help")
    assert done.returncode == 0 and "usage: lgesynth" in done.stdout
    imported = {line.rsplit("|", 1)[1].strip().partition(".")[0]
                for line in done.stderr.splitlines() if line.startswith("import time:")}
    heavy = {"torch", "diffusers", "transformers", "accelerate", "nnunetv2", "scipy", "SimpleITK",
             "matplotlib"}
    assert "nnunet_lgesynth" in imported and not heavy & imported


def test_commands_that_need_no_torch_do_not_import_it():
    code = ("import sys; from nnunet_lgesynth.cli import main; main(['trainers']); "
            "sys.exit(bool({'torch', 'nnunetv2', 'diffusers'} & set(sys.modules)))")
    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("argv", [
    [], ["paint"], ["fit"], ["fit", "-d", "1", "-f", "first"], ["fit", "-d", "1", "-f", "0", "--x"],
    ["train", "1", "2d", "first"], ["convert", "acdc", "-i", "x", "-d", "1"],
    ["fit", "-d", "1", "-f", "0", "--preset", "huge"], ["roles", "-d", "1", "stray"]])
def test_what_cannot_be_parsed_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


def test_trainers_path_is_a_folder_and_the_list_names_every_file_in_it(capsys):
    assert main(["trainers", "--path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "nnUNetTrainerLGESynth.py").is_file()
    assert main(["trainers"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == sorted(p.stem for p in folder.glob("nnUNetTrainer*.py"))


@pytest.mark.parametrize("argv", [
    ["fit", "-d", "116", "-f", "0", "-device", "cpu"], ["roles", "-d", "116"],
    ["train", "116", "2d", "0", "-device", "cpu"],
    ["convert", "emidec", "-i", "nowhere", "-d", "115"],
    ["benchmark", "-d", "116", "-o", "out", "-device", "cpu"]])
def test_missing_environment_variables_are_a_users_mistake(argv, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in PATHS:
        monkeypatch.delenv(name, raising=False)
    assert "nnUNet_" in refused(capsys, *argv)


@pytest.mark.parametrize("argv, message", [
    (["fit", "-d", "998", "-f", "0"], "dataset 998"),
    (["fit", "-d", "116", "-f", "9"], "Fold 9 is not in"),
    (["fit", "-d", "116", "-f", "0", "-c", "3d_fullres"], "no configuration '3d_fullres'"),
    (["fit", "-d", "116", "-f", "0", "-p", "OtherPlans"], "OtherPlans.json is missing"),
    (["fit", "-d", "116", "-f", "0", "-device", "cpu"], "real-only nnU-Net of this fold is needed"),
    (["train", "998", "2d", "0"], "dataset 998"),
    (["train", "116", "2d", "9"], "Fold 9 is not in"),
    (["train", "116", "2d", "0", "-p", "OtherPlans", "--npz"], "OtherPlans.json is missing"),
    (["train", "116", "2d", "0", "-tr", "nnUNetTrainerUnheardOf"], "no trainer 'nnUNetTrainerUnhe"),
    (["roles", "-d", "998"], "0 datasets match 998"),
    (["benchmark", "-d", "998", "-o", "out"], "998")])
def test_unknown_things_are_named_in_one_line(fold, capsys, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *argv)


@pytest.mark.parametrize("more, message", [
    (["--roi", "96"], "--roi and --spacing belong together"),
    (["--spacing", "1.4"], "--roi and --spacing belong together"),
    (["-d", "1000"], "1..999")])
def test_conversion_flags_are_checked(nnunet, capsys, more, message):
    assert message in refused(capsys, "convert", "emidec", "-i", str(nnunet), "-d", "115", *more)
    assert not list((nnunet / "nnUNet_raw").iterdir())


def test_a_full_disk_is_a_users_problem_and_a_bug_is_not(capsys, monkeypatch):
    def fails(error):
        def run(*_, **__):
            raise error
        monkeypatch.setattr("nnunet_lgesynth.dataset.roles.set_roles", run)

    fails(OSError(28, "No space left on device", "/results"))
    assert "/results: No space left on device; free space" in refused(capsys, "roles", "-d", "1")
    fails(OSError(28, "No space left on device"))            # as nnU-Net's own writers raise it
    monkeypatch.setenv("nnUNet_results", "/mine")
    assert "/mine: No space left on device; free space" in refused(capsys, "roles", "-d", "1")
    for bug in (FileNotFoundError(2, "gone"), KeyError("x")):
        fails(bug)
        with pytest.raises(type(bug)):
            main(["roles", "-d", "1"])
    fails(KeyboardInterrupt())
    assert main(["roles", "-d", "1"]) == 130


@pytest.fixture
def raw(nnunet):
    folder = nnunet / "nnUNet_raw" / "Dataset007_Mine"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(tiny_dataset_json()))
    return folder


def test_roles_are_guessed_written_and_shown(raw, capsys):
    assert main(["roles", "-d", "7"]) == 0
    assert str(raw / "lgesynth.json") in capsys.readouterr().out
    assert read_info(raw).roles == Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
    assert main(["roles", "-d", "Dataset007_Mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["no_reflow"] == 4


def test_roles_can_be_told_and_a_known_orientation_is_kept(raw, capsys):
    frame = Frame("apex_to_base", (-1.0, 0.0), (0.0, -1.0))
    write_info(raw, DatasetInfo(Roles(cavity=1, myocardium=2, scar=3), frame))
    assert main(["roles", "-d", "7", "--scar", "no_reflow", "--no-reflow", "3"]) == 0
    info = read_info(raw)
    assert (info.roles.scar, info.roles.no_reflow, info.frame) == (4, 3, frame)
    capsys.readouterr()
    assert "no such label" in refused(capsys, "roles", "-d", "7", "--rv", "ventricle")
    assert read_info(raw) == info                      # a refusal changes nothing


def test_unclear_labels_and_channels_are_asked_for(raw, capsys):
    (raw / "dataset.json").write_text(json.dumps(
        {"channel_names": {"0": "A", "1": "B"}, "labels": {"background": 0, "lv": 1, "wall": 2,
                                                           "bright": 3}}))
    assert "--scar LABEL_NAME" in refused(capsys, "roles", "-d", "7")
    assert "Which channel is LGE" in refused(capsys, "roles", "-d", "7", "--scar", "bright")
    assert main(["roles", "-d", "7", "--scar", "bright", "--channel", "B"]) == 0
    assert read_info(raw).roles == Roles(cavity=1, myocardium=2, scar=3, lge_channel=1)


def test_train_hands_everything_to_nnunet_and_finds_our_trainers(fold, monkeypatch):
    seen = {}

    def entry():
        seen.update(argv=sys.argv[1:], environment=dict(os.environ))
    monkeypatch.setattr("nnunetv2.run.run_training.run_training_entry", entry)
    for name in ("EPOCHS", "ITERATIONS", "SEED", "PROBABILITY", "GENERATOR"):
        monkeypatch.setenv(f"LGESYNTH_{name}", "")       # so that monkeypatch restores them
    before = list(sys.argv)
    assert main(["train", "116", "2d", "all", "-tr", "nnUNetTrainerLGEPaint", "-device", "cpu",
                 "--epochs", "3", "--npz", "--c", "--seed", "0", "--probability", "0.25"]) == 0
    assert seen["argv"] == ["116", "2d", "all", "-tr", "nnUNetTrainerLGEPaint", "--npz", "--c",
                            "-p", "nnUNetPlans", "-device", "cpu"]
    told = {n: seen["environment"][f"LGESYNTH_{n}"] for n in ("EPOCHS", "SEED", "PROBABILITY")}
    assert told == {"EPOCHS": "3", "SEED": "0", "PROBABILITY": "0.25"}
    assert Path(seen["environment"]["nnUNet_extTrainer"].split(os.pathsep)[-1]).is_dir()
    assert sys.argv == before
    folder = fold_folder(nnunet_path("nnUNet_results"), fold.dataset, "nnUNetTrainerLGEPaint",
                         "nnUNetPlans", "2d", "all")
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_bytes(b"")        # nothing is left but to validate
    assert main(["train", "116", "2d", "all", "-tr", "nnUNetTrainerLGEPaint", "-device", "cpu",
                 "--c"]) == 0
    assert "--val" in seen["argv"] and "--c" not in seen["argv"]


def test_the_benchmarks_flags_reach_it(nnunet, monkeypatch, capsys):
    seen = {}

    def compared(*_, **told):
        seen.update(told)
        return {"plan": ["a line"], "verdict": "No evidence.", "report": "report.html"}
    monkeypatch.setattr("nnunet_lgesynth.benchmark.run.benchmark", compared)
    for flag, told, printed in (("--collect", (False, True), "No evidence."),
                                ("--plan", (True, False), "a line"),
                                ("--ensemble", (False, False), "No evidence.")):
        assert main(["benchmark", "-d", "116", "-o", "out", flag]) == 0
        assert (seen["plan_only"], seen["collect_only"]) == told
        assert printed in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", "-d", "116", "-o", "out", "--plan", "--collect"])
    assert "--collect: not allowed with argument --plan" in capsys.readouterr().err


def test_train_takes_nnunets_flags_in_any_order(fold, monkeypatch):
    seen = []
    monkeypatch.setattr("nnunetv2.run.run_training.run_training_entry",
                        lambda: seen.extend(sys.argv[1:]))
    assert main(["train", "-num_gpus", "1", "116", "2d", "0", "-tr", "nnUNetTrainerLGEReal",
                 "-pretrained_weights", "x.pth", "-device", "cpu"]) == 0
    assert seen[:3] == ["116", "2d", "0"]
    pairs = dict(zip(seen[3::2], seen[4::2]))
    assert pairs == {"-tr": "nnUNetTrainerLGEReal", "-p": "nnUNetPlans", "-device": "cpu",
                     "-num_gpus": "1", "-pretrained_weights": "x.pth"}


def test_flags_that_a_stock_trainer_would_not_obey_are_refused(fold, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "train", "116", "2d", "0", "-tr", "nnUNetTrainer", "--epochs", "3")
    assert "--epochs: nnUNetTrainer has its own numbers" in said
    said = refused(capsys, "benchmark", "-d", "116", "-o", "out", "--arms", "real", "nnUNetTrainer",
                   "--epochs", "3", "-device", "cpu")
    assert "--epochs: nnUNetTrainer has its own numbers" in said and not (tmp_path / "out").exists()
    said = refused(capsys, "benchmark", "-d", "116", "-o", "out", "--arms", "real",
                   "nnUNetTrainerTypo", "-device", "cpu")
    assert "no trainer 'nnUNetTrainerTypo'" in said


def test_a_broken_file_among_the_trainers_is_named(fold, capsys, monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "aBroken.py").write_text("import no_such_module\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))
    said = refused(capsys, "train", "116", "2d", "0", "-tr", "nnUNetTrainerLGEReal", "-device",
                   "cpu")
    assert "does not import" in said and "no_such_module" in said and str(tmp_path) in said


def test_a_missing_device_is_refused_before_nnunet_starts(fold, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = refused(capsys, "train", "116", "2d", "0", "-tr", "nnUNetTrainerLGEPaint")
    assert "-device cuda: this machine has none" in said and "add -device cpu" in said


def test_train_reaches_the_trainer_whose_refusal_is_one_line(fold, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "")
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)     # nnU-Net would take all cores
    assert main(["train", "116", "2d", "0", "-device", "cpu"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lgesynth: error: No generator is fitted")
    assert said.err.count("\n") == 1 and "nnUNetTrainerLGESynth" in said.out
