"""The zero direction: each source finds it, in order, and says why a better one was passed over."""

import dataclasses

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_nnunet import tiny_dataset_json, tiny_plans

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.anatomy.reference import DISPLAY
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.dataset.roles import DatasetInfo, Frame, Roles
from nnunet_lgesynth.phantom import draw_patient, render

ROLES = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4, rv=5)
SIZE, PIXEL_MM, SLICES = 80, 1.4, 5
SPACING = (10.0, PIXEL_MM, PIXEL_MM)
LV_MM, AWAY_MM, RV_WALL_MM = 26.0, 28.0, 3.0     # epicardial radius, RV centre, unlabelled wall
# The RV's outer border meets the epicardium 60 degrees to both sides of the septal direction.
RV_MM = np.sqrt(LV_MM ** 2 + AWAY_MM ** 2 - LV_MM * AWAY_MM) - RV_WALL_MM


def with_rv(degrees=0.0, *, away=AWAY_MM, mirrored=False):
    """Labels (Z, Y, X) whose RV is turned around the LV from the display convention, by one angle
    or one a slice, in the direction of growth."""
    y, x = np.meshgrid(*((np.arange(SIZE) - SIZE / 2 + 0.5) * PIXEL_MM,) * 2, indexing="ij")
    labels = np.zeros((SLICES, SIZE, SIZE), np.uint8)
    for z, turn in enumerate(np.broadcast_to(np.deg2rad(degrees), SLICES)):
        septal = np.pi / 2 + turn                            # from the image's upper side
        labels[z, np.hypot(y + away * np.cos(septal), x + away * np.sin(septal)) < RV_MM] = 5
    radius = np.hypot(y, x)
    labels[:, radius < LV_MM] = 2
    labels[:, radius < 14] = 1
    return labels[:, :, ::-1] if mirrored else labels


def reference(labels, frame=None, **more):
    return describe(labels, ROLES, SPACING, frame, **more).reference


def turn_of(found, mirrored=False):
    """Degrees from the display convention's zero, which lies 30 from anterior to septal."""
    row, column = found.zero
    degrees = np.rad2deg(np.arctan2(column if mirrored else -column, -row)) - 30
    return (degrees + 180) % 360 - 180


def known(degrees):
    """The frame whose zero is turned so far from the display convention."""
    a = np.deg2rad(degrees)
    return Frame(None, (-np.cos(a), -np.sin(a)), (np.sin(a), -np.cos(a)))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", range(-60, 61, 20))
def test_rv_label_tells_the_anterior_insertion_on_either_side(degrees, mirrored):
    found = reference(with_rv(degrees, mirrored=mirrored))
    assert found.source == "rv" and (found.uncertainty is None if mirrored
                                     else found.uncertainty < np.deg2rad(5))
    assert "anterior one is taken from the display convention" in found.note
    assert ("mirrored" in found.note) == mirrored
    assert turn_of(found, mirrored) == pytest.approx(degrees, abs=8)


def test_rv_label_tells_it_within_a_known_frame_of_any_orientation():
    for turns in (1, 2, 3):
        frame, labels = known(90.0 * turns), np.rot90(with_rv(10), turns, axes=(1, 2))
        found = reference(labels, frame)
        assert found.source == "rv"
        assert (turn_of(found) - 90 * turns) % 360 == pytest.approx(10, abs=8)


def test_rv_on_the_other_side_than_told_is_not_used():
    found = reference(with_rv(mirrored=True), DISPLAY)
    assert found.source == "dataset" and turn_of(found) == pytest.approx(0)
    assert "RV label" in found.note and "opposite" in found.note


def test_rv_that_touches_the_wall_nowhere_is_not_used():
    found = reference(with_rv(away=AWAY_MM + 30))
    assert found.source == "display" and "touches the LV wall in no slice" in found.note


def test_rv_without_a_common_slice_is_not_used():
    labels = with_rv()
    labels[:3][labels[:3] == 5] = 0
    labels[3:][labels[3:] != 5] = 0
    found = reference(labels)
    assert found.source == "display" and "shares no slice" in found.note


def test_insertions_that_vary_between_slices_are_not_used():
    found = reference(with_rv([-70, -35, 0, 35, 70]))
    assert found.source == "display" and "varies by" in found.note
    assert turn_of(found) == pytest.approx(0)
    steady = reference(with_rv([-10, -5, 0, 5, 10]))
    assert steady.source == "rv" and np.deg2rad(4) < steady.uncertainty < np.deg2rad(12)


