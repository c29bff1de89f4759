"""A model folder that plain nnU-Net predicts with: the plugin's trainers leave a stock network.

    OUT/dataset.json plans.json fold_k/checkpoint_final.pth    for nnUNetv2_predict_from_modelfolder
        lgesynth_provenance.json                               where the weights come from

nnU-Net looks up a checkpoint's trainer class to build the network, so the class is named
`nnUNetTrainer` in the copy. Weights and plans stay as they are; optimizer and logs are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from nnunet_lgesynth.benchmark.records import read_rows
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import dataset_name, fold_folder, nnunet_path
from nnunet_lgesynth.files import new_folder, write_json
from nnunet_lgesynth.judge.checkpoint import (
    CHECKPOINT,
    STOCK_NETWORK_PREFIX,
    hash_weights,
    read_checkpoint,
    read_json,
)
from nnunet_lgesynth.pool.attach import POOL_FOLDER
from nnunet_lgesynth.pool.store import read_manifest
from nnunet_lgesynth.provenance import versions
from nnunet_lgesynth.trainer import LOG_FILE

__all__ = ["PROVENANCE", "export"]

PROVENANCE = "lgesynth_provenance.json"
STOCK = "nnUNetTrainer"
KEPT = ("network_weights", "inference_allowed_mirroring_axes", "current_epoch")
ARGUMENTS = ("plans", "configuration", "fold", "dataset_json")    # of the trainer


def export(dataset: int | str, configuration: str, folds: Sequence[int | str], trainer: str,
           plans: str, out: str | Path, checkpoint: str = CHECKPOINT) -> Path:
    """Write the model folder `out` from the trained folds; returns it.

    Raises `UserError` for a trainer that is not the plugin's, a fold that was not trained, and an
    `out` that is not empty; nothing is left then.
    """
    if not trainer.startswith(STOCK_NETWORK_PREFIX):
        raise UserError(f"{trainer} is not a trainer of this plugin, so there is nothing to change "
                        "in its folder; give nnU-Net that folder itself, or another -tr.")
    name = dataset_name(dataset)
    told = {"dataset": name, "configuration": configuration, "plans": plans, "trainer": trainer,
            "versions": versions(), "date": date.today().isoformat(), "folds": {}}
    with new_folder(out) as folder:
        for fold in folds:
            source = fold_folder(nnunet_path("nnUNet_results"), name, trainer, plans, configuration,
                                 fold)
            state = read_checkpoint(source / checkpoint, source)
            told["folds"][str(fold)] = _origin(source, state, checkpoint)
            (folder / source.name).mkdir()
            torch.save(_stock(state), folder / source.name / CHECKPOINT)
        for file in ("dataset.json", "plans.json"):
            read_json(source.parent / file, source)            # both are there and JSON
            shutil.copy(source.parent / file, folder / file)
        write_json(folder / PROVENANCE, told)
    return Path(out)


def _stock(state: dict) -> dict:
    """What stock nnU-Net reads of a checkpoint to predict."""
    return {**{k: state[k] for k in KEPT if k in state}, "trainer_name": STOCK,
            "init_args": {k: state["init_args"][k] for k in ARGUMENTS if k in state["init_args"]}}


def _origin(source: Path, state: dict, checkpoint: str) -> dict:
    """Where a fold's weights come from: the training's last row, and what its pool held."""
    pool, epochs = read_manifest(source / POOL_FOLDER), read_rows(source / LOG_FILE)
    return {"checkpoint": checkpoint, "weights": hash_weights(state["network_weights"]),
            "epochs": state.get("current_epoch"), "last_epoch": epochs[-1] if epochs else None,
            "pool_samples": len(pool), "generators": sorted({r["generator"] for r in pool}),
            "judges": sorted({r["judge"] for r in pool if r.get("judge")})}
