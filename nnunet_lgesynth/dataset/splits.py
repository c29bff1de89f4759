"""How a dataset's cases are divided: nnU-Net's folds, and parts of a fold's training patients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import read_json, write_json

__all__ = ["draw_patients", "read_split", "split_hash"]

DRAWN_FOLDS = 5            # by nnU-Net, where nobody wrote a split


def read_split(base: Path, identifiers: list[str],
               fold: int | str) -> tuple[list[str], list[str]]:
    """(training cases, validation cases) of a fold of the preprocessed dataset in `base`, whose
    cases are `identifiers`; writes the split that nnU-Net draws where there is none yet."""
    if fold == "all":
        return identifiers, identifiers
    path = base / "splits_final.json"
    if not path.is_file():             # nnU-Net makes the same one when training starts
        if len(identifiers) < DRAWN_FOLDS:
            raise UserError(f"{base} holds {len(identifiers)} cases and {path} is missing; "
                            f"nnU-Net draws {DRAWN_FOLDS} folds, so write that file, or use "
                            "-f all.")
        write_json(path, generate_crossval_split(identifiers, seed=12345,
                                                 n_splits=DRAWN_FOLDS))
    splits = read_json(path, "nnUNetv2_train, which creates it")
    if not (isinstance(splits, list) and splits and all(
            isinstance(s, dict) and all(isinstance(s.get(part), list) for part in ("train", "val"))
            for s in splits)):
        raise UserError(f"{path} must be a list of folds, each with the lists 'train' and 'val'; "
                        "delete it and nnUNetv2_train draws one, or write it anew.")
    if str(fold) not in map(str, range(len(splits))):
        raise UserError(f"Fold {fold} is not in {path}, which holds folds 0 to "
                        f"{len(splits) - 1}; choose one, or 'all', with -f.")
    train, val = splits[int(fold)]["train"], splits[int(fold)]["val"]
    both = sorted(set(train) & set(val))
    if both:
        raise UserError(f"{path}, fold {fold}: {len(both)} cases are in training and validation "
                        f"(first: {both[0]}), so results would be too good; write it anew with "
                        "separate patients.")
    return train, val


def draw_patients(everyone: set[str], scarred: set[str], patients: int) -> set[str]:
    """So many of `everyone`, with and without scar in the share that all have; the same on every
    machine, and a part of any larger draw."""
    groups = [sorted(group, key=lambda name: sha256(name.encode()).digest())
              for group in (scarred, everyone - scarred)]
    first = min(max(round(patients * len(scarred) / len(everyone)), bool(scarred)), len(scarred))
    return {*groups[0][:first], *groups[1][:patients - first]}


def split_hash(train: Sequence[str], val: Sequence[str]) -> str:
    """Twelve digits that name a fold's cases, whatever their order."""
    return sha256(json.dumps([sorted(train), sorted(val)]).encode()).hexdigest()[:12]
