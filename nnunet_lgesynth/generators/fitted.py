"""A fitted generator's folder: its name, and what its config.json tells, read here alone.

    LGESynth_<preset>__<plans>__<configuration>/fold_<k>/config.json

`lgesynth fit` writes config.json last, so a folder that has one is fitted to its end.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.presets import preset_flags

__all__ = ["RECORD", "fit_command", "generator_folder", "is_fitted", "preset_of", "read_fitted"]

RECORD = "config.json"
NAME = re.compile(r"LGESynth_(?P<preset>.+?)__(?P<plans>.+)__(?P<configuration>.+)")
TYPES = {"config": dict, "hash": str, "minutes": dict, "reward": (dict, type(None)), "train": list}


def generator_folder(results: str | Path, dataset: str, preset: str, plans: str,
                     configuration: str, fold: int | str) -> Path:
    """Where a fitted generator lives: one per preset, plans, configuration and fold."""
    return (Path(results) / dataset / f"LGESynth_{preset}__{plans}__{configuration}"
            / f"fold_{fold}")


def preset_of(folder: Path) -> str:
    """The preset of a generator, from the name of its fold folder's parent."""
    name = NAME.fullmatch(folder.parent.name)
    return name["preset"] if name else folder.parent.name


def is_fitted(folder: Path) -> bool:
    """Whether the fit in this folder came to its end."""
    return (folder / RECORD).is_file()


def read_fitted(folder: Path, *needed: str) -> dict:
    """config.json of a fitted folder, which must hold the `needed` keys; `UserError` else."""
    ours = NAME.fullmatch(folder.parent.name) and folder.name.startswith("fold_")
    if not is_fitted(folder):
        raise UserError(f"{folder} holds no fitted generator ({RECORD}); " + (
            f"run: {fit_command(folder)}" if ours else "give the fold folder that lgesynth fit has "
            "written, LGESynth_<preset>__<plans>__<configuration>/fold_<k>."))
    try:
        record = json.loads((folder / RECORD).read_text())
        if not isinstance(record, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        record, reason = {}, f"is not readable ({error})"
    else:
        lacking = [k for k in needed if k not in record or not isinstance(record[k], TYPES[k])]
        reason = f"lacks {sorted(lacking)}" if lacking else ""
    if reason:
        raise UserError(f"{folder}/{RECORD} {reason}; " + (
            f"delete {folder} and run: {fit_command(folder)}" if ours else
            "give the fold folder that lgesynth fit has written."))
    return record


def fit_command(folder: Path) -> str:
    """The command that fits into this folder."""
    name = NAME.fullmatch(folder.parent.name)
    if not name or not folder.name.startswith("fold_"):
        return "lgesynth fit -d DATASET_ID -c 2d -f FOLD"
    plans = "" if name["plans"] == "nnUNetPlans" else f" -p {name['plans']}"
    dataset = folder.parent.parent.name.removeprefix("Dataset").split("_")[0]
    dataset = str(int(dataset)) if dataset.isdigit() else dataset
    return (f"lgesynth fit -d {dataset} -c {name['configuration']} -f {folder.name[5:]}{plans} "
            f"{preset_flags(name['preset'])}")
