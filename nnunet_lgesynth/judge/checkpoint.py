"""Reading an nnU-Net fold checkpoint: its files, its network, its weights.

The network is built as `nnunetv2.inference.predict_from_raw_data.nnUNetPredictor` builds it
(nnunetv2 2.8). Unlike nnU-Net, which unpickles whatever a checkpoint holds, only tensors, plain
Python and numpy values are read, so a foreign checkpoint cannot run code. Every fault of a file is
a `UserError` with the command that makes it anew.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import pickle
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_lgesynth.config import UserError

__all__ = ["CHECKPOINT", "build_network", "fold_of", "hash_weights", "load_weights",
           "read_checkpoint", "read_json", "refuse_unsupported", "train_command", "unwrap",
           "validated_cases"]

CHECKPOINT = "checkpoint_final.pth"
WRAPPERS = ("module.", "_orig_mod.")            # DistributedDataParallel, torch.compile
STOCK_NETWORK_PREFIX = "nnUNetTrainerLGE"       # our own trainers never change the network


def train_command(dataset, plans_name, configuration, fold, trainer="nnUNetTrainer") -> str:
    command = f"nnUNetv2_train {dataset} {configuration} {fold}"
    command += "" if plans_name == "nnUNetPlans" else f" -p {plans_name}"
    return command + ("" if trainer == "nnUNetTrainer" else f" -tr {trainer}")


def validated_cases(fold_folder: Path, ending: str) -> frozenset[str]:
    """The cases that a training left out, as nnU-Net's summary of its validation tells; else none.
    """
    try:
        told = json.loads((fold_folder / "validation" / "summary.json").read_text())
        return frozenset(Path(case["reference_file"]).name.removesuffix(ending)
                         for case in told["metric_per_case"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        return frozenset()


def _remedy(fold_folder: Path) -> str:
    """The command that makes a fold folder, read from nnU-Net's own folder names."""
    parts, fold = fold_folder.parent.name.split("__"), fold_folder.name.removeprefix("fold_")
    if len(parts) != 3:
        return ("give a fold folder .../DATASET/TRAINER__PLANS__CONFIGURATION/fold_F that "
                "nnUNetv2_train D C F has written.")
    trainer, plans_name, configuration = parts
    dataset = fold_folder.parent.parent.name
    return f"train it with: {train_command(dataset, plans_name, configuration, fold, trainer)}"


def _require(path: Path, fold_folder: Path) -> None:
    if path.is_file():
        return
    present = sorted(p.name for p in path.parent.glob("*.pth"))
    others = f" (present: {', '.join(present)})" if path.suffix == ".pth" and present else ""
    raise UserError(f"{path} is missing{others}; {_remedy(fold_folder)}")


def read_json(path: Path, fold_folder: Path) -> dict:
    _require(path, fold_folder)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); {_remedy(fold_folder)}") from error


def read_checkpoint(path: Path, fold_folder: Path) -> dict:
    _require(path, fold_folder)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        raise UserError(f"{path} is damaged or holds more than tensors, plain Python and numpy "
                        f"values ({reason}). If you trust it, load it in Python and save "
                        "network_weights, init_args and trainer_name alone.") from error
    except Exception as error:     # torch raises many kinds for a damaged file
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is not readable ({reason}); {_remedy(fold_folder)}") from error
    needed = {"network_weights", "init_args", "trainer_name"}
    if not isinstance(state, dict) or not needed <= set(state):
        raise UserError(f"{path} is no nnU-Net v2 checkpoint: it lacks "
                        f"{sorted(needed - set(state))}; {_remedy(fold_folder)}")
    return state


def _numpy_globals() -> list:
    """What pickled numpy scalars and arrays need: nnU-Net logs its metrics as such."""
    scalar, rebuild = np.float32(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    functions = [(function, f"numpy.{core}.multiarray.{function.__name__}")
                 for function in (scalar, rebuild) for core in ("core", "_core")]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*functions, np.ndarray, np.dtype, *kinds]


