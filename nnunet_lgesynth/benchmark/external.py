"""Predictions on an external test set, by nnU-Net's own predictor with a trained fold or several.

Images are named as nnU-Net wants them (`<case>_0000.nii.gz`), labels `<case>.nii.gz`. One image at
a time in this process: short-axis stacks are small, and no worker processes have to be fed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_lgesynth.benchmark.collect import read_labels
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold, label_values
from nnunet_lgesynth.dataset.roles import FILE_NAME, DatasetInfo, read_info
from nnunet_lgesynth.discovery import add_to_environment
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.pool.generator import usable_device

__all__ = ["external_cases", "external_info", "predict_external"]

PREDICTED = "predicted.json"   # of which image each prediction is
GEOMETRY_TOLERANCE = 1e-3      # mm, and of direction cosines; headers are rounded


def external_cases(images: Path, labels: Path, dataset_json: dict) -> dict[str, str]:
    """{test case: hashes of its image and of its labels, "image labels"}: every label file, each
    with an image a channel, which must lie as the labels do: distances and volumes are measured in
    the labels' spacing."""
    ending, known = dataset_json["file_ending"], label_values(dataset_json, ignore=True)
    cases = sorted(p.name.removesuffix(ending) for p in Path(labels).glob(f"*{ending}"))
    if not cases:
        raise UserError(f"--labels {labels} holds no *{ending}; give the folder of label files.")
    files = {c: _images(images, c, dataset_json) for c in cases}
    missing = [path.name for paths in files.values() for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"--images {images} lacks {missing[0]} (and {len(missing) - 1} more); name "
                        "images as nnU-Net does, a file a channel.")
    for case, paths in files.items():
        label = Path(labels) / f"{case}{ending}"
        for image in paths:
            for what, one, other in zip(("size", "spacing", "direction"), _lies(label),
                                        _lies(image)):
                if len(one) != len(other) or not np.allclose(one, other, atol=GEOMETRY_TOLERANCE):
                    raise UserError(f"{label} has the {what} {_told(one)}, its image {image} "
                                    f"{_told(other)}; correct the one that is wrong.")
        if strange := sorted(set(np.unique(read_labels(label)[0]).tolist()) - known):
            raise UserError(f"{label} has the values {strange}, which the dataset does not label "
                            f"({sorted(known)}); give external labels the dataset's values.")
    return {case: f"{_hash(*paths)} {_hash(Path(labels) / f'{case}{ending}')}"
            for case, paths in files.items()}


def _hash(*paths: Path) -> str:
    """Of files' contents."""
    return sha256(b"".join(sha256(p.read_bytes()).digest() for p in paths)).hexdigest()[:12]


def external_info(labels: Path, fold: Fold) -> DatasetInfo:
    """How external stacks lie and which are of one patient is told by an `lgesynth.json` beside
    their labels, else by nothing; the labels mean what the dataset's do."""
    if not (labels / FILE_NAME).is_file():
        return DatasetInfo(fold.info.roles)
    told = read_info(labels)
    roles = replace(told.roles, lge_channel=fold.info.roles.lge_channel)
    if roles != fold.info.roles:
        raise UserError(f"{labels / FILE_NAME} gives the labels another meaning ({roles}) than "
                        f"the dataset's ({fold.info.roles}); give external labels the dataset's "
                        "values, and its roles to that file.")
    return told


def _images(images: Path, case: str, dataset_json: dict) -> list[Path]:
    """A file a channel."""
    return [Path(images) / f"{case}_{i:04d}{dataset_json['file_ending']}"
            for i in range(len(dataset_json["channel_names"]))]


def _lies(path: Path) -> tuple[tuple[float, ...], ...]:
    """Size, spacing in mm and direction of an image file, from its header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as an image; write it anew.") from error
    return reader.GetSize(), reader.GetSpacing(), reader.GetDirection()


def _told(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v + 0.0:g}" for v in values) + ")"


def predict_external(folders: Sequence[Path], images: Path, files: Mapping[str, str], out: Path,
                     dataset_json: dict, device: str) -> Path:
    """Predict the cases of `files` ({case: hashes}) that `out` lacks, or has of another image, with
    the final checkpoint of a fold folder, or with the mean of several of one model, as nnU-Net
    ensembles folds; returns `out`."""
    ending, predicted = dataset_json["file_ending"], out / PREDICTED
    trained = max((folder / "checkpoint_final.pth").stat().st_mtime for folder in folders)
    image = {case: told.split()[0] for case, told in files.items()}
    done = json.loads(predicted.read_text()) if predicted.is_file() else {}
    missing = [c for c in files if not (path := out / f"{c}{ending}").is_file()
               or path.stat().st_mtime < trained or done.get(c) != image[c]]
    if not missing:
        return out
    add_to_environment()      # the trainer class is looked up again
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir(parents=True, exist_ok=True)
    predictor = nnUNetPredictor(device=usable_device(device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        str(folders[0].parent), use_folds=tuple(f.name.removeprefix("fold_") for f in folders))
    with tempfile.TemporaryDirectory(dir=out) as partial:      # a kill leaves no half prediction
        for case in missing:
            channels = list(map(str, _images(images, case, dataset_json)))
            predictor.predict_from_files_sequential([channels], [str(Path(partial) / case)])
            done.pop(case, None)                        # a kill must not leave the earlier hash
            write_json(predicted, done)
            os.replace(Path(partial) / f"{case}{ending}", out / f"{case}{ending}")
            done[case] = image[case]
            write_json(predicted, done)
    return out
