"""The benchmark on fabricated nnU-Net folders: what it plans, refuses, collects and reports.

The trainings are written by hand (predictions, summary, log, a real pool); the path from there to
the report, and the external predictions with a random network, are the real code.
"""

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_lgesynth.benchmark.collect import read_rows
from nnunet_lgesynth.benchmark.jobs import run_jobs, visible_gpus
from nnunet_lgesynth.benchmark.plan import Job, check_generators
from nnunet_lgesynth.benchmark.power import smallest_effects
from nnunet_lgesynth.benchmark.run import benchmark
from nnunet_lgesynth.benchmark.settings import Settings
from nnunet_lgesynth.benchmark.variants import TRAINERS
from nnunet_lgesynth.config import PRESETS, UserError
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.dataset.roles import DatasetInfo, Roles, write_info
from nnunet_lgesynth.generators.fitted import generator_folder
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.pool.store import Pool

NAME, SPLIT = "Dataset900_Toy", {"train": ["t0", "t1"], "val": ["v0", "v1", "v2", "v3"]}
ROLES = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
DATASET_JSON = {"channel_names": {"0": "LGE"}, "file_ending": ".nii.gz", "numTraining": 6,
                "labels": {"background": 0, "cavity": 1, "myocardium": 2, "infarct": 3,
                           "no_reflow": 4}}
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3], [3, 3]], "strides": [[1, 1], [2, 2]], "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None,
        "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True}},
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
PLANS = {
    "dataset_name": NAME, "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager", "experiment_planner_used": "ExperimentPlanner",
    "foreground_intensity_properties_per_channel": {"0": {
        "mean": 0.0, "std": 1.0, "percentile_00_5": -1.0, "percentile_99_5": 1.0}},
    "configurations": {"2d": {
        "data_identifier": "nnUNetPlans_2d", "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2, "patch_size": [16, 16], "spacing": [1.0, 1.0], "batch_dice": True,
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING, "resampling_fn_seg_kwargs": RESAMPLING,
        "resampling_fn_probabilities_kwargs": RESAMPLING, "architecture": ARCHITECTURE}}}


def heart(scar: int, no_reflow: int = 0) -> np.ndarray:
    """(3, 16, 16) labels: 8 x 8 of wall around 4 x 4 of cavity; scar voxels in the middle slice."""
    labels = np.zeros((3, 16, 16), np.uint8)
    labels[:, 4:12, 4:12] = 2
    labels[:, 6:10, 6:10] = 1
    where = np.argwhere(labels[1] == 2)
    for value, some in ((3, where[:scar]), (4, where[scar:scar + no_reflow])):
        labels[1][tuple(some.T)] = value
    return labels


def write_image(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 8.0))
    sitk.WriteImage(image, str(path))


