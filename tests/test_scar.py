"""A request stays where it may be, and is as large as asked."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR, ScarSpec, paint_mask

SECTOR = ScarSpec("sector", angle=1.0, extent=1.6, transmurality=0.6, slice=2, length=4)
ELLIPSOID = ScarSpec("ellipsoid", angle=1.0, extent=1.6, transmurality=0.5, depth=0.5, slice=2,
                     length=4)
BOTH = pytest.mark.parametrize("spec", [SECTOR, ELLIPSOID], ids=lambda s: s.shape)


def offset(angle, centre):
    return np.abs(np.angle(np.exp(1j * (angle - centre))))


@BOTH
def test_mask_lies_inside_the_wall(heart, spec):
    for texture in range(10):
        h = heart(spacing=(10.0, 1.2, 1.6))
        mask = paint_mask(h.anatomy, dataclasses.replace(spec, texture=texture, no_reflow=0.2))
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, SCAR, NO_REFLOW}
        assert not (mask > 0)[~h.anatomy.wall].any()


@BOTH
def test_only_paintable_slices_are_touched(heart, spec):
    h = heart(scar=(3.0, 4.0, 0.5), scar_slices=slice(1, 2))
    row = round(h.anatomy.lv_centre[0])
    h.labels[3, row - 1:row + 2, :round(h.anatomy.lv_centre[1])] = 0      # open ring
    mask = paint_mask(h.anatomy, dataclasses.replace(spec, length=8))
    assert (mask > 0).any(axis=(1, 2)).tolist() == [True, False, True, False, True]


@BOTH
def test_angle_and_length_are_kept(heart, spec):
    h = heart(slices=9, size=80)
    mask = paint_mask(h.anatomy, dataclasses.replace(spec, slice=4, length=5)) > 0
    off = offset(h.anatomy.angle, spec.angle)[mask]
    assert off.max() <= spec.extent / 2 + 1e-3 and off.max() > 0.4 * spec.extent
    assert mask.any(axis=(1, 2)).tolist() == [False] * 2 + [True] * 5 + [False] * 2


def test_sector_reaches_as_deep_as_asked(heart):
    anatomy = heart(size=80).anatomy
    for transmurality in (0.3, 0.6, 0.9):
        reaches = []
        for texture in range(12):
            mask = paint_mask(anatomy, dataclasses.replace(
                SECTOR, transmurality=transmurality, texture=texture)) > 0
            reaches.append(anatomy.depth[mask].max())
            assert anatomy.depth[mask].min() < 0.1                      # from the endocardium
        assert max(reaches) <= transmurality * 1.5                      # waviness
        assert np.mean(reaches) == pytest.approx(min(transmurality, 1), abs=0.12)


def test_sector_is_solid(heart):
    """No island: what is scar at some depth is scar at the endocardium below it."""
    mask = paint_mask(heart().anatomy, SECTOR) > 0
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        assert ndimage.label(mask[z], np.ones((3, 3)))[1] == 1


def test_ellipsoid_lies_in_its_layer(heart):
    anatomy = heart(size=80).anatomy
    for depth in (1 / 6, 1 / 2, 5 / 6):
        mask = paint_mask(anatomy, dataclasses.replace(ELLIPSOID, depth=depth,
                                                       transmurality=0.3)) > 0
        assert np.abs(anatomy.depth[mask] - depth).max() <= 0.15 + 1e-6


@BOTH
def test_no_reflow_is_parted_from_the_rest_of_the_wall(heart, spec):
    anatomy = heart(size=80).anatomy
    for share in (0.1, 0.3, 0.5):
        mask = paint_mask(anatomy, dataclasses.replace(spec, no_reflow=share))
        core = mask == NO_REFLOW
        assert core.any()
        beside = ndimage.binary_dilation(core, ndimage.generate_binary_structure(2, 1)[None])
        assert not (beside & (mask == 0) & ~anatomy.cavity).any()
        plain = paint_mask(anatomy, dataclasses.replace(spec, no_reflow=0.0))
        assert np.array_equal(plain > 0, mask > 0)        # the core takes nothing else


def test_no_reflow_has_the_share_asked(heart):
    anatomy = heart(slices=9, size=96, spacing=(8.0, 0.9, 0.9)).anatomy
    spec = dataclasses.replace(SECTOR, extent=2.5, transmurality=0.9, slice=4, length=8)
    shares = [((mask == NO_REFLOW).sum() / (mask > 0).sum())
              for mask in (paint_mask(anatomy, dataclasses.replace(spec, no_reflow=s))
                           for s in (0.1, 0.2, 0.3))]
    assert np.allclose(shares, [0.1, 0.2, 0.3], atol=0.06) and np.all(np.diff(shares) > 0.04)


def test_burden_grows_with_what_is_asked(heart):
    anatomy = heart().anatomy
    for name, values in (("extent", (0.5, 1.5, 3.0)), ("transmurality", (0.2, 0.5, 1.0)),
                         ("length", (1, 3, 6))):
        sizes = [paint_mask(anatomy, dataclasses.replace(SECTOR, **{name: v})).sum()
                 for v in values]
        assert sizes[0] < sizes[1] < sizes[2], name


def test_mask_is_a_function_of_the_spec(heart):
    anatomy = heart().anatomy
    first, again = (paint_mask(anatomy, SECTOR) for _ in range(2))
    other = paint_mask(anatomy, dataclasses.replace(SECTOR, texture=1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("change", [
    {"shape": "star"}, {"extent": 0.0}, {"extent": 7.0}, {"transmurality": 0.0},
    {"transmurality": 1.2}, {"length": 0.0}, {"depth": -0.1}, {"no_reflow": 1.0},
    {"extent": float("nan")}])
def test_impossible_specs_are_refused(change):
    with pytest.raises(ValueError, match=r"shape must|needs"):
        dataclasses.replace(SECTOR, **change)
