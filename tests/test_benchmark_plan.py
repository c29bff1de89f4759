"""What a benchmark still has to run: its jobs, their order and commands, and how they are run."""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest
from toy_benchmark import (
    NAME,
    PLANS,
    fill_pool,
    finish,
    fold_folder,
    go,
    words,
    write_generator,
    write_network,
)
from waiting import until

from nnunet_lgesynth.benchmark.jobs import run_jobs, visible_gpus
from nnunet_lgesynth.benchmark.plan import Job
from nnunet_lgesynth.benchmark.settings import Settings, injects, painter_of
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.discovery import find_trainer, list_trainers
from nnunet_lgesynth.generators.fitted import generator_folder
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.processes import sigterm_as_exit


def test_the_plan_lists_missing_jobs_in_an_order_that_can_run(workspace):
    lines = go(workspace, ["real", "lgesynth", "paint"], seeds=2, plan_only=True)["plan"]
    jobs = [words(line) for line in lines]
    assert [argv[3] for _, argv in jobs] == ["train"] * 4 + ["fit"] + ["train"] * 2
    assert [line[-1] for line in lines] == list("0000122") and "  # stage 0" in lines[0]
    assert not (workspace / "out" / "seed_0").exists()
    fit_env, fit = jobs[4]
    assert fit_env == {"nnUNet_results": str(workspace / "nnUNet_results")}
    assert fit[fit.index("--reward") + 1] == str(fold_folder(workspace, "real"))
    assert fit[fit.index("--preset") + 1] == "demo"
    generator = generator_folder(workspace / "nnUNet_results", NAME, "demo", "nnUNetPlans", "2d", 0)
    for seed, (env, argv) in enumerate(jobs[5:]):
        assert env == {"LGESYNTH_SEED": str(seed), "LGESYNTH_GENERATOR": str(generator),
                       "nnUNet_results": str(workspace / "out" / f"seed_{seed}" / "nnUNet_results")}
        assert argv == [sys.executable, "-m", "nnunet_lgesynth", "train", NAME, "2d", "0", "-tr",
                        "nnUNetTrainerLGESynth", "-device", "cpu", "--epochs", "2", "--iterations",
                        "1", "--c"]
    assert all("LGESYNTH_GENERATOR" not in env for env, _ in jobs[:4])


def test_the_plan_uses_a_stock_checkpoint_and_adds_the_judge_where_none_is_asked(workspace):
    lines = go(workspace, ["lgesynth"], plan_only=True)["plan"]
    assert [words(line)[1][3] for line in lines] == ["train", "fit", "train"]
    assert "nnUNetTrainerLGEReal" in lines[0]
    stock = workspace / "nnUNet_results" / NAME / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    stock.mkdir(parents=True)
    (stock / "checkpoint_final.pth").write_bytes(b"")
    lines = go(workspace, ["lgesynth"], plan_only=True)["plan"]
    assert [words(line)[1][3] for line in lines] == ["fit", "train"] and str(stock) in lines[0]


def test_an_ablation_of_the_generator_is_an_arm_with_a_fit_of_its_own(workspace):
    jobs = [words(line) for line in go(workspace, ["real", "lgesynth", "lgesynth:g=roi-cpu-plain"],
                                       plan_only=True)["plan"]]
    assert [argv[3] for _, argv in jobs] == ["train", "fit", "fit", "train", "train"]
    assert [argv[argv.index("--preset") + 1] for _, argv in jobs[1:3]] == ["demo", "roi-cpu-plain"]
    for preset, (env, _) in zip(("demo", "roi-cpu-plain"), jobs[3:]):
        assert env["LGESYNTH_GENERATOR"] == str(generator_folder(
            workspace / "nnUNet_results", NAME, preset, "nnUNetPlans", "2d", 0))
    assert len({env["nnUNet_results"] for env, _ in jobs[3:]}) == 2
    with pytest.raises(UserError, match="names one twice, since --preset is demo"):
        go(workspace, ["lgesynth", "lgesynth:g=demo"], plan_only=True)
    with pytest.raises(UserError, match="--jobs must be at least 1, not 0"):
        go(workspace, ["real"], plan_only=True, jobs=0)


