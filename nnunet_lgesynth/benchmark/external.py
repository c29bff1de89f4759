"""Predictions on an external test set, by nnU-Net's own predictor with a trained fold or several.

Images are named as nnU-Net wants them (`<case>_0000.nii.gz`), labels `<case>.nii.gz`. One image at
a time in this process: short-axis stacks are small, and no worker processes have to be fed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.discovery import add_to_environment

__all__ = ["external_cases", "predict_external"]


def external_cases(images: Path, labels: Path, ending: str) -> list[str]:
    """Identifiers of the test cases: every label file, each with its first channel's image."""
    cases = sorted(p.name.removesuffix(ending) for p in Path(labels).glob(f"*{ending}"))
    if not cases:
        raise UserError(f"--labels {labels} holds no *{ending}; give the folder of label files.")
    missing = [c for c in cases if not (Path(images) / f"{c}_0000{ending}").is_file()]
    if missing:
        raise UserError(f"--images {images} lacks {missing[0]}_0000{ending} (and "
                        f"{len(missing) - 1} more); name images as nnU-Net does.")
    return cases


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
    files = [[str(Path(images) / f"{case}_{i:04d}{ending}") for i in range(channels)]
             for case in missing]
    predictor.predict_from_files_sequential(files, [str(out / case) for case in missing])
    return out