def marked(degrees, z=2):
    """The voxel on the epicardium that far from the display convention's zero."""
    angle = np.deg2rad(degrees + 30)
    middle, reach = SIZE / 2 - 0.5, LV_MM / PIXEL_MM
    return (z, middle - reach * np.cos(angle), middle - reach * np.sin(angle))


def test_landmark_beats_image_and_frame_and_loses_to_the_rv():
    labels = with_rv(0)
    image = np.where(labels == 5, 1.0, 0.0) + np.where(labels == 1, 1.0, 0.0)
    bare = np.where(labels == 5, 0, labels)
    for degrees in (-50, 0, 25, 170):
        found = reference(bare, DISPLAY, image=image, insertion=marked(degrees))
        assert found.source == "landmarks" and found.uncertainty is None
        assert abs((turn_of(found) - degrees + 180) % 360 - 180) < 1e-3
    assert reference(labels, DISPLAY, image=image, insertion=marked(25)).source == "rv"


def test_landmark_counts_in_the_nearest_slice_with_a_cavity():
    labels = np.where(with_rv() == 5, 0, with_rv())
    labels[3] = np.roll(labels[3], 6, axis=0)
    labels[4] = 0
    _, row, column = marked(20)
    assert turn_of(reference(labels, insertion=(4, row + 6, column))) == pytest.approx(20)


@pytest.mark.parametrize("voxel", [(2, -900, 10), (50, 10, 10), (2, 10, SIZE)])
def test_a_landmark_outside_of_the_stack_is_passed_over(voxel):
    labels = np.where(with_rv() == 5, 0, with_rv())
    found = reference(labels, insertion=voxel)
    assert found.source == "display" and "lies outside of the stack" in found.note


def test_landmark_in_the_centre_gives_no_direction():
    labels = np.where(with_rv() == 5, 0, with_rv())
    found = reference(labels, insertion=(2, SIZE / 2 - 0.5, SIZE / 2 - 0.5))
    assert found.source == "display" and "landmark lies in the LV's centre" in found.note


def test_image_follows_a_turned_heart_better_than_the_convention():
    errors, turns = [], np.linspace(-40, 40, 12)
    for k, degrees in enumerate(turns):
        rng = np.random.default_rng([7, k])
        patient = dataclasses.replace(draw_patient(rng, pathological=k % 2 == 0),
                                      rotation=np.deg2rad(degrees))
        image, labels, spacing = render(patient, rng)
        found = describe(labels, ROLES, spacing, image=image).reference
        assert found.source == "image" and 0 < found.uncertainty < np.deg2rad(45)
        errors.append(abs(turn_of(found) - degrees))
    assert np.mean(errors) < 12 and np.mean(errors) < 0.6 * np.abs(turns).mean()


@pytest.mark.parametrize("outside", ["nothing", "dark", "noise"])
def test_image_without_a_bright_rv_is_not_used(outside):
    labels = np.where(with_rv() == 5, 0, with_rv())
    image = np.where(labels == 1, 1.0, 0.3) if outside == "dark" else np.ones(labels.shape)
    if outside == "noise":
        image = np.random.default_rng(0).normal(size=labels.shape)
    found = reference(labels, image=image)
    assert found.source == "display" and "no bright RV" in found.note
    assert found.zero == pytest.approx(reference(labels).zero)


def test_image_that_ends_at_the_heart_is_not_used():
    labels = np.where(with_rv() == 5, 0, with_rv())[:, 18:-18, 18:-18]
    found = reference(labels, image=np.ones(labels.shape))
    assert found.source == "display" and "cut by the image" in found.note


def test_dataset_frame_comes_before_the_display_convention():
    labels = np.where(with_rv() == 5, 0, with_rv())
    found = reference(labels, known(35))
    assert found.source == "dataset" and turn_of(found) == pytest.approx(35)
    half_known = Frame(anterior=(0.0, 1.0))
    for frame in (None, Frame(), half_known):
        assert reference(labels, frame).source == "display"
        assert turn_of(reference(labels, frame)) == pytest.approx(0)


@pytest.mark.parametrize("sign", [1, -1])
def test_parallel_directions_are_refused(sign):
    with pytest.raises(UserError, match=r"parallel.*correct"):
        reference(with_rv(), Frame(None, (-1.0, 0.0), (-1.0 * sign, 0.0)))