def test_3d_arms_are_planned_with_a_2d_judge_and_generator(workspace):
    base = workspace / "nnUNet_preprocessed" / NAME
    settings = {**PLANS["configurations"]["2d"], "data_identifier": "nnUNetPlans_3d_fullres",
                "patch_size": [4, 16, 16], "spacing": [8.0, 1.0, 1.0]}
    (base / "nnUNetPlans.json").write_text(json.dumps(
        {**PLANS, "configurations": {**PLANS["configurations"], "3d_fullres": settings}}))
    shutil.copytree(base / "nnUNetPlans_2d", base / "nnUNetPlans_3d_fullres")

    def planned(*arms):
        return [words(line) for line in go(workspace, arms, configuration="3d_fullres",
                                           plan_only=True)["plan"]]
    jobs = planned("real", "lgesynth")
    assert [argv[3] for _, argv in jobs] == ["train", "train", "fit", "train"]
    assert [argv[5] for _, argv in jobs if argv[3] == "train"] == ["3d_fullres", "2d", "3d_fullres"]
    judge = fold_folder(workspace, "real")                         # the 2D one
    assert jobs[1][0]["nnUNet_results"] == str(judge.parents[2])
    assert jobs[2][1][jobs[2][1].index("--reward") + 1] == str(judge)
    assert jobs[2][1][jobs[2][1].index("-c") + 1] == "2d"
    generator = generator_folder(workspace / "nnUNet_results", NAME, "demo", "nnUNetPlans", "2d", 0)
    assert jobs[3][0]["LGESYNTH_GENERATOR"] == str(generator)
    (base / "nnUNetPlans_2d").rename(base / "moved")
    assert [argv[5] for _, argv in planned("real", "paint")] == ["3d_fullres"] * 2
    with pytest.raises(UserError, match=r"nnUNetPlans_2d is missing; run: .* -c 2d"):
        planned("lgesynth")


def test_variants_are_planned_with_their_own_results_and_generators(workspace):
    arms = ["real", "lgesynth:p=0.25", "lgesynth:n=2", "real:n=2"]
    lines = [words(line) for line in go(workspace, arms, plan_only=True)["plan"]]
    by_command = [(argv[3], env.get("LGESYNTH_PROBABILITY"), env.get("LGESYNTH_PATIENTS"),
                   Path(env["nnUNet_results"]).parent.name) for env, argv in lines]
    home = workspace.name
    assert by_command == [
        ("train", None, None, "seed_0"), ("train", None, "2", "seed_0_n2"),
        ("fit", None, None, home), ("fit", None, None, home),
        ("train", "0.25", None, "seed_0_p0.25"), ("train", None, "2", "seed_0_n2")]
    whole, few = (argv for _, argv in lines if argv[3] == "fit")
    assert "--patients" not in whole and few[few.index("--patients") + 1] == "2"
    assert "seed_0/" in whole[whole.index("--reward") + 1]
    assert "seed_0_n2/" in few[few.index("--reward") + 1]
    generators = [Path(env["LGESYNTH_GENERATOR"]).parent.name.split("__")[0]
                  for env, argv in lines if "LGESYNTH_GENERATOR" in env]
    assert generators == ["LGESynth_demo", "LGESynth_demo-n2"]
    for twice in (["lgesynth:p=1", "synthetic-only"], ["real:n=2", "real:n=02"]):
        with pytest.raises(UserError, match="names one twice"):
            go(workspace, twice, plan_only=True)
    with pytest.raises(UserError, match=r"must lie in 2\.\.2 for fold 0, not 3"):
        go(workspace, ["real:n=3"], plan_only=True)
    synthetic, = go(workspace, ["synthetic-only"], plan_only=True)["plan"][-1:]
    assert "--warm-up 64" in synthetic and "LGESYNTH_PROBABILITY=1.0" in synthetic


