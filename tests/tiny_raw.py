"""Raw datasets, preprocessed by nnU-Net itself under tiny plans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_nnunet import tiny_plans

from nnunet_lgesynth.cli import main
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.phantom import write_phantom

__all__ = ["NAME", "NORMAL", "arrays", "preprocess", "write_phantom_dataset"]

NAME = "Dataset115_EMIDEC"
NORMAL = "Case_N003"          # of the phantom
SEED = 12                     # of phantom patients whose scars have no-reflow cores


def arrays(path):
    """A file as an image and as an array (Z, Y, X)."""
    image = sitk.ReadImage(str(path))
    return image, sitk.GetArrayFromImage(image)


def write_phantom_dataset(folder: Path) -> None:
    """Five phantom patients below `folder`: raw as id 115, preprocessed on a coarser grid."""
    write_phantom(folder / "phantom", n_patients=5, seed=SEED)
    assert main(["convert", "emidec", "-i", str(folder / "phantom"), "-d", "115"]) == 0
    preprocess(folder / "nnUNet_raw" / NAME, tiny_plans(dataset=NAME, spacing=(1.9, 1.9)))


def preprocess(target: Path, plans: dict) -> Fold:
    """Fold 0 of the raw dataset folder `target`, which holds its split."""
    base = target.parents[1] / "nnUNet_preprocessed" / target.name
    dataset = json.loads((target / "dataset.json").read_text())
    (base / "nnUNetPlans_2d").mkdir(parents=True)
    (base / "nnUNetPlans.json").write_text(json.dumps(plans))
    for file in ("dataset.json", "splits_final.json"):
        shutil.copy(target / file, base)
    manager = PlansManager(plans)
    for labels in sorted((target / "labelsTr").iterdir()):
        name = labels.name.removesuffix(".nii.gz")
        images = sorted((target / "imagesTr").glob(f"{name}_*.nii.gz"))
        DefaultPreprocessor(verbose=False).run_case_save(
            str(base / "nnUNetPlans_2d" / name), [str(p) for p in images], str(labels), manager,
            manager.get_configuration("2d"), dataset)
    return Fold.open(target.name, "2d", 0)