TRUTH = {"v0": heart(20), "v1": heart(10, 4), "v2": heart(0), "v3": heart(0)}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """nnU-Net's three folders with a preprocessed toy dataset."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    raw, base = tmp_path / "nnUNet_raw" / NAME, tmp_path / "nnUNet_preprocessed" / NAME
    cases = base / "nnUNetPlans_2d"
    cases.mkdir(parents=True)
    raw.mkdir()
    write_info(raw, DatasetInfo(ROLES))
    for path, value in ((base / "nnUNetPlans.json", PLANS), (base / "dataset.json", DATASET_JSON),
                        (base / "splits_final.json", [SPLIT])):
        path.write_text(json.dumps(value))
    rng = np.random.default_rng(0)
    for case in (*SPLIT["train"], *SPLIT["val"]):
        nnUNetDatasetBlosc2.save_case(
            rng.normal(size=(1, 3, 16, 16)).astype(np.float32), heart(6)[None].astype(np.int8),
            {"spacing": [8.0, 1.0, 1.0], "class_locations": {}}, str(cases / case))
    for case, labels in {**TRUTH, "t0": heart(6), "t1": heart(6)}.items():
        write_image(base / "gt_segmentations" / f"{case}.nii.gz", labels)
    return tmp_path


def fold_folder(workspace, arm: str, seed: int = 0):
    return (workspace / "out" / f"seed_{seed}" / "nnUNet_results" / NAME
            / f"{TRAINERS[arm]}__nnUNetPlans__2d" / "fold_0")


def finish(workspace, arm: str, shift: int, fraction: float, seed: int = 0) -> None:
    """A finished training: its predictions miss `shift` scar voxels."""
    folder = fold_folder(workspace, arm, seed)
    for case, truth in TRUTH.items():
        prediction = truth.copy()
        scar = np.argwhere(np.isin(truth, (3, 4)))[:shift]
        prediction[tuple(scar.T)] = 2
        write_image(folder / "validation" / f"{case}.nii.gz", prediction)
    (folder / "validation" / "summary.json").write_text(
        json.dumps({"metric_per_case": [{} for _ in TRUTH]}))
    (folder / "checkpoint_final.pth").write_bytes(b"")
    rows = [{"epoch": e, "probability": 0.5, "injected_fraction": fraction, "drafted": 8,
             "accepted": 2, "unique_cases_served": 3, "seconds_epoch": 1.0} for e in range(2)]
    (folder / "lgesynth.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")


def write_network(folder):
    """A random network as a finished training's checkpoint; returns the file."""
    plans = PlansManager(PLANS)
    network = nnUNetTrainer.build_network_architecture(
        plans, plans.get_configuration("2d"), 1, 5, enable_deep_supervision=False)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": "2d", "fold": 0},
                "inference_allowed_mirroring_axes": None}, folder / "checkpoint_final.pth")
    (folder.parent / "plans.json").write_text(json.dumps(PLANS))
    (folder.parent / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return folder / "checkpoint_final.pth"


def fill_pool(workspace, arm: str) -> None:
    """Two cases in a real pool of a training, written by the pool itself."""
    fold = Fold.open(NAME, "2d", 0)
    pool = Pool(fold_folder(workspace, arm) / "lgesynth_pool", fold)
    source = fold.read("t0")
    for _ in range(2):
        verdict = {"accepted": True, "checks": {}}
        pool.add(Case("any", source.image + 1, heart(9, 3)[None], source.properties,
                      source.spacing),
                 {"kind": "scar", "source": "t0", "slices": [1], "verdicts": {"1": verdict},
                  "changed": {"1": [4, 12, 4, 12]}, "generator": "abc"})


def go(workspace, arms=("real", "paint"), **more):
    options = {"preset": "demo", "device": "cpu", "epochs": 2, "iterations": 1, **more}
    return benchmark(NAME, options.pop("configuration", "2d"), list(arms),
                     options.pop("folds", [0]), options.pop("seeds", 1), workspace / "out",
                     **options)


def words(line: str) -> tuple[dict[str, str], list[str]]:
    """Variables and arguments of a plan line."""
    parts = shlex.split(line, comments=True)
    variables = [p for p in parts if "=" in p and not p.startswith("-")]
    return dict(p.split("=", 1) for p in variables), parts[len(variables):]


def test_the_plan_lists_missing_jobs_in_an_order_that_can_run(workspace):
    lines = go(workspace, ["real", "lgesynth", "paint"], seeds=2, plan_only=True)["plan"]
    jobs = [words(line) for line in lines]
    assert [argv[3] for _, argv in jobs] == ["train"] * 4 + ["fit"] + ["train"] * 2
    assert [line[-1] for line in lines] == list("0000122") and "  # stage 0" in lines[0]
    assert not (workspace / "out").exists()
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
                        "1"]
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
    with pytest.raises(UserError, match="not among the 2 patients of the arm"):
        go(workspace, ["lgesynth:n=2"], plan_only=True)


def test_the_plan_resumes_what_was_interrupted(workspace):
    finish(workspace, "real", 2, 0.0)
    assert go(workspace, ["real"], plan_only=True)["plan"] == []
    folder = fold_folder(workspace, "real")
    (folder / "validation" / "v3.nii.gz").unlink()
    assert words(go(workspace, ["real"], plan_only=True)["plan"][0])[1][-1] == "--val"
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    assert words(go(workspace, ["real"], plan_only=True)["plan"][0])[1][-1] == "--c"


