"""A small preprocessed nnU-Net fold on disk, read and written by the package's own `Fold`.

Hearts are round rings on noise; the even ones carry an infarct, and one of them a no-reflow core,
on some of their slices. Intensities are already those of nnU-Net (about zero mean, unit variance).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny_nnunet import LABELS, tiny_dataset_json, tiny_plans

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.dataset.roles import DatasetInfo, Frame, Roles, write_info

__all__ = ["in_3d", "tiny_case", "write_tiny_fold"]

SHAPE = (5, 48, 48)
SPACING = (10.0, 1.37, 1.37)
LEVELS = {"background": -0.5, "cavity": 1.5, "normal_myocardium": -0.8, "infarct": 1.2,
          "no_reflow": 0.0}


def tiny_case(number: int, *, shape=SHAPE) -> Case:
    """Case `number`: even ones have a scar on their middle slices, every fourth a core as well."""
    rng = np.random.default_rng(number)
    rows, columns = np.indices(shape[1:]) - np.array(shape[1:])[:, None, None] / 2
    rows, columns = rows - rng.uniform(-2, 2), columns - rng.uniform(-2, 2)
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    labels = np.zeros(shape, np.int16)
    labels[:, radius < 11] = LABELS["normal_myocardium"]
    if number % 2 == 0:
        scar = (radius < 10) & (np.abs(angle - rng.uniform(-1, 1)) < 0.8)
        labels[1:3, scar] = LABELS["infarct"]
        if number % 4 == 0:
            labels[1, scar & (radius > 7) & (radius < 9)] = LABELS["no_reflow"]
    labels[:, radius < 6] = LABELS["cavity"]
    values = np.array([LEVELS[name] for name in LABELS])
    image = values[labels] + rng.normal(0, 0.15, shape)
    return Case(f"case_{number:02d}", image[None].astype(np.float32), labels[None],
                {"spacing": list(SPACING), "shape_before_cropping": shape}, SPACING)


def write_tiny_fold(folder, *, cases: int = 6, fold: int = 0, shape=SHAPE,
                    regions: bool = False) -> Fold:
    """Write `cases` preprocessed cases below `folder`; the last two are the validation cases."""
    plans, dataset_json = tiny_plans(), tiny_dataset_json(regions=regions)
    base = Path(folder) / "nnUNet_preprocessed" / plans["dataset_name"]
    data = base / plans["configurations"]["2d"]["data_identifier"]
    data.mkdir(parents=True)
    roles = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
    write_info(base, DatasetInfo(roles, Frame("apex_to_base", (-1.0, 0.0), (0.0, -1.0))))
    names = [f"case_{i:02d}" for i in range(cases)]
    marker = data / "format.b2nd"          # tells nnU-Net the folder's format before any case does
    marker.touch()
    result = replace(Fold.of_training(plans, "2d", fold, dataset_json, data, [], []),
                     train=tuple(names[:-2]), val=tuple(names[-2:]))
    for number in range(cases):
        case = tiny_case(number, shape=shape)
        assert describe(case.labels[0], roles, SPACING).rings.all()
        result.write(case, data)
    marker.unlink()
    return result


def in_3d(fold: Fold, *, spacing=SPACING, stages: int = 2) -> Fold:
    """The same cases as those of a 3D configuration beside the 2D one, written to its folder."""
    plans = tiny_plans(configuration="3d_fullres", patch=(4, 32, 32), spacing=spacing,
                       stages=stages, channels=len(fold.dataset_json["channel_names"]))
    folder = fold.folder.parent / plans["configurations"]["3d_fullres"]["data_identifier"]
    shutil.copytree(fold.folder, folder)
    both = {**fold.plans["configurations"], **plans["configurations"]}
    return replace(fold, plans={**fold.plans, "configurations": both},
                   configuration="3d_fullres", folder=folder)
