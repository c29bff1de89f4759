"""Predictions on an external test set, by nnU-Net's own predictor with a trained fold or several.

Images are named as nnU-Net wants them (`<case>_0000.nii.gz`), labels `<case>.nii.gz`. One image at
a time in this process: short-axis stacks are small, and no worker processes have to be fed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.discovery import add_to_environment

__all__ = ["external_cases", "predict_external"]

GEOMETRY_TOLERANCE = 1e-3      # mm, and of direction cosines; headers are rounded


def external_cases(images: Path, labels: Path, ending: str) -> list[str]:
    """Identifiers of the test cases: every label file, each with its first channel's image, which
    must lie as the labels do: distances and volumes are measured in the labels' spacing."""
    cases = sorted(p.name.removesuffix(ending) for p in Path(labels).glob(f"*{ending}"))
    if not cases:
        raise UserError(f"--labels {labels} holds no *{ending}; give the folder of label files.")
    missing = [c for c in cases if not (Path(images) / f"{c}_0000{ending}").is_file()]
    if missing:
        raise UserError(f"--images {images} lacks {missing[0]}_0000{ending} (and "
                        f"{len(missing) - 1} more); name images as nnU-Net does.")
    for case in cases:
        label, image = Path(labels) / f"{case}{ending}", Path(images) / f"{case}_0000{ending}"
        for what, one, other in zip(("size", "spacing", "direction"), _lies(label), _lies(image)):
            if len(one) != len(other) or not np.allclose(one, other, atol=GEOMETRY_TOLERANCE):
                raise UserError(f"{label} has the {what} {_told(one)}, its image {image} "
                                f"{_told(other)}; correct the one that is wrong.")
    return cases


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


def predict_external(folders: Sequence[Path], images: Path, cases: list[str], out: Path,
                     ending: str, channels: int, device: str) -> Path:
    """Predict what is missing in `out` with the final checkpoint of a fold folder, or with the mean
    of several of one model, as nnU-Net ensembles folds; returns `out`."""
    trained = max((folder / "checkpoint_final.pth").stat().st_mtime for folder in folders)
    missing = [c for c in cases if not (path := out / f"{c}{ending}").is_file()
               or path.stat().st_mtime < trained]
    if not missing:
        return out
    add_to_environment()      # the trainer class is looked up again
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir(parents=True, exist_ok=True)
    predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        str(folders[0].parent), use_folds=tuple(f.name.removeprefix("fold_") for f in folders))
    with tempfile.TemporaryDirectory(dir=out) as partial:      # a kill leaves no half prediction
        for case in missing:
            files = [str(Path(images) / f"{case}_{i:04d}{ending}") for i in range(channels)]
            predictor.predict_from_files_sequential([files], [str(Path(partial) / case)])
            os.replace(Path(partial) / f"{case}{ending}", out / f"{case}{ending}")
    return out