def test_finished_trainings_go_through_to_a_report(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    fill_pool(workspace, "paint")
    outcome = go(workspace)
    rows = {(r["arm"], r["metric"]): r for r in json.loads(outcome["results"].read_text())}
    real = (2 * 12 / (20 + 12) + 2 * 6 / (14 + 6)) / 2      # 8 voxels missed in both patients
    assert rows["real", "dice_tp"]["value"] == pytest.approx(real, abs=1e-6)
    assert rows["paint", "dice_tp_diff_vs_real"]["value"] > 0
    assert rows["paint", "injected_fraction"]["value"] == 0.4
    assert ("paint", "qc_pass_own") not in rows          # no judge saw them
    assert rows["real+filter", "dice"]["n"] == 4
    assert rows["real", "dice"]["split"] == "validation, fold 0"
    assert str(workspace) not in outcome["results"].read_text()
    assert outcome["verdict"].startswith("No evidence")       # two patients prove nothing
    text = outcome["report"].read_text()
    assert outcome["verdict"] in text and "data:image/png;base64," in text
    assert "Share of 2 real scar slices found as well by the real-only model: 1.000" in text
    told = (workspace / "out" / "report.md").read_text()
    assert "| paint |" in told and "| paint − real | Dice-TP |" in told and "4 patients" in told
    before = read_rows(outcome["cases"])
    assert len(before) == 2 * 2 * len(TRUTH)
    go(workspace)
    assert read_rows(outcome["cases"]) == before


def test_seeds_of_another_day_are_added_up(workspace):
    finish(workspace, "real", 8, 0.0)
    assert go(workspace, ["real"])["rows"][0]["seeds"] == [0]
    finish(workspace, "real", 2, 0.0, seed=1)
    assert go(workspace, ["real"], seeds=2)["rows"][0]["seeds"] == [0, 1]


def test_results_of_another_machine_are_gone_on_with(workspace):
    finish(workspace, "paint", 2, 0.4)
    other_day = go(workspace, ["paint"])
    shutil.rmtree(workspace / "out" / "seed_0")
    assert go(workspace, ["paint"], plan_only=True)["plan"] == []
    finish(workspace, "real", 8, 0.0)
    outcome = go(workspace)
    rows = {(r["arm"], r["metric"]): r["value"] for r in outcome["rows"]}
    assert rows["paint", "dice_tp_diff_vs_real"] > 0
    assert rows["paint", "injected_fraction"] == 0.4
    kept = [r for r in read_rows(outcome["cases"]) if r["arm"] == "paint"]
    assert kept == [r for r in read_rows(other_day["cases"]) if r["arm"] == "paint"]
    assert len(go(workspace, seeds=2, plan_only=True)["plan"]) == 2      # seed 1 of both


@pytest.mark.skipif(shutil.which("false") is None, reason="no command that just fails")
def test_what_ended_is_recorded_though_a_later_training_fails(workspace, monkeypatch):
    finish(workspace, "real", 8, 0.0)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"paint_fold_0_seed_0 failed"):
        go(workspace)
    rows = read_rows(workspace / "out" / f"cases_{NAME}.jsonl")
    assert {r["arm"] for r in rows} == {"real", "real+filter"}


def test_an_arm_that_injected_nothing_is_refused(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.0)
    with pytest.raises(UserError, match=r"Arm paint.*not one training patch was injected"):
        go(workspace)
    assert not (workspace / "out" / "report.html").exists()


def test_other_settings_need_another_folder(workspace):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    with pytest.raises(UserError, match=r"epochs 2 -> 3"):
        go(workspace, ["real"], epochs=3)


def test_a_mistyped_number_claims_no_folder(workspace, monkeypatch):
    monkeypatch.setattr("nnunet_lgesynth.benchmark.run.run_jobs", lambda *_: 1 / 0)
    for epochs in (20, 2):          # nothing was trained with the first
        with pytest.raises(ZeroDivisionError):
            go(workspace, ["real"], epochs=epochs)
    claimed = json.loads((workspace / "out" / "benchmark.json").read_text())["settings"]
    assert claimed["epochs"] == 2
    finish(workspace, "real", 8, 0.0)
    with pytest.raises(UserError, match=r"epochs 2 -> 3"):
        go(workspace, ["real"], epochs=3, plan_only=True)


def test_another_split_needs_another_folder(workspace):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    path = workspace / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.write_text(json.dumps([{"train": ["t0", "v0", "v1"], "val": ["t1", "v2", "v3"]}]))
    with pytest.raises(UserError, match=r"split of fold 0 \w+ -> "):
        go(workspace, ["real"])


