"""Known lesions measure what formulas say, and real scars become records."""

import dataclasses

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.anatomy.measure import KNOTS, Wall, mean_angle, measure, measure_scar
from nnunet_lgesynth.dataset.roles import Roles

FINE = {"size": 100, "spacing": (10.0, 0.8, 0.8)}


def band(h, low=0.0, high=1.0, first=0.0, last=2 * np.pi, slices=slice(None)):
    """The wall from one depth and angle to another, as a mask."""
    anatomy, mask = h.anatomy, np.zeros(h.labels.shape, np.uint8)
    inside = anatomy.wall & (anatomy.depth >= low) & (anatomy.depth <= high) \
        & (anatomy.angle >= first) & (anatomy.angle < last)
    mask[slices] = inside[slices]
    return mask


def measured(h):
    return measure_scar(h.labels, h.image, h.anatomy, h.roles)


def test_a_whole_wall_measures_one(heart):
    h = heart()
    found = measure(band(h), h.anatomy)
    assert (found.burden, found.transmurality) == pytest.approx((1, 1))
    assert found.extent == pytest.approx(2 * np.pi)
    assert found.slices == 5 and found.segments == tuple(range(1, 17)) and found.no_reflow == 0


@pytest.mark.parametrize("low, high", [(0, 0.5), (0, 0.25), (0.35, 0.65), (0.5, 1), (0.2, 0.9)])
def test_transmurality_is_the_thickness_of_a_layer(heart, low, high):
    h = heart(**FINE)
    found = measure(band(h, low, high), h.anatomy)
    half_pixel = float(np.nanmean(h.anatomy.half_pixel))
    assert found.transmurality == pytest.approx(high - low, abs=2 * half_pixel)
    outer, inner = (14 + 12 * share for share in (high, low))            # radii in mm
    assert found.burden == pytest.approx((outer ** 2 - inner ** 2) / (26 ** 2 - 14 ** 2), rel=0.04)


def test_transmurality_is_the_mean_over_the_wall_it_covers(heart):
    h = heart(**FINE)
    deep, shallow = band(h, 0, 1, 0, np.pi / 2), band(h, 0, 0.4, np.pi / 2, np.pi)
    apart = [measure(m, h.anatomy).transmurality for m in (deep, shallow)]
    both = measure(deep | shallow, h.anatomy)
    assert both.transmurality == pytest.approx(np.mean(apart), abs=0.01)
    assert both.transmurality == pytest.approx(0.7, abs=0.05)


def test_a_sliver_counts_as_one(heart):
    """Three degrees of thin scar in the next sector change next to nothing."""
    h = heart(**FINE)
    solid, sliver = band(h, 0, 1, 0.1, 1.39), band(h, 0, 0.15, 1.40, 1.45)
    extents = [measure(m, h.anatomy).extent for m in (solid, solid | sliver)]
    assert extents[1] > extents[0]
    plain, more = (measure(m, h.anatomy).transmurality for m in (solid, solid | sliver))
    assert more == pytest.approx(plain, abs=0.04 * (plain - 0.15))


def test_what_lies_between_two_layers_counts(heart):
    """From the innermost to the outermost border, as one would measure it."""
    h = heart(**FINE)
    first, last = np.deg2rad([60, 120])
    inner, outer = (band(h, *layer, first, last) for layer in ((0, 0.2), (0.6, 0.8)))
    assert measure(inner | outer, h.anatomy).transmurality == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("sectors", [1, 3, 9, 30])
def test_extent_is_the_angle_of_the_sectors(heart, sectors):
    h = heart(**FINE)
    width = np.deg2rad(10 * sectors)
    found = measure(band(h, last=width), h.anatomy)
    assert found.extent == pytest.approx(width)
    assert found.burden == pytest.approx(sectors / 36, rel=0.03)


def test_extent_is_the_median_of_the_slices(heart):
    h = heart(**FINE)
    mask = sum(band(h, last=np.deg2rad(10 * n), slices=z) for z, n in enumerate((3, 9, 6)))
    found = measure(mask, h.anatomy)
    assert found.extent == pytest.approx(np.deg2rad(60)) and found.slices == 3


def test_segments_are_those_it_touches(heart):
    h = heart(slices=3)
    mask = band(h, first=0.2, last=1.5, slices=slice(1, 3))
    assert measure(mask, h.anatomy).segments == (2, 3, 8, 9)
    assert measure(band(h, first=0.2, last=0.9, slices=2), h.anatomy).segments == (2,)


def test_no_reflow_is_a_share_of_the_lesion_by_its_value(heart):
    h = heart(**FINE)
    mask = band(h, last=2.0)
    core = band(h, last=0.5) > 0
    for value in (2, 4):
        found = measure(np.where(core, value, mask), h.anatomy, no_reflow=value)
        assert found.no_reflow == pytest.approx(core.sum() / (mask > 0).sum())
        assert found.burden == pytest.approx((mask > 0).sum() / h.anatomy.myocardium.sum())
    assert measure(np.where(core, 2, mask), h.anatomy, no_reflow=4).no_reflow == 0


def test_nothing_measures_nothing(heart):
    h = heart()
    found = measure(np.zeros(h.labels.shape, np.uint8), h.anatomy)
    assert dataclasses.astuple(found) == (0.0, 0.0, 0.0, 0, (), 0.0)
    h.labels[:] = 0
    assert measure(np.ones(h.labels.shape, np.uint8), h.anatomy).burden == 0


def test_what_lies_outside_the_covered_wall_does_not_count(heart):
    h = heart()
    row = round(h.anatomy.lv_centre[0])
    h.labels[2, :row + 6][h.labels[2, :row + 6] == 2] = 0             # no coordinates here
    everything = measure(np.ones(h.labels.shape, np.uint8), h.anatomy)
    assert everything.burden == pytest.approx(1) and everything.slices == 4


