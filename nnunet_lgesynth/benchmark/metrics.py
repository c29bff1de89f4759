"""What is measured, on label arrays alone: overlap, detection, burden; each metric defined once.

Arrays are (Z, Y, X) integer labels, `spacing` is (z, y, x) in mm, `roles` says what labels mean.
Scar = infarct + no-reflow; wall = every label of the LV wall, scar included.

    dice             2 |P and T| / (|P| + |T|); two empty masks give 1
    dice_tp          dice of cases whose truth holds scar; None elsewhere
    no_reflow_dice   Dice of no-reflow alone where the truth holds it; None elsewhere
    percent          scar as a share of the wall of the same segmentation, 0 to 100
    volume_error     predicted percent - true percent, in points of the wall
    slice burden     scar voxels / wall voxels of the same segmentation's slice, 0 without wall
    scar_slices      Dice of each slice whose truth holds scar enough to be asked for in synthesis;
                     the share of them that would pass the quality control is `qc_pass_real`
    slice_auroc      true slice holds scar (0/1) against predicted slice burden, over the slices in
                     which the truth shows wall

The predicted burden is divided by the predicted wall, so that the score needs no truth and can be
had at the scanner. Detection counts a case as positive when one voxel of scar is predicted;
`volume_filter` is the post-processing that raises this bound for every arm alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import rankdata

from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.roles import Roles
from nnunet_lgesynth.judge.qc import dice

__all__ = ["MIN_PERCENT_OF_WALL", "aggregate", "auroc", "balanced_accuracy", "case_metrics",
           "detection_counts", "dice", "slice_burdens", "volume_filter"]

# Predicted scar below this share of the predicted wall is removed by the volume filter. About 100
# voxels of 1.37 x 1.37 x 10 mm in the median EMIDEC wall (125 mL); fixed before any benchmark run.
MIN_PERCENT_OF_WALL = 1.5


def case_metrics(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float],
                 roles: Roles) -> dict:
    """All per-case numbers of one patient as a JSON-ready dict.

    Parameters
    ----------
    truth, prediction : (Z, Y, X) integer labels on the same grid.
    spacing : (z, y, x) voxel size in mm.
    roles : meaning of the label values.
    """
    if truth.shape != prediction.shape:
        raise UserError(f"Truth {truth.shape} and prediction {prediction.shape} differ in shape; "
                        "predict on the images that belong to these labels.")
    true_scar, predicted_scar = np.isin(truth, roles.scars), np.isin(prediction, roles.scars)
    true_percent, predicted_percent = _percent(truth, roles), _percent(prediction, roles)
    millilitres = float(np.prod(spacing)) / 1000.0
    overlap = dice(true_scar, predicted_scar)
    return {
        "dice": overlap,
        "dice_tp": overlap if true_scar.any() else None,
        "no_reflow_dice": _no_reflow_dice(truth, prediction, roles),
        "true_voxels": int(true_scar.sum()), "predicted_voxels": int(predicted_scar.sum()),
        "true_percent": true_percent, "predicted_percent": predicted_percent,
        "true_ml": int(true_scar.sum()) * millilitres,
        "predicted_ml": int(predicted_scar.sum()) * millilitres,
        "volume_error_percent": predicted_percent - true_percent,
        "has_scar": bool(true_scar.any()), "found_scar": bool(predicted_scar.any()),
        "slices": slice_burdens(truth, prediction, roles),
        "scar_slices": _scar_slices(true_scar, predicted_scar),
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


def detection_counts(has_scar: np.ndarray, found_scar: np.ndarray) -> dict[str, int]:
    """tn, fp, fn, tp over cases, from two boolean arrays of one length."""
    return {"tn": int((~has_scar & ~found_scar).sum()), "fp": int((~has_scar & found_scar).sum()),
            "fn": int((has_scar & ~found_scar).sum()), "tp": int((has_scar & found_scar).sum())}


def balanced_accuracy(has_scar: np.ndarray, found_scar: np.ndarray) -> float:
    """Mean of sensitivity and specificity; of one of them where the other class is absent."""
    recalls = [np.mean(found_scar[has_scar] == 1) if has_scar.any() else None,
               np.mean(found_scar[~has_scar] == 0) if (~has_scar).any() else None]
    return float(np.mean([r for r in recalls if r is not None]))


def aggregate(rows: Iterable[dict]) -> dict[str, float | int | None]:
    """The metrics of one run (one arm, one seed) over its per-case rows; None = not defined."""
    rows = list(rows)
    if not rows:
        raise UserError("No case to evaluate; is the validation folder empty?")
    has_scar = np.array([r["has_scar"] for r in rows])
    found_scar = np.array([r["found_scar"] for r in rows])
    slices = np.array([s for r in rows for s in r["slices"]]).reshape(-1, 3)
    area = auroc(slices[:, 1] > 0, slices[:, 2])
    return {
        "dice": _mean(r["dice"] for r in rows),
        "dice_tp": _mean(r["dice_tp"] for r in rows),
        "no_reflow_dice": _mean(r["no_reflow_dice"] for r in rows),
        "slice_auroc": None if np.isnan(area) else area,
        "accuracy": float(np.mean(has_scar == found_scar)),
        "balanced_accuracy": balanced_accuracy(has_scar, found_scar),
        **detection_counts(has_scar, found_scar),
        "volume_mae_percent": _mean(abs(r["volume_error_percent"]) for r in rows),
    }


def _percent(labels: np.ndarray, roles: Roles) -> float:
    wall = int(np.isin(labels, roles.wall).sum())
    return 100.0 * int(np.isin(labels, roles.scars).sum()) / wall if wall else 0.0


def _no_reflow_dice(truth: np.ndarray, prediction: np.ndarray, roles: Roles) -> float | None:
    if roles.no_reflow is None or not (truth == roles.no_reflow).any():
        return None
    return dice(truth == roles.no_reflow, prediction == roles.no_reflow)


def _scar_slices(truth: np.ndarray, prediction: np.ndarray) -> list[list[float]]:
    """[slice index, Dice] of each slice with scar in its truth, as much as the QC asks for."""
    enough = truth.sum(axis=(1, 2)) >= QCConfig().min_pixels
    return [[int(z), dice(truth[z], prediction[z])] for z in np.flatnonzero(enough)]


def _mean(values: Iterable[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None