def refuse_unsupported(plans: dict, configuration: str, dataset_json: dict, source: Path) -> None:
    if configuration not in plans["configurations"]:
        raise UserError(f"{source} is of configuration {configuration!r}, but plans.json beside it "
                        f"knows only {sorted(plans['configurations'])}; restore its own file.")
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    command = train_command(plans["dataset_name"], plans["plans_name"], "2d", "F")
    if settings.previous_stage_name is not None:
        raise UserError(f"A judge sees the image alone, and {source} is the second stage of a "
                        f"cascade ({configuration}); train one with: {command}")
    if len(settings.patch_size) != 2:
        raise UserError(f"A judge scores single slices, and {source} is of the 3D configuration "
                        f"{configuration!r} (patch {settings.patch_size}); train one with: "
                        f"{command}")
    labels = manager.get_label_manager(dataset_json)
    values = [int(v) for v in labels.all_labels]
    if not labels.has_regions and values != list(range(len(values))):
        raise UserError(f"nnU-Net needs consecutive label values, and dataset.json beside {source} "
                        f"has {values}; renumber the labels and train again.")


def _find_trainer(name: str) -> type:
    """The checkpoint's trainer class, for its network; the stock one where it cannot be found."""
    # here, since it takes two seconds, which the process that only paints need not wait
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    if name == "nnUNetTrainer":
        return nnUNetTrainer
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except Exception as error:     # a search imports every trainer file, each of which may fail
        if not name.startswith(STOCK_NETWORK_PREFIX):
            warnings.warn(f"Trainer {name} was not found ({error!r:.200}); its "
                          "network is taken to be the one in plans.json. Set nnUNet_extTrainer "
                          "to the folder of its file to be sure.", stacklevel=2)
        return nnUNetTrainer


def build_network(plans: dict, configuration: str, dataset_json: dict, trainer: str,
                   source: Path) -> nn.Module:
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    build = _find_trainer(trainer).build_network_architecture
    ends = (determine_num_input_channels(manager, settings, dataset_json),
            manager.get_label_manager(dataset_json).num_segmentation_heads)
    what = ((manager, settings) if "plans_manager" in inspect.signature(build).parameters else
            (settings.network_arch_class_name, settings.network_arch_init_kwargs,
             settings.network_arch_init_kwargs_req_import))      # signature before nnunetv2 2.8
    try:
        with torch.random.fork_rng(devices=[]):     # initial weights are drawn, then overwritten
            return build(*what, *ends, enable_deep_supervision=False)
    except (ImportError, TypeError) as error:
        raise UserError(f"The network of {source} cannot be built ({error}); install the package "
                        f"that defines {settings.network_arch_class_name}.") from error


def unwrap(weights: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """State dict without the names that compilation and DDP put in front, however nested."""
    def bare(key: str) -> str:
        while key not in own and key.startswith(WRAPPERS):
            key = key.split(".", 1)[1]
        return key if key in own else key.replace("._orig_mod.", ".")
    return {bare(key): value for key, value in weights.items()}


def load_weights(network: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    own = network.state_dict()
    shapes = [f"{k} {tuple(weights[k].shape)} for {tuple(own[k].shape)}"
              for k in own if k in weights and weights[k].shape != own[k].shape]
    faults = {"missing": [k for k in own if k not in weights],
              "unknown": [k for k in weights if k not in own], "other shape": shapes}
    found = [f"{len(v)} {name} (first: {v[0]})" for name, v in faults.items() if v]
    if found:
        raise UserError(f"{source} does not fit the network of its plans.json and trainer: "
                        f"{'; '.join(found)}; {_remedy(source.parent)}")
    lost = [k for k, v in weights.items() if not torch.isfinite(v).all()]
    if lost:                # such a judge finds no scar anywhere: it would pass all healthy wall
        raise UserError(f"{source} has diverged: {len(lost)} of its weights hold NaN or infinite "
                        f"values (first: {lost[0]}); {_remedy(source.parent)}")
    network.load_state_dict(weights)


def hash_weights(weights: dict[str, Tensor]) -> str:
    digest = sha256()
    for key in sorted(weights):
        value = weights[key].detach().contiguous().reshape(-1)
        digest.update(f"{key} {value.dtype} {tuple(weights[key].shape)}".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def fold_of(folder: Path, state: dict) -> int | str:
    name, trained = folder.name.removeprefix("fold_"), str(state["init_args"].get("fold"))
    if trained not in ("None", name):
        raise UserError(f"{folder} holds a checkpoint that was trained on fold {trained}, whose "
                        f"unseen patients are others; rename the folder to fold_{trained}.")
    return int(name) if name.isdigit() else name
