"""What a fitted generator's folder tells of itself: its name, and config.json, read here alone.

    LGESynth_<preset>__<plans>__<configuration>/fold_<k>/config.json

`lgesynth fit` writes config.json last, so a folder that has one is fitted to its end.
"""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_lgesynth.config import UserError, preset_flags

__all__ = ["RECORD", "fit_command", "is_fitted", "preset_of", "read_fitted"]

RECORD = "config.json"
PREFIX = "LGESynth_"


def is_fitted(folder: Path) -> bool:
    """Whether the fit in this folder came to its end."""
    return (folder / RECORD).is_file()


def read_fitted(folder: Path, *needed: str) -> dict:
    """config.json of a fitted folder, which must hold the `needed` keys; `UserError` else."""
    if not is_fitted(folder):
        state = "is not fitted to its end" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} holds no fitted generator: it {state}; run: "
                        f"{fit_command(folder)}")
    try:
        record = json.loads((folder / RECORD).read_text())
        missing = sorted(set(needed) - set(record))
        reason = f"lacks {missing}" if missing else None
    except (OSError, ValueError, TypeError) as error:
        record, reason = {}, f"is not readable ({error})"
    if reason:
        raise UserError(f"{folder}/{RECORD} {reason}; delete the folder and run: "
                        f"{fit_command(folder)}")
    return record


def preset_of(folder: Path) -> str:
    """The preset of a generator, from the name of its fold folder's parent."""
    return folder.parent.name.removeprefix(PREFIX).partition("__")[0]


def fit_command(folder: Path) -> str:
    """The command that fits into this folder."""
    parts = folder.parent.name.removeprefix(PREFIX).split("__")
    if len(parts) != 3 or not folder.name.startswith("fold_"):
        return "lgesynth fit -d DATASET_ID -c 2d -f FOLD"
    preset, plans, configuration = parts
    plans_flag = "" if plans == "nnUNetPlans" else f" -p {plans}"
    dataset = folder.parent.parent.name.removeprefix("Dataset").split("_")[0]
    dataset = str(int(dataset)) if dataset.isdigit() else dataset
    return (f"lgesynth fit -d {dataset} -c {configuration} -f {folder.name[5:]}{plans_flag} "
            f"{preset_flags(preset)}")
