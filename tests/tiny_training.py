"""A tiny fold that nnU-Net itself can train on, and real trainings of seconds on it.

`write_tiny_training` adds to `write_tiny_fold` what nnU-Net's trainer reads besides the cases:
environment, split, plans and truth files. `trainer_of` makes a trainer as `nnUNetv2_train` does.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from tiny_fold import write_tiny_fold
from tiny_nnunet import tiny_plans

from nnunet_lgesynth.config import InjectionConfig
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.discovery import VARIABLE, trainers_folder
from nnunet_lgesynth.trainer import LGESynthTrainer

__all__ = ["CPU", "INJECTION", "enter_nnunet", "output", "rows", "shorten_trainings", "trainer_of",
           "write_tiny_training"]

CPU = torch.device("cpu")
INJECTION = InjectionConfig(probability=1.0, pool_cases=2, refresh_cases=0, warm_up=2,
                            ratio_cap=1e9)


def enter_nnunet(monkeypatch, folder) -> None:
    """Point nnU-Net to folders below `folder`, in this process only, without our own settings."""
    torch.set_num_threads(1)                       # threads only wait for each other in tiny layers
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (Path(folder) / name).mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(Path(folder) / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    for name in ("EPOCHS", "ITERATIONS", "SEED", "PROBABILITY", "WARM_UP", "PATIENTS",
                 "FADE", "NO_REFLOW_SHARE", "GENERATOR"):
        monkeypatch.delenv(f"LGESYNTH_{name}", raising=False)


def shorten_trainings(monkeypatch) -> None:
    """In this process, our trainers are found and train two epochs of two iterations, with samples
    from the first on; figures, which take seconds each, are not drawn. Which slices are cut is the
    same each time: a few patches can all miss the scars."""
    np.random.seed(0)
    monkeypatch.setenv(VARIABLE, str(trainers_folder()))
    for name, value in (("EPOCHS", "2"), ("ITERATIONS", "2"), ("SEED", "0")):
        monkeypatch.setenv(f"LGESYNTH_{name}", value)
    monkeypatch.setattr(stock.nnUNetTrainer, "plot_network_architecture", lambda _: None)
    monkeypatch.setattr(stock.MetaLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(LGESynthTrainer, "injection", INJECTION)


def trainer_of(fold: Fold, name: str, continued: bool = False, fold_number: int | str = 0,
               plans: str = "nnUNetPlans"):
    """A trainer as `nnUNetv2_train` makes it, with `--c` where `continued`."""
    base = fold.folder.parent
    told = {**json.loads((base / f"{plans}.json").read_text()), "continue_training": continued}
    trainer = recursive_find_trainer_class_by_name(name)(
        told, fold.configuration, fold_number, json.loads((base / "dataset.json").read_text()), CPU)
    maybe_load_checkpoint(trainer, continued, False)
    return trainer


def output(trainer) -> Path:
    """A training's fold folder."""
    return Path(trainer.output_folder)


def rows(trainer) -> list[dict]:
    """What a training wrote about its epochs."""
    return [json.loads(r) for r in (output(trainer) / "lgesynth.jsonl").read_text().splitlines()]


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