def test_a_damaged_or_blocked_folder_is_named(workspace):
    (workspace / "out").write_text("")
    with pytest.raises(UserError, match="a file is in the way"):
        go(workspace, ["real"])
    (workspace / "out").unlink()
    finish(workspace, "real", 8, 0.0)
    (workspace / "out" / "benchmark.json").write_text("")
    with pytest.raises(UserError, match=r"benchmark\.json is damaged"):
        go(workspace, ["real"])
    (workspace / "out" / "benchmark.json").unlink()
    (workspace / "out" / f"cases_{NAME}.jsonl").write_text('{"arm": "real"}\n')
    with pytest.raises(UserError, match="a row without 'fold'"):
        go(workspace, ["real"])


def test_what_a_finished_training_was_recorded_with_stays(workspace, monkeypatch):
    finish(workspace, "real", 8, 0.0)
    before = read_rows(go(workspace, ["real"])["cases"])
    monkeypatch.setattr("nnunet_lgesynth.benchmark.collect.versions",
                        lambda: {"nnunet_lgesynth": "later"})
    assert read_rows(go(workspace, ["real"])["cases"]) == before


def test_a_pool_case_that_is_gone_is_left_out_of_the_pictures(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    fill_pool(workspace, "paint")
    shutil.rmtree(fold_folder(workspace, "paint") / "lgesynth_pool" / "cases")
    assert "data:image/png" not in go(workspace)["report"].read_text()


def write_generator(workspace, train=("t0", "t1"), config=None, **more):
    """config.json of a generator of the preset "demo", as `fit` leaves it."""
    folder = generator_folder(workspace / "nnUNet_results", NAME, "demo", "nnUNetPlans", "2d", 0)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**dataclasses.asdict(PRESETS["demo"]), **(config or {})}
    (folder / "config.json").write_text(json.dumps(
        {"train": list(train), "val": [], "config": config, "reward": None, **more}))
    return folder


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
    assert capsys.readouterr().err == ""
    raw = workspace / "nnUNet_raw" / NAME
    (raw / "imagesTr").rename(raw / "away")
    go(workspace, ["real"], images=images, labels=labels, plan_only=True)
    told = capsys.readouterr()
    assert "is not there, so it is not checked" in told.err and "checked" not in told.out
    (raw / "away").rename(raw / "imagesTr")
    write_image(images / "e1_0000.nii.gz", image)
    with pytest.raises(UserError, match=r"e1_0000\.nii\.gz is the training image .*t1_0000"):
        go(workspace, ["real"], images=images, labels=labels, plan_only=True)


def test_what_the_patients_can_show_is_told_before_anything_is_trained(workspace, monkeypatch,
                                                                    capsys):
    def fail(*_, **__):
        raise UserError("no training here")
    monkeypatch.setattr("nnunet_lgesynth.benchmark.run.run_jobs", fail)
    with pytest.raises(UserError, match="no training here"):
        go(workspace)
    told = json.loads((workspace / "out" / "benchmark.json").read_text())["before"]["validation"]
    assert told == "4 patients, 2 with scar, 1 with no-reflow; too few to show any difference."
    assert "of the 6 tests of primary metrics each finds" in smallest_effects(
        4 * sorted((workspace / "nnUNet_preprocessed" / NAME / "gt_segmentations").glob("v*")),
        ROLES, ["real", "paint", "lgesynth"])
    assert told in capsys.readouterr().out


def test_a_generator_of_other_settings_is_not_recorded_as_the_preset(workspace):
    write_generator(workspace, config={"crop_pixels": 32, "text_encoder": "bert"})
    with pytest.raises(UserError, match="crop_pixels 32, not 48; text_encoder bert, not None"):
        go(workspace, ["lgesynth"], plan_only=True)


def test_external_images_are_looked_for_before_anything_runs_also_by_the_plan(workspace):
    images, labels = workspace / "images", workspace / "labels"
    with pytest.raises(UserError, match=r"--labels .* holds no \*\.nii\.gz"):
        go(workspace, ["real"], images=images, labels=labels, plan_only=True)
    write_image(labels / "e0.nii.gz", heart(3))
    with pytest.raises(UserError, match=r"--images .* lacks e0_0000\.nii\.gz"):
        go(workspace, ["real"], images=images, labels=labels, plan_only=True)


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
    (images / "e1_0000.nii.gz").unlink()
    with pytest.raises(UserError, match="e1_0000"):
        go(workspace, ["real"], images=images, labels=labels)


def test_an_ensemble_is_all_folds_networks_together(workspace):
    """Of two networks of which one is sure of scar everywhere: it decides."""
    (workspace / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(
        json.dumps([SPLIT, SPLIT]))
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
