"""Laws of a patient's metrics: Dice's edges, distances of known bodies, nnU-Net's own numbers, what
the filter may change."""

import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from sklearn.metrics import roc_auc_score

from nnunet_lgesynth.benchmark.metrics import (
    MIN_PERCENT_OF_WALL,
    auroc,
    case_metrics,
    dice,
    surface_distances,
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
    assert row["predicted_percent"] - row["true_percent"] == pytest.approx(15)
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


def test_auroc_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    for _ in range(20):
        positive = rng.random(40) < 0.4
        score = np.round(rng.random(40), 1) * (rng.random(40) < 0.7)   # many ties, many zeros
        assert auroc(positive, score) == pytest.approx(roc_auc_score(positive, score))
    assert np.isnan(auroc(np.ones(4, bool), np.arange(4.0)))


def test_filter_removes_scar_below_the_bound_and_touches_nothing_else():
    at_bound = round(200 * MIN_PERCENT_OF_WALL / 100)
    small, large = wall(scar=at_bound - 1), wall(scar=at_bound)
    before = small.copy()
    assert np.array_equal(volume_filter(small, ROLES), wall())
    assert np.array_equal(small, before)
    assert np.array_equal(volume_filter(large, ROLES), large)
    assert np.array_equal(volume_filter(wall(no_reflow=1), ROLES), wall())


def test_surface_distances_of_shifted_bodies_are_their_shift_in_mm():
    body = np.zeros((5, 40, 40), bool)
    body[1:4, 10:20, 10:20] = True
    moved = np.roll(body, 3, axis=2)
    hd95, asd = surface_distances(body, moved, (8.0, 1.0, 1.5))
    assert hd95 == pytest.approx(3 * 1.5) and 0 < asd < hd95
    assert surface_distances(body, np.roll(body, 1, axis=0), (8.0, 1.0, 1.5))[0] == 8.0
    assert surface_distances(body, body, (8.0, 1.0, 1.5)) == (0.0, 0.0)
    assert surface_distances(body, moved, (8.0, 1.0, 1.5)) == \
        pytest.approx(surface_distances(moved, body, (8.0, 1.0, 1.5)))
    edge = np.zeros_like(body)
    edge[:, :5] = True                                     # cut by the image: its end is a surface
    assert surface_distances(edge, np.roll(edge, 2, axis=1), (8.0, 1.0, 1.5))[0] == 2.0
    for empty in ((body, ~body & body), (~body & body, body), (~body & body, ~body & body)):
        assert surface_distances(*empty, (8.0, 1.0, 1.5)) == (None, None)


def test_a_lesion_is_found_where_any_of_it_is():
    truth, prediction = wall(slices=3), wall(slices=3)
    truth[0, 0, 0:3] = 3                    # touched in the next slice, diagonally: one lesion
    truth[1, 1, 3:5] = 4
    truth[0, 8, 8] = 3                      # missed
    prediction[1, 1, 4] = 3
    prediction[2, 5, 5] = prediction[2, 8, 2] = 3           # twice false
    assert case_metrics(truth, prediction, SPACING, ROLES)["lesions"] == [1, 2, 1]
    assert case_metrics(wall(), wall(), SPACING, ROLES)["lesions"] == [0, 0, 0]


def test_segments_and_transmurality_are_those_of_the_truths_wall(heart):
    full, half = (heart((0.0, np.pi / 3, depth)) for depth in (1.0, 0.5))
    row = case_metrics(full.labels, half.labels, full.spacing, ROLES, full.anatomy)
    assert row["true_transmurality"] == pytest.approx(1, abs=0.02)
    assert row["predicted_transmurality"] == pytest.approx(0.5, abs=0.1)
    shares = {s: (true, found) for s, true, found in row["segments"]}
    assert set(shares) == set(np.unique(full.anatomy.segment)) - {0}
    scarred = {s for s, (true, _) in shares.items() if true > 0.05}
    expected = {int(s) for s in np.unique(full.anatomy.segment[full.labels == ROLES.scar])}
    assert scarred == expected
    assert all(found == pytest.approx(true / 2, rel=0.3) for s, (true, found) in shares.items()
               if s in scarred)
    none = case_metrics(full.labels, heart().labels, full.spacing, ROLES, full.anatomy)
    assert none["predicted_transmurality"] == 0 == max(found for *_, found in none["segments"])


def test_dice_and_volumes_are_those_of_nnunetv2_evaluate_folder(tmp_path):
    """One lesion label a dataset without no-reflow, which nnU-Net scores as it is."""
    roles = Roles(cavity=1, myocardium=2, scar=3)
    rng = np.random.default_rng(0)
    for folder in ("truth", "found"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "labels": {
        "background": 0, "cavity": 1, "myocardium": 2, "scar": 3}}))
    (tmp_path / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    rows = {}
    for k, scar in enumerate((0, 3, 40)):
        pair = {"truth": wall(scar), "found": wall(rng.integers(0, 60))}
        for folder, labels in pair.items():
            image = sitk.GetImageFromArray(labels.astype(np.uint8))
            image.SetSpacing(SPACING[::-1])
            sitk.WriteImage(image, str(tmp_path / folder / f"c{k}.nii.gz"))
        rows[f"c{k}.nii.gz"] = case_metrics(*pair.values(), SPACING, roles)
    code = ("from nnunetv2.evaluation.evaluate_predictions import evaluate_folder_entry_point as e;"
            "e()")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "truth"), str(tmp_path / "found"),
                    "-djfile", str(tmp_path / "dataset.json"), "-pfile",
                    str(tmp_path / "plans.json"), "-np", "1"], check=True, capture_output=True)
    theirs = json.loads((tmp_path / "found" / "summary.json").read_text())["metric_per_case"]
    assert len(theirs) == 3
    for case in theirs:
        row, metrics = rows[case["reference_file"].rsplit("/", 1)[-1]], case["metrics"]["3"]
        assert (row["true_voxels"], row["predicted_voxels"]) == (metrics["n_ref"],
                                                                 metrics["n_pred"])
        if row["has_scar"] or row["found_scar"]:     # two empty masks: 1 here, not a number there
            assert row["dice"] == pytest.approx(metrics["Dice"])
