"""A tiny fold that nnU-Net itself can train on: environment, split, plans and truth files.

`write_tiny_training` adds to `write_tiny_fold` what nnU-Net's trainer reads besides the cases.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from tiny_fold import write_tiny_fold
from tiny_nnunet import tiny_plans

from nnunet_lgesynth.dataset.case import Fold

__all__ = ["enter_nnunet", "write_tiny_training"]


def enter_nnunet(monkeypatch, folder) -> None:
    """Point nnU-Net to folders below `folder`, in this process only, without our own settings."""
    torch.set_num_threads(1)                       # threads only wait for each other in tiny layers
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (Path(folder) / name).mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(Path(folder) / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    for name in ("EPOCHS", "ITERATIONS", "SEED", "PROBABILITY", "WARM_UP",
                 "GENERATOR"):
        monkeypatch.delenv(f"LGESYNTH_{name}", raising=False)


def write_tiny_training(folder, *, cases: int = 6, regions: bool = False) -> Fold:
    """A fold below `folder`/nnUNet_preprocessed, complete enough to train and to validate."""
    plans = tiny_plans(stages=3)                   # two give deep supervision a weight of 0 / 0
    fold = replace(write_tiny_fold(folder, cases=cases, regions=regions), plans=plans)
    base = fold.folder.parent
    (base / "gt_segmentations").mkdir()
    for identifier in (*fold.train, *fold.val):
        _complete(fold, identifier, base / "gt_segmentations" / f"{identifier}.nii.gz")
    for name, value in (("nnUNetPlans.json", fold.plans), ("dataset.json", fold.dataset_json),
                        ("dataset_fingerprint.json", {}),
                        ("splits_final.json", [{"train": fold.train, "val": fold.val}])):
        (base / name).write_text(json.dumps(value))
    return fold


def _complete(fold: Fold, identifier: str, truth: Path) -> None:
    """Write a case's truth, and the properties that nnU-Net's export needs."""
    labels = fold.read(identifier).labels[0]
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing((1.37, 1.37, 10.0))
    sitk.WriteImage(image, str(truth))
    path = fold.folder / f"{identifier}.pkl"
    properties = pickle.loads(path.read_bytes())
    properties.update(
        sitk_stuff={"spacing": image.GetSpacing(), "origin": image.GetOrigin(),
                    "direction": image.GetDirection()},
        shape_before_cropping=labels.shape,
        shape_after_cropping_and_before_resampling=labels.shape,
        bbox_used_for_cropping=[[0, n] for n in labels.shape])
    path.write_bytes(pickle.dumps(properties))