def test_a_trainer_of_ones_own_is_what_its_class_says(workspace, monkeypatch):
    """Not what its name does; those of the plugin are known without being imported."""
    for name, _ in list_trainers():
        assert painter_of(name) == find_trainer(name).generator
    own = workspace / "own"
    own.mkdir()
    (own / "nnUNetTrainerAlike.py").write_text(          # a word of its own means nothing to us
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainerAlike(nnUNetTrainer):\n    generator = 'lgesynth'\n")
    for name, painter in (("Inpaints", "lgesynth"), ("Paints", "paint"), ("Plain", None)):
        (own / f"nnUNetTrainer{name}.py").write_text(
            "from nnunet_lgesynth.trainer import LGESynthTrainer\n\n\n"
            f"class nnUNetTrainer{name}(LGESynthTrainer):\n    generator = {painter!r}\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(own))
    arms = ["real", "nnUNetTrainerInpaints", "nnUNetTrainerPaints:p=1", "nnUNetTrainerPlain",
            "nnUNetTrainerAlike"]
    settings = Settings(NAME, "2d", tuple(arms), (0,), 1, workspace, preset="demo")
    assert [settings.recipe(arm).preset for arm in arms] == [None, "demo", None, None, None]
    assert [injects(settings.recipe(arm).trainer) for arm in arms] == [False, True, True, False,
                                                                      False]
    lines = go(workspace, arms[:4], plan_only=True)["plan"]
    assert [words(line)[1][3] for line in lines] == ["train"] * 3 + ["fit", "train"]
    assert "LGESYNTH_GENERATOR=" in lines[-1] and "-tr nnUNetTrainerInpaints" in lines[-1]
    assert [line for line in lines if "--warm-up 64" in line] == [lines[1]]     # p = 1
    with pytest.raises(UserError, match="finds no trainer 'nnUNetTrainerNone'"):
        go(workspace, ["nnUNetTrainerNone"], plan_only=True)
    with pytest.raises(UserError, match="--half: nnUNetTrainer has its own numbers"):
        go(workspace, ["real", "nnUNetTrainer"], plan_only=True, epochs=None, iterations=None,
           half=True)


def test_half_precision_is_every_trainings_and_no_fits(workspace):
    lines = go(workspace, ["real", "lgesynth"], plan_only=True, half=True)["plan"]
    assert [(argv[3], "--half" in argv) for _, argv in map(words, lines)] == [
        ("train", True), ("fit", False), ("train", True)]


def test_the_plan_resumes_what_was_interrupted(workspace):
    """Its lines can be run again, as a cluster does that took a node away."""
    fresh = go(workspace, ["real", "lgesynth"], plan_only=True)["plan"]
    assert [words(line)[1][-1] for line in fresh] == ["--c", "--resume", "--c"]
    finish(workspace, "real", 2, 0.0)
    assert go(workspace, ["real"], plan_only=True)["plan"] == []
    folder = fold_folder(workspace, "real")
    (folder / "validation" / "v3.nii.gz").unlink()
    assert words(go(workspace, ["real"], plan_only=True)["plan"][0])[1][-1] == "--val"
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    assert words(go(workspace, ["real"], plan_only=True)["plan"][0])[1][-1] == "--c"


def test_an_interrupted_training_does_not_go_on_with_another_generator(workspace):
    judge = write_network(fold_folder(workspace, "real"))
    reward = {"checkpoint": str(judge), "hash": Segmenter.load_fold(judge.parent, "cpu").hash}
    write_generator(workspace, hash="abc", reward=reward)
    fill_pool(workspace, "lgesynth")                          # by generator abc
    assert "--c" in go(workspace, ["lgesynth"], plan_only=True)["plan"][-1]
    write_generator(workspace, hash="def", reward=reward)     # fitted anew since
    with pytest.raises(UserError, match=r"by generator abc, but \S+ holds def; .* or remove"):
        go(workspace, ["lgesynth"], plan_only=True)


@pytest.mark.parametrize("change, message", [
    ({"arms": ["reel"]}, "Unknown arm"), ({"arms": ["real", "real"]}, "twice"),
    ({"seeds": 0}, "one seed"), ({"epochs": 0}, "--epochs must"), ({"iterations": 0}, "--iter"),
    ({"preset": "none"}, "preset"), ({"images": "x"}, "--labels"),
    ({"ensemble": True}, "--ensemble needs --images")])
def test_contradictions_are_named(workspace, change, message):
    with pytest.raises(UserError, match=message):
        go(workspace, change.pop("arms", ["real"]), plan_only=True, **change)


def test_a_failing_job_stops_the_run_and_its_log_is_named(tmp_path, monkeypatch):
    def job(name, stage, code):
        return Job(name, stage, (sys.executable, "-c", code), {"LGESYNTH_SEED": "7"})

    monkeypatch.setenv("LGESYNTH_PROBABILITY", "0.9")      # of the user's shell, not of the arm
    show = ("import os; print('seed', os.environ['LGESYNTH_SEED'], "
            "os.environ.get('LGESYNTH_PROBABILITY'))")
    jobs = [job("first", 0, show), job("bad", 1, "raise SystemExit('no disk left')"),
            job("never", 2, show)]
    with pytest.raises(UserError, match=r"bad failed with exit code 1 \(no disk left\).*bad\.log"):
        run_jobs(jobs, tmp_path / "logs")
    assert "seed 7 None" in (tmp_path / "logs" / "first.log").read_text()
    assert not (tmp_path / "logs" / "never.log").exists()


def test_jobs_that_run_at_a_time_see_different_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7a")
    assert visible_gpus() == ["5", "GPU-7a"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible_gpus() == ["0", "1", "2"]
    # each waits for the other one's file, so both run at a time
    code = ("import os, pathlib, time; here = pathlib.Path({here!r}); "
            "(here / {mine!r}).write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
            "while not (here / {other!r}).exists(): time.sleep(0.01)")
    jobs = [Job(mine, 0, (sys.executable, "-c", code.format(
        here=str(tmp_path), mine=mine, other=other)), {}) for mine, other in ("ab", "ba")]
    run_jobs(jobs, tmp_path / "logs", 2, gpus=["0", "1"])
    assert {(tmp_path / name).read_text() for name in "ab"} == {"0", "1"}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be caught there")
def test_jobs_end_with_the_benchmark_that_is_told_to(tmp_path):
    """Else a training goes on, and the next benchmark starts a second one in its folder."""
    here, by_itself = tmp_path / "started", tmp_path / "ended by itself"
    code = (f"import os, pathlib, time; pathlib.Path({str(here)!r}).write_text(str(os.getpid()))\n"
            f"time.sleep(60); pathlib.Path({str(by_itself)!r}).touch()")

    def stop():
        until(lambda: here.is_file() and here.read_text())
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=stop).start()
    jobs = [Job(name, 0, (sys.executable, "-c", code), {}) for name in ("first", "never")]
    with pytest.raises(SystemExit), sigterm_as_exit():
        run_jobs(jobs, tmp_path / "logs")
    assert not psutil.pid_exists(int(here.read_text())) and not by_itself.exists()
    assert not (tmp_path / "logs" / "never.log").exists()
