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


def thirds_of(anatomy):
    """Per slice: "b", "m", "a" for basal, mid, apical."""
    return "".join({0: "b", 1: "m", 2: "a"}[int(s.min() - 1) // 6] for s in (
        anatomy.segment[z][anatomy.segment[z] > 0] for z in range(len(anatomy.rings))))


@pytest.mark.parametrize("slices, expected", [(1, "m"), (3, "amb"), (5, "aambb"), (6, "aammbb"),
                                              (9, "aaammmbbb")])
def test_levels_are_thirds_of_the_slices(heart, slices, expected):
    h = heart(slices=slices)
    found = thirds_of(h.anatomy)
    assert found == expected
    base_first = describe(h.labels, h.roles, h.spacing,
                          dataclasses.replace(h.frame, slices="base_to_apex"))
    assert thirds_of(base_first) == found[::-1]


def test_segments_follow_the_angle(heart):
    """Basal and mid from the insertion on: anteroseptal, inferoseptal, inferior, ..."""
    anatomy = heart(slices=3, size=96).anatomy
    for z, expected in ((2, (2, 3, 4, 5, 6, 1)), (1, (8, 9, 10, 11, 12, 7))):
        for k, segment in enumerate(expected):
            inside = anatomy.wall[z] & (difference(anatomy.angle[z], (k + 0.5) * np.pi / 3) < 0.5)
            assert set(anatomy.segment[z][inside]) == {segment}
    for middle, segment in ((60, 14), (150, 15), (240, 16), (330, 13)):
        inside = anatomy.wall[0] & (difference(anatomy.angle[0], np.deg2rad(middle)) < 0.75)
        assert set(anatomy.segment[0][inside]) == {segment}


@pytest.mark.parametrize("order", ["apex_to_base", "base_to_apex"])
def test_order_is_found_from_the_narrowing_apex(heart, order):
    h = heart(slices=4)
    for z, keep in enumerate((20.0, 22.0, 24.0, 26.0)):
        radius, _ = polar(h.labels.shape[1:], h.spacing[1:], h.anatomy.lv_centre)
        h.labels[z][radius > keep] = 0
    labels = h.labels if order == "apex_to_base" else h.labels[::-1]
    anatomy = describe(labels, h.roles, h.spacing)
    assert (anatomy.order, anatomy.order_from) == (order, "labels")
    told = describe(labels, h.roles, h.spacing, Frame("base_to_apex"))
    assert (told.order, told.order_from) == ("base_to_apex", "dataset")
    flat = heart(slices=4)
    unknown = describe(flat.labels, flat.roles, flat.spacing)
    assert unknown.order_from == "convention" and any("assumed" in n for n in unknown.notes)


def test_long_axis_of_a_tilted_heart(heart):
    """Slices shifted by 3 mm per 10 mm: the axis leans as much, from apex to base."""
    h = heart(slices=6, size=90, spacing=(10.0, 1.5, 1.5))
    for z in range(6):
        h.labels[z] = np.roll(h.labels[z], 2 * z, axis=0)
    axis = np.array(h.anatomy.axis)
    assert axis == pytest.approx(np.array([10, 3, 0]) / np.hypot(10, 3), abs=1e-6)
    assert h.anatomy.tilt == pytest.approx(np.rad2deg(np.arctan(0.3))) and not h.anatomy.notes
    steep = describe(h.labels, h.roles, (3.0, *h.spacing[1:]), h.frame)
    assert any("leans by 45 degrees" in note for note in steep.notes)
    flipped = describe(h.labels[::-1], h.roles, h.spacing,
                       dataclasses.replace(h.frame, slices="base_to_apex"))
    assert flipped.axis == pytest.approx((-axis[0], axis[1], axis[2]), abs=1e-6)


def test_a_wall_of_one_pixel_is_measured(heart):
    h = heart(spacing=(10.0, 6.0, 6.0), size=24)
    h.labels[:] = 0
    h.labels[:, 8:15, 8:15] = 2
    h.labels[:, 9:14, 9:14] = 1
    anatomy = h.anatomy
    assert anatomy.rings.all()
    assert np.allclose(anatomy.depth[anatomy.wall & (anatomy.half_pixel == 0.5)], 0.5)


def test_frame_is_the_display_convention_if_unknown(heart):
    h = heart()
    guessed = describe(h.labels, h.roles, h.spacing)
    assert guessed.reference.source == "display" and h.anatomy.reference.source == "dataset"
    assert np.allclose(guessed.angle, h.anatomy.angle, equal_nan=True)


