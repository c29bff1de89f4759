"""A toy dataset in nnU-Net's folders, fabricated trainings on it, and a benchmark of them.

The trainings are written by hand (predictions, summary, log, a real pool); the path from there to
the report, and the external predictions with a random network, are the real code.
"""

import dataclasses
import json
import shlex

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_lgesynth.benchmark.run import benchmark
from nnunet_lgesynth.benchmark.variants import TRAINERS
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.dataset.roles import DatasetInfo, Roles, write_info
from nnunet_lgesynth.generators.fitted import generator_folder
from nnunet_lgesynth.pool.store import Pool
from nnunet_lgesynth.presets import PRESETS

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


def write_workspace(tmp_path, monkeypatch):
    """nnU-Net's three folders with a preprocessed toy dataset; returns `tmp_path`."""
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


def write_generator(workspace, train=("t0", "t1"), config=None, **more):
    """config.json of a generator of the preset "demo", as `fit` leaves it."""
    folder = generator_folder(workspace / "nnUNet_results", NAME, "demo", "nnUNetPlans", "2d", 0)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**dataclasses.asdict(PRESETS["demo"]), **(config or {})}
    (folder / "config.json").write_text(json.dumps(
        {"train": list(train), "val": [], "config": config, "reward": None, **more}))
    return folder
