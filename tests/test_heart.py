"""Depth, angle and rings of an analytic heart, against formulas and under rotation."""

import dataclasses

import numpy as np
import pytest
from conftest import ENDOCARDIUM_MM, EPICARDIUM_MM, polar

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.dataset.roles import Frame

SPACINGS = [(10.0, 1.4, 1.4), (8.0, 1.0, 1.8), (10.0, 2.0, 1.1)]


def difference(a, b):
    return np.abs(np.angle(np.exp(1j * (a - b))))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_depth_is_the_share_of_the_wall_in_mm(heart, spacing):
    h = heart(spacing=spacing, size=72)
    anatomy = h.anatomy
    assert np.array_equal(np.isfinite(anatomy.depth), anatomy.wall)
    assert anatomy.depth[anatomy.wall].min() >= 0 and anatomy.depth[anatomy.wall].max() <= 1
    radius, _ = polar((72, 72), spacing[1:], anatomy.lv_centre)
    expected = (radius - ENDOCARDIUM_MM) / (EPICARDIUM_MM - ENDOCARDIUM_MM)
    error = np.abs(anatomy.depth[2] - expected)[anatomy.wall[2]]
    assert error.mean() < 0.06 and error.max() < max(spacing[1:]) / 12.0   # under a pixel


def test_depth_grows_outward_along_every_ray(heart):
    anatomy = heart().anatomy
    row, column = anatomy.centre[2]
    for direction in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        steps = np.arange(0, 26, 0.5)
        ray = anatomy.depth[2, np.round(row + steps * np.sin(direction)).astype(int),
                            np.round(column + steps * np.cos(direction)).astype(int)]
        ray = ray[np.isfinite(ray)]
        assert ray[0] < 0.2 and ray[-1] > 0.8 and np.diff(ray).min() > -0.1


@pytest.mark.parametrize("spacing", SPACINGS)
def test_angle_starts_at_the_anterior_insertion_and_passes_the_septum(heart, spacing):
    anatomy = heart(spacing=spacing, size=72).anatomy
    _, expected = polar((72, 72), spacing[1:], anatomy.lv_centre)
    assert difference(anatomy.angle[0], expected)[anatomy.wall[0]].max() < 0.02
    row, column = (round(v) for v in anatomy.lv_centre)
    towards = {"anterior": (row - 9, column), "septal": (row, column - 9),
               "posterior": (row + 9, column), "lateral": (row, column + 9)}
    degrees = {k: np.degrees(anatomy.angle[0][at]) for k, at in towards.items()}
    aha = {"anterior": 330, "septal": 60, "posterior": 150, "lateral": 240}
    for name, expected in aha.items():
        assert abs(degrees[name] - expected) < 6, name


def test_zero_angle_points_to_the_anterior_septum(heart):
    h = heart()
    row, column = h.anatomy.centre[0]
    at = np.round([row - 10 * np.cos(np.pi / 6), column - 10 * np.sin(np.pi / 6)]).astype(int)
    assert difference(h.anatomy.angle[0][tuple(at)], 0.0) < 0.05


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_image_and_frame_turns_nothing(heart, turns):
    h = heart(spacing=(10.0, 1.2, 1.6), size=70)
    frame, spacing, labels = h.frame, h.spacing, h.labels
    for _ in range(turns):       # rot90: a direction (row, column) becomes (-column, row)
        labels = np.rot90(labels, axes=(1, 2))
        frame = dataclasses.replace(frame, **{
            n: (-getattr(frame, n)[1], getattr(frame, n)[0]) for n in ("anterior", "septal")})
        spacing = (spacing[0], spacing[2], spacing[1])
    turned = describe(labels, h.roles, spacing, frame)
    expected = np.rot90(h.anatomy.angle, turns, axes=(1, 2))
    assert difference(turned.angle, expected)[turned.wall].max() < 1e-3
    assert np.allclose(turned.depth, np.rot90(h.anatomy.depth, turns, axes=(1, 2)), atol=1e-4,
                       equal_nan=True)


def test_turning_the_heart_alone_shifts_the_scar_angle(heart):
    h = heart(scar=(1.0, 1.6, 0.8))
    turned = describe(np.rot90(h.labels, axes=(1, 2)), h.roles, h.spacing, h.frame)
    before, after = (np.angle(np.exp(1j * a.angle[scar].astype(float)).mean()) for a, scar in (
        (h.anatomy, h.labels == 3), (turned, np.rot90(h.labels, axes=(1, 2)) == 3)))
    assert difference(after - before, np.pi / 2) < 0.02      # rot90 turns towards the septum


def test_frame_is_the_display_convention_if_unknown(heart):
    h = heart()
    guessed = describe(h.labels, h.roles, h.spacing)
    assert guessed.reference == "display" and h.anatomy.reference == "dataset"
    assert np.allclose(guessed.angle, h.anatomy.angle, equal_nan=True)


def test_an_open_wall_is_no_ring(heart):
    h = heart()
    row, column = (round(v) for v in h.anatomy.lv_centre)
    h.labels[1, row - 1:row + 2, :column] = 0               # a gap towards the septum
    h.labels[2][h.labels[2] == 1] = 0                       # no cavity
    h.labels[3] = 0                                         # nothing
    anatomy = h.anatomy
    assert anatomy.rings.tolist() == [True, False, False, False, True]
    for z in (1, 2, 3):
        assert np.isnan(anatomy.depth[z]).all() and np.isnan(anatomy.angle[z]).all()
        assert np.isnan(anatomy.centre[z]).all()


def test_a_wall_that_leaves_the_image_is_no_ring(heart):
    assert not heart(centre=(32, 8)).anatomy.rings.any()
    cut = heart(centre=(32, 14)).anatomy                    # only the wall is cut
    assert cut.rings.all() and np.nanmin(cut.depth[:, 32, 0]) > 0.8


def test_an_empty_stack_has_no_rings(heart):
    h = heart()
    h.labels[:] = 0
    assert not h.anatomy.rings.any() and not h.anatomy.paintable.any()


def test_one_slice_is_enough(heart):
    anatomy = heart(slices=1).anatomy
    assert anatomy.rings.tolist() == [True] and anatomy.level.tolist() == [0.5]
    assert np.isfinite(anatomy.depth).any()


def test_level_runs_from_apex_to_base(heart):
    h = heart()
    h.labels[0] = 0
    assert np.allclose(h.anatomy.level[1:], [0, 1 / 3, 2 / 3, 1])
    upside_down = describe(h.labels, h.roles, h.spacing,
                           Frame("base_to_apex", h.frame.anterior, h.frame.septal))
    assert np.allclose(upside_down.level[1:], [1, 2 / 3, 1 / 3, 0])


def test_scarred_slices_are_not_paintable(heart):
    anatomy = heart(scar=(1, 2, 0.5)).anatomy
    assert anatomy.scarred.tolist() == [False, True, True, False, False]
    assert anatomy.paintable.tolist() == [True, False, False, True, True]
