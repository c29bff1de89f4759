"""What is measured in one patient, on label arrays alone; each metric defined once.

Arrays are (Z, Y, X) integer labels, `spacing` is (z, y, x) in mm, `roles` says what labels mean.
Scar = infarct + no-reflow; wall = every label of the LV wall, scar included.

    dice             2 |P and T| / (|P| + |T|); two empty masks give 1
    dice_tp          dice of cases whose truth holds scar; None elsewhere
    no_reflow_dice   Dice of no-reflow alone where the truth holds it; None elsewhere
    hd95_mm, asd_mm  95th percentile Hausdorff and mean symmetric surface distance of the scar
                     (MONAI); None where either mask is empty, since there is no such distance
    percent          scar as a share of the wall of the same segmentation, 0 to 100
    volume_error     predicted percent - true percent, in points of the wall
    slice burden     scar voxels / wall voxels of the same segmentation's slice, 0 without wall
    scar_slices      Dice of each slice whose truth holds scar enough to be asked for in synthesis;
                     the share of them that would pass the quality control is `qc_pass_real`
    lesions          [found, false, missed]: connected parts (26 neighbours) of the scar; one that
                     touches the other mask's scar is found
    segments         [AHA segment, true share, predicted share] of its wall that is scar; the wall,
                     its segments and depth are those of the truth, for both scars
    transmurality    of the scar on the truth's wall, see `anatomy.measure`

The predicted burden is divided by the predicted wall, so that the score needs no truth and can be
had at the scanner. Detection counts a case or a slice as positive when one voxel of scar is
predicted; `volume_filter` is the post-processing that raises this bound for every arm alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from nnunet_lgesynth.anatomy.aha import APEX
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.measure import measure
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.roles import Roles
from nnunet_lgesynth.judge.qc import dice

__all__ = ["MIN_PERCENT_OF_WALL", "auroc", "case_metrics", "dice", "slice_burdens",
           "surface_distances", "volume_filter"]

# Predicted scar below this share of the predicted wall is removed by the volume filter. About 100
# voxels of 1.37 x 1.37 x 10 mm in the median EMIDEC wall (125 mL); fixed before any benchmark run.
MIN_PERCENT_OF_WALL = 1.5


def case_metrics(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float],
                 roles: Roles, anatomy: Anatomy | None = None) -> dict:
    """All per-case numbers of one patient as a JSON-ready dict.

    Parameters
    ----------
    truth, prediction : (Z, Y, X) integer labels on the same grid.
    spacing : (z, y, x) voxel size in mm.
    roles : meaning of the label values.
    anatomy : the truth's; without it nothing is measured by segment or through the wall.
    """
    if truth.shape != prediction.shape:
        raise UserError(f"Truth {truth.shape} and prediction {prediction.shape} differ in shape; "
                        "predict on the images that belong to these labels.")
    true_scar, predicted_scar = np.isin(truth, roles.scars), np.isin(prediction, roles.scars)
    overlap = dice(true_scar, predicted_scar)
    hd95, asd = surface_distances(true_scar, predicted_scar, spacing)
    return {
        "dice": overlap,
        "dice_tp": overlap if true_scar.any() else None,
        "no_reflow_dice": _no_reflow_dice(truth, prediction, roles),
        "hd95_mm": hd95, "asd_mm": asd,
        "true_voxels": int(true_scar.sum()), "predicted_voxels": int(predicted_scar.sum()),
        "true_percent": _percent(truth, roles), "predicted_percent": _percent(prediction, roles),
        **_millilitres("", true_scar, predicted_scar, spacing),
        **(_no_reflow(truth, prediction, roles, spacing) if roles.no_reflow is not None else {}),
        "has_scar": bool(true_scar.any()), "found_scar": bool(predicted_scar.any()),
        "slices": slice_burdens(truth, prediction, roles),
        "scar_slices": _scar_slices(true_scar, predicted_scar),
        "lesions": _lesions(true_scar, predicted_scar),
        **(_on_the_wall(true_scar, predicted_scar, anatomy) if anatomy is not None else {}),
    }


def slice_burdens(truth: np.ndarray, prediction: np.ndarray, roles: Roles) -> list[list[float]]:
    """[slice index, true burden, predicted burden] of each slice whose truth shows wall."""
    rows = []
    for z in np.flatnonzero(np.isin(truth, roles.wall).any(axis=(1, 2))):
        rows.append([int(z), _percent(truth[z], roles) / 100, _percent(prediction[z], roles) / 100])
    return rows


def volume_filter(labels: np.ndarray, roles: Roles,
                  min_percent_of_wall: float = MIN_PERCENT_OF_WALL) -> np.ndarray:
    """A copy of (Z, Y, X) labels whose scar is relabelled myocardium if it is below the bound."""
    filtered = labels.copy()
    if _percent(labels, roles) < min_percent_of_wall:
        filtered[np.isin(labels, roles.scars)] = roles.myocardium
    return filtered


def surface_distances(truth: np.ndarray, prediction: np.ndarray,
                      spacing: Sequence[float]) -> tuple[float | None, float | None]:
    """(HD95, average symmetric surface distance) in mm between two masks (Z, Y, X) bool, by MONAI;
    (None, None) where one is empty."""
    if not truth.any() or not prediction.any():
        return None, None
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
    # a border of background, or masks that end with the image would have no surface there
    masks = [torch.from_numpy(np.pad(m[box], 1))[None, None] for m in (prediction, truth)]
    about = {"include_background": True, "spacing": [float(s) for s in spacing]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)            # MONAI's own, of its arguments
        return (float(compute_hausdorff_distance(*masks, percentile=95, **about)),
                float(compute_average_surface_distance(*masks, symmetric=True, **about)))


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney, ties count half); NaN for a single class.

    Written out because the bootstrap calls it thousands of times; a test holds it to scikit-learn.
    """
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    rank_sum = rankdata(score)[positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def _percent(labels: np.ndarray, roles: Roles, values: Sequence[int] | None = None) -> float:
    """Share of the wall that is scar, or has one of `values`."""
    wall = int(np.isin(labels, roles.wall).sum())
    scar = int(np.isin(labels, roles.scars if values is None else values).sum())
    return 100.0 * scar / wall if wall else 0.0


def _no_reflow(truth: np.ndarray, prediction: np.ndarray, roles: Roles,
               spacing: Sequence[float]) -> dict[str, float]:
    only = [roles.no_reflow]
    return {**_millilitres("no_reflow_", truth == roles.no_reflow, prediction == roles.no_reflow,
                           spacing),
            "no_reflow_true_percent": _percent(truth, roles, only),
            "no_reflow_predicted_percent": _percent(prediction, roles, only)}


def _millilitres(of: str, truth: np.ndarray, prediction: np.ndarray,
                 spacing: Sequence[float]) -> dict[str, float]:
    voxel = float(np.prod(spacing)) / 1000.0
    return {f"{of}true_ml": int(truth.sum()) * voxel,
            f"{of}predicted_ml": int(prediction.sum()) * voxel}


def _no_reflow_dice(truth: np.ndarray, prediction: np.ndarray, roles: Roles) -> float | None:
    if roles.no_reflow is None or not (truth == roles.no_reflow).any():
        return None
    return dice(truth == roles.no_reflow, prediction == roles.no_reflow)


def _scar_slices(truth: np.ndarray, prediction: np.ndarray) -> list[list[float]]:
    """[slice index, Dice] of each slice with scar in its truth, as much as the QC asks for."""
    enough = truth.sum(axis=(1, 2)) >= QCConfig().min_pixels
    return [[int(z), dice(truth[z], prediction[z])] for z in np.flatnonzero(enough)]


def _lesions(truth: np.ndarray, prediction: np.ndarray) -> list[int]:
    """[found, false, missed]; `found` counts the truth's lesions."""
    def touching(parts_of: np.ndarray, other: np.ndarray) -> tuple[int, int]:
        parts, count = ndimage.label(parts_of, np.ones((3, 3, 3)))
        return len(np.unique(parts[other & parts_of])), count

    (found, lesions), (true, predicted) = touching(truth, prediction), touching(prediction, truth)
    return [found, predicted - true, lesions - found]


def _on_the_wall(truth: np.ndarray, prediction: np.ndarray, anatomy: Anatomy) -> dict:
    segment = np.where(anatomy.myocardium, anatomy.segment, 0)
    size, true, predicted = (np.bincount(segment[mask], minlength=APEX + 1)
                             for mask in (segment > 0, truth, prediction))
    measured = {name: measure(np.where(mask, 1, 0), anatomy) for name, mask in (
        ("true", truth), ("predicted", prediction))}
    return {"segments": [[int(s), float(true[s] / size[s]), float(predicted[s] / size[s])]
                         for s in np.flatnonzero(size) if s > 0],
            **{f"{name}_transmurality": float(m.transmurality) for name, m in measured.items()}}