def test_kinds_of_slices(heart):
    h = heart()
    row, column = (round(v) for v in h.anatomy.lv_centre)
    h.labels[1, row - 1:row + 2, :column] = 0               # a gap towards the septum
    h.labels[2][h.labels[2] == 1] = 0                       # no cavity between slices that have one
    h.labels[3] = 0                                         # nothing
    anatomy = h.anatomy
    assert anatomy.kinds.tolist() == ["ring", "open", "none", "none", "ring"]
    for z in (2, 3):
        assert np.isnan(anatomy.depth[z]).all() and np.isnan(anatomy.angle[z]).all()
        assert np.isnan(anatomy.centre[z]).all() and not anatomy.segment[z].any()
    assert any("slice 3" in note and "left out" in note for note in anatomy.notes)


def test_an_open_wall_measures_like_the_ring_it_was(heart):
    """The outflow tract: what is left of the wall keeps its depth, angle and segment."""
    h = heart(size=80)
    closed = h.anatomy
    row, column = (round(v) for v in closed.lv_centre)
    h.labels[2, row - 4:row + 5, :column][h.labels[2, row - 4:row + 5, :column] == 2] = 0
    opened = h.anatomy
    assert opened.kinds[2] == "open" and opened.paintable[2]
    wall = opened.wall[2]
    assert np.abs(opened.depth[2] - closed.depth[2])[wall].max() < 0.35      # beside the gap
    assert np.median(np.abs(opened.depth[2] - closed.depth[2])[wall]) < 0.01
    assert (opened.segment[2] == closed.segment[2])[wall].mean() > 0.99


def test_a_wall_around_less_than_half_of_the_cavity_has_no_coordinates(heart):
    h = heart()
    row = round(h.anatomy.lv_centre[0])
    h.labels[2, :row + 6][h.labels[2, :row + 6] == 2] = 0
    assert h.anatomy.kinds[2] == "none"


def test_a_few_voxels_of_cavity_belong_to_the_cap(heart):
    h = heart(slices=7)
    row, column = (round(v) for v in h.anatomy.lv_centre)
    for z in (0, 1):
        h.labels[z][h.labels[z] == 1] = 2
    h.labels[1, row, column:column + 3] = 1
    assert h.anatomy.kinds.tolist() == ["cap", "cap", *["ring"] * 5]


def test_stray_voxels_move_nothing(heart):
    h = heart(size=80)
    clean = h.anatomy
    h.labels[2, 2:5, 2:5] = 1                                # a second cavity far away
    h.labels[3, 70, 70] = 2                                  # a voxel of wall as well
    stray = h.anatomy
    assert stray.rings.all() and np.allclose(stray.centre, clean.centre)
    assert np.array_equal(stray.segment, clean.segment)
    assert np.array_equal(stray.myocardium, clean.myocardium)


def test_a_cap_tells_the_order_before_the_areas_do(heart):
    h = heart(slices=6)
    h.labels[5][h.labels[5] == 1] = 2
    anatomy = describe(h.labels, h.roles, h.spacing)
    assert (anatomy.order, anatomy.order_from) == ("base_to_apex", "labels")
    assert anatomy.kinds[5] == "cap"


def test_a_heart_that_the_image_cuts(heart):
    """A cut cavity has no coordinates; a cut wall has, and the anatomy says so."""
    cut = heart(centre=(32, 8)).anatomy
    assert not cut.covered.any() and any("left out" in note for note in cut.notes)
    cut = heart(centre=(32, 14)).anatomy
    assert cut.rings.all() and np.nanmin(cut.depth[:, 32, 0]) > 0.8
    assert any("the image cuts the wall in slices 1, 2, 3, 4, 5" in note for note in cut.notes)


def test_wall_beyond_the_apical_end_is_the_cap(heart):
    h = heart(slices=7)
    for frame, caps in ((h.frame, (0, 1)), (dataclasses.replace(h.frame, slices="base_to_apex"),
                                            (5, 6))):
        labels = h.labels.copy()
        for z in caps:
            labels[z][labels[z] == 1] = 2
        anatomy = describe(labels, h.roles, h.spacing, frame)
        assert np.flatnonzero(anatomy.kinds == "cap").tolist() == list(caps)
        for z in caps:
            assert set(np.unique(anatomy.segment[z])) == {0, 17} and anatomy.paintable[z]
            assert np.nanmin(anatomy.depth[z]) == 0 and np.nanmax(anatomy.depth[z]) > 0.9
        wrong_end = labels[::-1]
        assert "cap" not in describe(wrong_end, h.roles, h.spacing, frame).kinds


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