def test_every_passed_over_source_is_named():
    labels = with_rv(away=AWAY_MM + 30)
    found = reference(labels, image=np.ones(labels.shape),
                      insertion=(2, SIZE / 2 - 0.5, SIZE / 2 - 0.5))
    assert [part in found.note for part in ("RV label", "landmark", "bright RV")] == [True] * 3


@pytest.mark.parametrize("options", [
    {"spacing": (1.1, 1.7)},
    {"spacing": (2.6, 1.1, 1.7), "configuration": "3d_fullres", "patch": (8, 32, 32)}])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1)])
def test_a_marked_voxel_follows_the_case_through_preprocessing(transpose, options, tmp_path):
    """A bright spot at the voxel, cropped, transposed and resampled by nnU-Net itself."""
    plans = tiny_plans(**options)
    (configuration, _), = plans["configurations"].items()
    plans["transpose_forward"] = list(transpose)
    spacing, voxel = (3.0, 1.5, 2.0), (12, 20, 17)
    away = np.stack(np.indices((30, 40, 36))) - np.reshape(voxel, (3, 1, 1, 1))
    raw = 0.1 + np.exp(-(away ** 2).sum(axis=0) / 8)
    raw[:3] = raw[:, :5] = raw[:, :, :4] = raw[:, -2:] = 0                  # cropped away
    manager, properties = PlansManager(plans), {"spacing": list(spacing)}
    data, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        raw[None], np.zeros((1, *raw.shape), np.int16), properties, manager,
        manager.get_configuration(configuration), tiny_dataset_json())
    fold = Fold("Dataset116_EMIDECROI", plans, configuration, 0, tmp_path, (), (),
                tiny_dataset_json(), DatasetInfo(ROLES, landmarks={"case_1": voxel}))
    case = Case("case_1", data, seg, properties, fold._spacing(properties))
    bright = np.maximum(data[0] - np.median(data[0]) - 1, 0)
    spot = [np.average(axis, weights=bright) for axis in np.indices(bright.shape)]
    assert fold.insertion(case) == pytest.approx(spot, abs=0.5)
    assert fold.insertion(dataclasses.replace(case, identifier="case_2")) is None


@pytest.mark.parametrize("spacing, slices", [(13.0, 4), (4.0, 12)])     # of 5 slices every 10 mm
def test_a_mark_in_an_end_slice_stays_inside_a_stack_of_other_slices(spacing, slices, tmp_path):
    plans = tiny_plans(spacing=(spacing, 1.4, 1.4), configuration="3d_fullres", patch=(4, 32, 32))
    case = Case("case_1", np.zeros((1, slices, 40, 40)), None,
                {"spacing": (10.0, 1.4, 1.4), "bbox_used_for_cropping": [[1, 6], [0, 40], [0, 40]]},
                (spacing, 1.4, 1.4))
    found = []
    for z in range(7):
        info = DatasetInfo(ROLES, landmarks={"case_1": (z, 10, 20)})
        fold = Fold("Dataset116_EMIDECROI", plans, "3d_fullres", 0, tmp_path, (), (),
                    tiny_dataset_json(), info)
        found.append(fold.insertion(case)[0])
        assert fold.insertion(case)[1:] == pytest.approx((10, 20))
    assert (np.diff(found) > 0).all()
    assert found[0] < 0 and found[1] >= 0 and found[5] <= slices - 1 < found[6]


def test_stray_rv_voxels_are_not_the_rv():
    """One voxel at the opposite wall in each slice, as an unclean segmentation has."""
    labels = with_rv(20)
    clean = reference(labels)
    wall = labels[0] == 2
    row, column = np.argwhere(wall)[np.argmax(np.argwhere(wall)[:, 1])]      # most lateral
    labels[:, row, column + 1] = 5
    found = reference(labels)
    assert found.source == "rv" and found.zero == pytest.approx(clean.zero, abs=1e-6)


def test_an_rv_label_around_the_lv_is_passed_over():
    labels = with_rv(away=0.0)
    y, x = np.indices(labels.shape[1:]) - (SIZE - 1) / 2
    labels[:, (labels[0] == 0) & (np.hypot(y, x) < 0.45 * SIZE)] = 5
    found = reference(labels)
    assert found.source == "display" and "around the LV's centre" in found.note
