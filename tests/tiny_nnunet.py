"""A real nnU-Net v2 fold checkpoint, small enough for a test: untrained, but genuine.

`write_tiny_model` writes what nnU-Net's own trainer leaves behind: plans.json, dataset.json and
fold_k/checkpoint_final.pth below `results/Dataset/Trainer__Plans__configuration`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

__all__ = ["LABELS", "REGIONS", "REGIONS_ORDER", "tiny_dataset_json", "tiny_plans",
           "write_tiny_model"]

LABELS = {"background": 0, "cavity": 1, "normal_myocardium": 2, "infarct": 3, "no_reflow": 4}
REGIONS = {"background": 0, "heart": [1, 2, 3, 4], "wall": [2, 3, 4], "scar": [3, 4],
           "no_reflow": 4}
REGIONS_ORDER = [1, 2, 3, 4]


def tiny_dataset_json(*, regions: bool = False, channels: int = 1) -> dict:
    """dataset.json of an EMIDEC-like dataset."""
    names = {str(i): "LGE" if i == 0 else f"extra{i}" for i in range(channels)}
    order = {"regions_class_order": REGIONS_ORDER} if regions else {}
    return {"channel_names": names, "labels": REGIONS if regions else LABELS, **order,
            "numTraining": 5, "file_ending": ".nii.gz"}


def tiny_architecture(kind: str = "plain", stages: int = 2, features: int = 4,
                      dimensions: int = 2) -> dict:
    """A `PlainConvUNet` ("plain") or `ResidualEncoderUNet` ("resenc") with few features; of three
    dimensions the first is never halved, as between thick slices."""
    between, flat = [1] * (dimensions - 2), [[1] * dimensions]
    blocks = {"plain": "n_conv_per_stage", "resenc": "n_blocks_per_stage"}[kind]
    name = {"plain": "PlainConvUNet", "resenc": "ResidualEncoderUNet"}[kind]
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": [features * 2 ** i for i in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[*between, 3, 3]] * stages,
            "strides": flat + [[*between, 2, 2]] * (stages - 1), blocks: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1), "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None,
            "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True}},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}


def tiny_plans(*, patch=(32, 32), channels: int = 1, architecture: str = "plain",
               stages: int = 2, dataset: str = "Dataset116_EMIDECROI",
               plans_name: str = "nnUNetPlans", configuration: str = "2d",
               spacing=(1.37, 1.37)) -> dict:
    """plans.json with one configuration; `patch` and `spacing` of three values make it 3D."""
    resampling = {f"resampling_fn_{what}": "resample_data_or_seg_to_shape"
                  for what in ("data", "seg", "probabilities")}
    resampling |= {f"{name}_kwargs": {"is_seg": name.endswith("seg"), "order": 1, "order_z": 0,
                                      "force_separate_z": None} for name in resampling}
    settings = {
        "data_identifier": f"{plans_name}_{configuration}", "preprocessor_name":
        "DefaultPreprocessor", "batch_size": 2, "patch_size": list(patch),
        "median_image_size_in_voxels": [96.0, 96.0], "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels, **resampling,
        "architecture": tiny_architecture(architecture, stages, dimensions=len(patch)),
        "batch_dice": True}
    return {"dataset_name": dataset, "plans_name": plans_name,
            "original_median_spacing_after_transp": [10.0, *spacing[-2:]],
            "original_median_shape_after_transp": [8, 96, 96],
            "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2], "configurations": {configuration: settings},
            "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(c): {"mean": 0.0, "std": 1.0, "median": 0.0, "min": -3.0, "max": 3.0,
                         "percentile_00_5": -2.0, "percentile_99_5": 2.0}
                for c in range(channels)}}


def write_tiny_model(folder, *, regions: bool = False, seed: int = 0, fold=0,
                     trainer: str = "nnUNetTrainer", prefix: str = "", channels: int = 1,
                     checkpoint: str = "checkpoint_final.pth", plans: dict | None = None,
                     **plans_options) -> Path:
    """Write a checkpoint below the results folder `folder`; returns its fold folder.

    `prefix` goes before every weight's name ("module.", "_orig_mod."); `plans_options` are those
    of `tiny_plans`. Equal seeds give equal weights.
    """
    plans = plans or tiny_plans(channels=channels, **plans_options)
    configuration = next(iter(plans["configurations"]))
    dataset_json = tiny_dataset_json(regions=regions, channels=channels)
    model = (Path(folder) / plans["dataset_name"]
             / f"{trainer}__{plans['plans_name']}__{configuration}")
    fold_folder = model / f"fold_{fold}"
    fold_folder.mkdir(parents=True, exist_ok=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    heads = len(dataset_json["labels"]) - (1 if regions else 0)
    architecture = plans["configurations"][configuration]["architecture"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"],
            architecture["_kw_requires_import"], channels, heads, deep_supervision=True)
    torch.save({
        "network_weights": {prefix + k: v for k, v in network.state_dict().items()},
        "optimizer_state": None, "grad_scaler_state": None, "_best_ema": np.float64(0.5),
        "logging": {"train_losses": [np.float32(-0.1)], "dice_per_class_or_region":
                    [[np.float64(0.1)]], "epoch_start_timestamps": [1.0]},
        "current_epoch": 1, "trainer_name": trainer,
        "init_args": {"plans": plans, "configuration": configuration, "fold": fold,
                      "dataset_json": dataset_json, "device": torch.device("cpu")},
        "inference_allowed_mirroring_axes": (0, 1)}, fold_folder / checkpoint)
    return fold_folder
