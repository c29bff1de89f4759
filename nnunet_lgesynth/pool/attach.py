"""What a trainer gets for its data loaders: an engine, and the training set that is injected.

Here is decided what a training may use: which generator, which pool, on which device. When nnU-Net
trains on several GPUs, each rank has its own seeds, and its own share of the pool in a folder that
it alone writes and reads.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import joblib
import torch

from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.background import Order
from nnunet_lgesynth.pool.engine import Engine
from nnunet_lgesynth.pool.generator import find_generator, hash_of, load_found
from nnunet_lgesynth.pool.injection import InjectedDataset
from nnunet_lgesynth.pool.server import Server

__all__ = ["POOL_FOLDER", "attach", "pool_folder"]

POOL_FOLDER = "lgesynth_pool"


def pool_folder(output: Path, rank: int = 0) -> Path:
    """The pool of a rank in a training's output folder."""
    return output / (POOL_FOLDER if rank == 0 else f"{POOL_FOLDER}_rank{rank}")


def attach(generator: str, injection: InjectionConfig, plans: dict, configuration: str, fold,
           dataset_json: dict, preprocessed: Path, training, validation_identifiers: Sequence[str],
           output: Path, device: torch.device, log: Callable[[str], None], rank: int = 0,
           world: int = 1, qc: QCConfig | None = None, epoch: int = 0,
           epochs: int = 1) -> tuple[Engine, InjectedDataset]:
    """What a trainer needs when its data loaders are made: the engine, and the training set that
    answers from the pool. In `epoch` 0 (of `epochs`) the pool of an earlier training in the folder
    is dropped."""
    opened = Fold.of_training(plans, configuration, fold, dataset_json, preprocessed,
                              training.identifiers, validation_identifiers)
    found = find_generator(generator, opened)

    def say(text: str) -> None:
        log(text if rank == 0 else f"rank {rank}: {text}")

    server = None
    if found is not None and shares_device(device):
        server = _load(found, opened, device, injection.budget, say)
    folder = pool_folder(output, rank)
    if epoch == 0:
        _drop(folder)
    share = dataclasses.replace(injection, **{
        name: -(-getattr(injection, name) // world)
        for name in ("pool_cases", "refresh_cases", "warm_up")})
    scarred = opened.scarred()
    order = Order(opened, found, str(device), share, qc or QCConfig(), folder, rank,
                  1 if server else _cores(device), os.getpid())
    engine = Engine(order, hash_of(found), len(scarred), say, epoch, server, epochs)
    return engine, InjectedDataset(
        training, opened.cases_folder(folder / "cases"), folder, scarred, engine.generator, share,
        epoch, epochs)


def _drop(folder: Path) -> None:
    """Remove the pool of an earlier training."""
    shutil.rmtree(folder, ignore_errors=True)
    if (folder / "manifest.jsonl").exists():
        raise UserError(f"{folder} is an earlier training's pool and cannot be removed; correct "
                        "its permissions, or close what holds its files.")


def shares_device(device: torch.device) -> bool:
    """Whether networks run in the training's process: a GPU serves one process best. (On MPS the
    time of a pass and a lack of memory cannot be told as on CUDA.)"""
    return device.type == "cuda"


def _load(found: Path, fold: Fold, device: torch.device, share: float,
          say: Callable[[str], None]) -> Server:
    """Inpainter and judge on the training's device; torch's random numbers stay as they are."""
    try:
        with torch.random.fork_rng(devices=[]):
            return Server(*load_found(found, fold, device), share, say)
    except torch.OutOfMemoryError as error:
        raise UserError(f"{device} has no memory left for the inpainter {found} and its judge "
                        f"({str(error).splitlines()[0]}); free some, or train with a smaller "
                        "batch_size in the plans.") from error


def _cores(device: torch.device) -> int:
    """What the budget is a share of: on a GPU its time, on a CPU that of the cores in use, of which
    a container may allow fewer than torch has threads."""
    return min(torch.get_num_threads(), joblib.cpu_count()) if device.type == "cpu" else 1