def test_the_walls_voxels_come_in_the_stacks_order(heart):
    h = heart()
    wall = Wall.of(h.anatomy, h.labels > 0)
    assert np.array_equal(wall.index, np.flatnonzero(h.anatomy.myocardium))
    assert np.array_equal(wall.z, np.nonzero(h.anatomy.myocardium)[0])
    assert (wall.borders[0] <= wall.depth).all() and (wall.depth <= wall.borders[1]).all()


def test_mean_angle_passes_the_zero():
    assert mean_angle(np.array([0.1, 2 * np.pi - 0.1, 0.3])) == pytest.approx(0.1, abs=1e-3)
    assert mean_angle(np.array([-0.5])) == pytest.approx(2 * np.pi - 0.5)


def test_known_scar_comes_back(heart):
    h = heart(scar=(1.0, 2.5, 0.6), core=True, size=80, spacing=(10.0, 1.0, 1.3))
    record = measured(h)
    assert record.angle == pytest.approx(1.75, abs=0.05)
    assert record.extent == pytest.approx(1.5, abs=0.2)           # sectors of 0.17
    assert record.transmurality == pytest.approx(0.6, abs=0.1)
    assert record.slice_share == pytest.approx(2 / 5)
    assert record.level == pytest.approx(0.375)                   # slices 1 and 2 of 0 .. 4
    scar, wall = np.isin(h.labels, (3, 4)), h.labels >= 2
    assert record.burden == pytest.approx(scar.sum() / wall.sum())
    assert record.no_reflow == pytest.approx((h.labels == 4).sum() / scar.sum())
    assert record.contrast == pytest.approx(0.7, abs=0.02)
    assert record.no_reflow_contrast == pytest.approx(0.2, abs=0.02)
    assert record.wall_sd == pytest.approx(0.03, abs=0.005)


def test_profile_tells_place_width_and_depth_from_apex_to_base(heart):
    """A scar that turns, widens and deepens towards the base; relative to the whole one's."""
    h = heart(slices=KNOTS, **FINE)
    steps = np.arange(KNOTS)
    firsts, lasts = np.deg2rad(60 + 10 * steps), np.deg2rad(120 + 20 * steps)
    for z, first, last in zip(steps, firsts, lasts):
        h.labels[band(h, 0, 0.3 + 0.15 * z, first, last, slices=z) > 0] = 3
    record = measured(h)
    turn, extent, depth = np.array(record.profile).T
    assert len(record.profile) == KNOTS
    assert record.angle + turn == pytest.approx((firsts + lasts) / 2, abs=0.03)
    assert record.extent * extent == pytest.approx(lasts - firsts, abs=1e-3)
    assert record.transmurality * depth == pytest.approx(0.3 + 0.15 * steps, abs=0.06)
    upside_down = describe(h.labels, h.roles, h.spacing,
                           dataclasses.replace(h.frame, slices="base_to_apex"))
    other = measure_scar(h.labels, h.image, upside_down, h.roles)
    assert other.profile == record.profile[::-1]
    assert other.level == pytest.approx(1 - record.level)


def test_scar_of_one_slice_has_the_same_profile_throughout(heart):
    record = measured(heart(scar=(1.0, 2.5, 0.6), scar_slices=2, size=80))
    assert set(record.profile) == {(0.0, 1.0, 1.0)} and len(record.profile) == KNOTS


def test_scar_across_the_zero_angle_is_not_torn(heart):
    h = heart(scar=(0.0, 1.0, 0.6))
    turned = describe(np.rot90(h.labels, 3, axes=(1, 2)), h.roles, h.spacing, h.frame)
    record = measure_scar(np.rot90(h.labels, 3, axes=(1, 2)), np.rot90(h.image, 3, axes=(1, 2)),
                          turned, h.roles)
    assert record.angle == pytest.approx(0.5 - np.pi / 2 + 2 * np.pi, abs=0.06)
    assert record.extent == pytest.approx(1.0, abs=0.2)


def test_too_little_scar_is_no_record(heart):
    assert measured(heart()) is None
    h = heart()
    row, column = np.argwhere(h.labels[1] == 2)[0]
    h.labels[1, row, column] = 3
    assert measured(h) is None


def test_no_reflow_alone_tells_no_contrast_of_infarct(heart):
    h = heart(scar=(1.0, 2.0, 0.8))
    h.labels[h.labels == 3] = 4
    assert measure_scar(h.labels, h.image, h.anatomy, h.roles) is None


def test_dataset_without_no_reflow(heart):
    h = heart(scar=(1.0, 2.5, 0.6))
    record = measure_scar(h.labels, h.image, h.anatomy, Roles(1, 2, 3))
    assert record.no_reflow == 0 and record.no_reflow_contrast is None


def test_scar_of_the_apical_cap_counts_as_transmural_and_moves_no_other(heart):
    h = heart(slices=6, **{k: v for k, v in FINE.items() if k != "slices"})
    h.labels[0][h.labels[0] == 1] = 2
    anatomy = h.anatomy
    cap = np.zeros(h.labels.shape, np.uint8)
    cap[0] = anatomy.wall[0] & (anatomy.depth[0] < 0.4)
    inner = ((anatomy.depth < 0.5) & (anatomy.angle < 1) & (anatomy.segment != 17)).astype(np.uint8)
    assert measure(cap, anatomy).transmurality == 1 and measure(cap, anatomy).segments == (17,)
    alone, both = (measure(m, anatomy).transmurality for m in (inner, inner | cap))
    assert both == pytest.approx(alone)
