"""Laws of the metrics: Dice's edges, agreement with scikit-learn, what the filter may change."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

from nnunet_lgesynth.benchmark.metrics import (
    MIN_PERCENT_OF_WALL,
    aggregate,
    auroc,
    balanced_accuracy,
    case_metrics,
    detection_counts,
    dice,
    volume_filter,
)
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import Roles

ROLES = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
SPACING = (10.0, 1.0, 1.0)


def wall(scar: int = 0, no_reflow: int = 0, slices: int = 2) -> np.ndarray:
    """(slices, 10, 20) labels, 100 wall voxels a slice; scar and no-reflow counts in slice 0."""
    labels = np.zeros((slices, 10, 20), int)
    labels[:, :, :10] = 2
    labels[:, :, 10:13] = 1
    flat = labels[0, :, :10].reshape(-1)
    flat[:scar] = 3
    flat[scar:scar + no_reflow] = 4
    labels[0, :, :10] = flat.reshape(10, 10)
    return labels


def test_dice_laws():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 8, 8)) < 0.4
    empty = np.zeros_like(a)
    assert dice(empty, empty) == 1.0
    assert dice(a, empty) == 0.0
    assert dice(a, a) == 1.0
    assert dice(a, b) == dice(b, a)
    assert 0 < dice(a, b) < 1
    assert dice(a, b) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_case_without_scar_has_no_dice_tp():
    row = case_metrics(wall(), wall(scar=5), SPACING, ROLES)
    assert row["dice"] == 0.0 and row["dice_tp"] is None and row["no_reflow_dice"] is None
    assert (row["has_scar"], row["found_scar"]) == (False, True)
    assert case_metrics(wall(), wall(), SPACING, ROLES)["dice"] == 1.0


def test_scar_is_infarct_plus_no_reflow():
    row = case_metrics(wall(scar=10, no_reflow=10), wall(scar=20), SPACING, ROLES)
    assert row["dice"] == 1.0 and row["dice_tp"] == 1.0
    assert row["no_reflow_dice"] == 0.0
    without = Roles(cavity=1, myocardium=2, scar=3)
    assert case_metrics(wall(scar=9), wall(scar=9), SPACING, without)["no_reflow_dice"] is None


def test_volumes_are_shares_of_each_ones_own_wall_and_millilitres():
    row = case_metrics(wall(scar=20), wall(scar=50), SPACING, ROLES)
    assert row["true_percent"] == pytest.approx(10)
    assert row["predicted_percent"] == pytest.approx(25)
    assert row["volume_error_percent"] == pytest.approx(15)
    assert row["true_ml"] == pytest.approx(20 * 10 / 1000)


def test_slices_are_those_with_true_wall():
    truth, prediction = wall(scar=20, slices=3), wall(scar=50, slices=3)
    truth[2] = 0
    slices = case_metrics(truth, prediction, SPACING, ROLES)["slices"]
    assert slices == [[0, 0.2, 0.5], [1, 0.0, 0.0]]


def test_scar_slices_are_those_that_synthesis_would_ask_for():
    truth, prediction = wall(scar=20, slices=3), wall(scar=10, slices=3)
    truth[1].flat[np.flatnonzero(truth[1] == 2)[:5]] = 3     # below min_pixels of the QC
    found = case_metrics(truth, prediction, SPACING, ROLES)["scar_slices"]
    assert found == [[0, pytest.approx(2 * 10 / 30)]]


def test_other_grids_are_refused():
    with pytest.raises(UserError, match="shape"):
        case_metrics(wall(slices=2), wall(slices=3), SPACING, ROLES)


def test_auroc_and_detection_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    for _ in range(20):
        positive = rng.random(40) < 0.4
        score = np.round(rng.random(40), 1) * (rng.random(40) < 0.7)   # many ties, many zeros
        found = score > 0.3
        assert auroc(positive, score) == pytest.approx(roc_auc_score(positive, score))
        assert balanced_accuracy(positive, found) == pytest.approx(
            balanced_accuracy_score(positive, found))
        counts = detection_counts(positive, found)
        assert list(counts.values()) == confusion_matrix(positive, found).ravel().tolist()
    assert np.isnan(auroc(np.ones(4, bool), np.arange(4.0)))


def test_filter_removes_scar_below_the_bound_and_touches_nothing_else():
    at_bound = round(200 * MIN_PERCENT_OF_WALL / 100)
    small, large = wall(scar=at_bound - 1), wall(scar=at_bound)
    before = small.copy()
    assert np.array_equal(volume_filter(small, ROLES), wall())
    assert np.array_equal(small, before)
    assert np.array_equal(volume_filter(large, ROLES), large)
    assert np.array_equal(volume_filter(wall(no_reflow=1), ROLES), wall())


def test_aggregate_over_cases():
    pairs = [(wall(), wall()), (wall(), wall(scar=4)), (wall(scar=20), wall(scar=20)),
             (wall(scar=20), wall())]
    total = aggregate(case_metrics(t, p, SPACING, ROLES) for t, p in pairs)
    assert (total["tn"], total["fp"], total["fn"], total["tp"]) == (1, 1, 1, 1)
    assert total["dice"] == pytest.approx(0.5) and total["dice_tp"] == pytest.approx(0.5)
    assert total["accuracy"] == 0.5 and total["balanced_accuracy"] == 0.5
    assert total["no_reflow_dice"] is None
    assert total["volume_mae_percent"] == pytest.approx((2 + 10) / 4)
    # positives .2 and 0 against negatives .04, 0, 0, 0, 0, 0: 6 wins; 5 ties count half
    assert total["slice_auroc"] == pytest.approx((6 + 2.5) / 12)
    with pytest.raises(UserError):
        aggregate([])
