"""Nothing that was made of a patient may be scored on that patient.

Compared are cases by name, splits by their hash, and images by theirs; the file that proves a leak
is named. Generators and judges are refused where they are found (`pool.generator`); here are the
trainings themselves and the external test set. Prior and painter measure their statistics on the
training cases of generator and training, so what is told of these holds for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from nnunet_lgesynth.benchmark.collect import read_labels
from nnunet_lgesynth.benchmark.records import Training, read_rows
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold, nnunet_path
from nnunet_lgesynth.judge.checkpoint import validated_cases
from nnunet_lgesynth.pool.attach import POOL_FOLDER
from nnunet_lgesynth.pool.store import read_manifest

__all__ = ["refuse_known_images", "refuse_leaky_training", "refuse_other_run", "refuse_overlap"]


def refuse_leaky_training(training: Training, fold: Fold) -> None:
    """Refuse a training whose pool is made of validation cases, or that had another split."""
    for pool in sorted(training.folder.glob(f"{POOL_FOLDER}*")):
        seen = sorted({r["source"] for r in read_manifest(pool)} & set(fold.val) - set(fold.train))
        if seen:
            raise UserError(f"{pool / 'manifest.jsonl'} names {len(seen)} validation cases of fold "
                            f"{fold.fold} as sources (first: {seen[0]}), so {training.folder} has "
                            "trained on them; remove that folder and run again.")
    _refuse_unseen(training.folder, fold)
    log = training.folder / "lgesynth.jsonl"
    other = [r["split"] for r in read_rows(log) if r.get("split", fold.split_hash)
             != fold.split_hash]
    if other:
        raise UserError(f"{log} is of another split (hash {other[0]}, now {fold.split_hash}), so "
                        f"{training.folder} may have trained on validation cases of fold "
                        f"{fold.fold}; remove that folder and run again.")


def refuse_other_run(training: Training) -> None:
    """Refuse a training that in any epoch was told something else than its arm: a variable of the
    shell changed it unseen."""
    log = training.folder / "lgesynth.jsonl"
    wanted = {**asdict(training.recipe), "seed": training.seed}
    other = dict.fromkeys(f"{name} {value}, not {wanted[name]}" for row in read_rows(log)
                          for name, value in row.get("told", {}).items()     # not by old versions
                          if value != wanted[name])
    if other:
        raise UserError(f"By {log} the training of arm {training.arm}, fold {training.fold}, was "
                        f"run with {'; '.join(other)} (None: nothing told); unset the LGESYNTH_ "
                        f"variables of your shell, remove {training.folder} and run again.")


def refuse_known_images(images: Path, cases: Sequence[str], folds: dict[int, Fold]) -> None:
    """Refuse external test images that are the dataset's own: of the same voxels as one of any
    fold's training cases."""
    fold = next(iter(folds.values()))
    ending, channel = fold.dataset_json["file_ending"], f"{fold.info.roles.lge_channel:04d}"
    raw = nnunet_path("nnUNet_raw") / fold.dataset / "imagesTr"
    if not raw.is_dir():
        print(f"{raw} is not there, so it is not checked whether a test image was trained on.",
              file=sys.stderr)                   # not among the lines of --plan
    known = {_voxels(path): path for case in sorted({c for f in folds.values() for c in f.train})
             if (path := raw / f"{case}_{channel}{ending}").is_file()}
    for case in cases:
        path = Path(images) / f"{case}_{channel}{ending}"
        if (twin := known.get(_voxels(path))) is not None:
            raise UserError(f"{path} is the training image {twin}; leave it out of --labels.")


def refuse_overlap(folds: dict[int, Fold]) -> None:
    """A patient is scored once a seed, by the one network that did not train on it."""
    of: dict[str, int] = {}
    for number, fold in folds.items():
        trained = set(map(fold.info.patient, fold.train))
        for case in fold.val:
            if (patient := fold.info.patient(case)) in trained:
                raise UserError(f"Fold {number} validates on {case} and trains on another stack of "
                                f"the same patient, {patient} (same_as in lgesynth.json); put both "
                                "on one side in splits_final.json.")
        for patient in map(fold.info.patient, fold.val):
            if of.setdefault(patient, number) != number:
                raise UserError(f"Folds {of[patient]} and {number} both validate on {patient}, and "
                                "a patient must count once; name folds in --folds that share no "
                                "validation case.")


def _refuse_unseen(folder: Path, fold: Fold) -> None:
    """Refuse where nnU-Net's own scores are of other validation cases than the fold's."""
    judged = validated_cases(folder, fold.dataset_json["file_ending"])
    others = sorted(set(fold.val) - judged) if judged else []        # none: not validated yet
    if others and set(fold.val) - set(fold.train):
        raise UserError(f"{folder / 'validation' / 'summary.json'} is of another split: "
                        f"{others[0]}, a validation case of fold {fold.fold} now, is not among its "
                        f"cases and may have been trained on; remove {folder} and run again.")


def _voxels(path: Path) -> str:
    image, _ = read_labels(path)
    return sha256(repr(image.shape).encode() + image.astype(float).tobytes()).hexdigest()
