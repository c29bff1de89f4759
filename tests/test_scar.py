"""A request is met to the voxel, stays where it may be, or is refused with what could be."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from scipy import ndimage

from nnunet_lgesynth.anatomy.measure import measure
from nnunet_lgesynth.anatomy.scar import (
    NO_REFLOW,
    SCAR,
    ScarSpec,
    Unreachable,
    paint_mask,
    paint_masks,
)
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import UserError

PLACE = {"angle": 1.0, "extent": 1.6, "slice": 2, "length": 4}
SECTOR = ScarSpec("sector", 0.08, 0.6, **PLACE)
SPECS = [SECTOR, ScarSpec("ellipsoid", 0.08, 0.5, **PLACE), ScarSpec("midwall", 0.06, 0.4, **PLACE),
         ScarSpec("subepicardial", 0.08, 0.5, **PLACE), ScarSpec("patchy", 0.08, **PLACE),
         ScarSpec("smile", 0.08, segments=(8, 9, 14), shares=(0.3, 0.9, 0.5))]
EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.shape)


@EVERY
def test_mask_is_what_was_asked(heart, spec):
    anatomy = heart(spacing=(10.0, 1.2, 1.6), size=72).anatomy
    half_pixel = float(np.nanmedian(anatomy.half_pixel))
    for texture in range(5):
        mask = paint_mask(anatomy, dataclasses.replace(spec, texture=texture, no_reflow=0.2))
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, SCAR, NO_REFLOW}
        assert not (mask > 0)[~anatomy.wall].any()
        assert abs((mask > 0).sum() - spec.burden * anatomy.wall.sum()) <= 0.5
        found = measure(mask, anatomy)
        if spec.transmurality is not None:
            assert found.transmurality == pytest.approx(spec.transmurality,
                                                        abs=max(0.05, half_pixel))
        if spec.segments:
            assert found.segments == spec.segments


@EVERY
def test_only_paintable_slices_are_touched(heart, spec):
    h = heart(scar=(3.0, 4.0, 0.5), scar_slices=slice(1, 2), slices=6)
    h.labels[3][h.labels[3] == 1] = 0                                 # no cavity
    mask = paint_mask(h.anatomy, dataclasses.replace(spec, burden=0.04))
    assert not (mask > 0).any(axis=(1, 2))[[1, 3]].any() and mask.any()


@pytest.mark.parametrize("spec", SPECS[:4], ids=lambda s: s.shape)
def test_a_lesion_lies_where_it_was_placed(heart, spec):
    anatomy = heart(slices=9, size=80).anatomy
    mask = paint_mask(anatomy, dataclasses.replace(spec, slice=4, length=5, burden=0.03)) > 0
    off = np.abs(np.angle(np.exp(1j * (anatomy.angle - spec.angle))))[mask]
    touched = np.flatnonzero(mask.any(axis=(1, 2)))
    assert off.max() < 1.0 and 4 in touched and set(touched) <= {2, 3, 4, 5, 6}


def test_layers(heart):
    """Where each shape lies in the wall, at a transmurality of 0.4."""
    anatomy = heart(slices=3, size=96, spacing=(10.0, 1.0, 1.0)).anatomy
    for shape, low, high in (("sector", 0.0, 0.4), ("midwall", 0.3, 0.7),
                             ("subepicardial", 0.6, 1.0)):
        mask = paint_mask(anatomy, ScarSpec(shape, 0.03, 0.4, (8, 9))) > 0
        inner, outer = np.percentile(anatomy.depth[mask], [5, 95])
        assert (inner, outer) == pytest.approx((low, high), abs=0.1), shape


@pytest.mark.parametrize("depth", [1 / 6, 1 / 2, 5 / 6])
def test_ellipsoid_lies_around_its_depth(heart, depth):
    anatomy = heart(slices=3, size=96, spacing=(10.0, 1.0, 1.0)).anatomy
    mask = paint_mask(anatomy, ScarSpec("ellipsoid", 0.02, 0.3, (8, 9), depth=depth)) > 0
    assert np.median(anatomy.depth[mask]) == pytest.approx(depth, abs=0.06)


def test_sector_is_solid_and_begins_at_the_endocardium(heart):
    anatomy = heart().anatomy
    mask = paint_mask(anatomy, SECTOR) > 0
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        assert ndimage.label(mask[z], np.ones((3, 3)))[1] == 1
        assert anatomy.depth[z][mask[z]].min() < 0.1


def test_a_lesion_is_coherent_over_slices(heart):
    """Each slice of a sector overlaps the next one, and both ends are smaller than the middle."""
    anatomy = heart(slices=9, size=80).anatomy
    mask = paint_mask(anatomy, dataclasses.replace(SECTOR, slice=4, length=8)) > 0
    sizes = mask.sum(axis=(1, 2))[mask.any(axis=(1, 2))]
    assert len(sizes) >= 5 and sizes[0] < sizes[len(sizes) // 2] > sizes[-1]
    for a, b in itertools.pairwise(mask[2:7]):
        assert (a & b).sum() > 0.6 * min(a.sum(), b.sum())


def test_a_profile_turns_and_narrows_the_lesion(heart):
    anatomy = heart(slices=9, size=80).anatomy
    turning = tuple((t, w, 1.0) for t, w in zip((-0.6, -0.3, 0.0, 0.3, 0.6),
                                                (1.5, 1.2, 1.0, 0.6, 0.3)))
    mask = paint_mask(anatomy, ScarSpec("sector", 0.1, 0.7, angle=2.0, extent=1.5, slice=4,
                                        length=9, profile=turning)) > 0
    middles, sizes = zip(*((np.angle(np.exp(1j * anatomy.angle[z][mask[z]]).mean()),
                            mask[z].sum()) for z in range(9)))
    assert middles[0] < 1.6 < 2.4 < middles[-1] and sizes[0] > 2 * sizes[-1]


def test_smile_fills_each_segment_by_its_share(heart):
    anatomy = heart(slices=9, size=96).anatomy
    shares = (0.2, 0.8, 0.5)
    sizes = [(anatomy.segment == s).sum() for s in (8, 9, 14)]
    burden = np.dot(shares, sizes) / anatomy.wall.sum()
    mask = paint_mask(anatomy, ScarSpec("smile", burden, segments=(8, 9, 14), shares=shares)) > 0
    for segment, share, size in zip((8, 9, 14), shares, sizes):
        assert mask[anatomy.segment == segment].sum() == pytest.approx(share * size, abs=1.5)


def test_blobs_are_many_and_fresh(heart):
    anatomy = heart(slices=9, size=96).anatomy
    specs = [dataclasses.replace(SPECS[4], burden=0.04, extent=3.0, length=9, slice=4, texture=t)
             for t in range(6)]
    masks = [paint_mask(anatomy, s) > 0 for s in specs]
    assert np.mean([ndimage.label(m, np.ones((3, 3, 3)))[1] for m in masks]) > 3
    overlap = (masks[0] & masks[1]).sum() / masks[0].sum()
    assert overlap < 0.7


def test_the_cap_can_be_asked_for(heart):
    h = heart(slices=7)
    h.labels[0][h.labels[0] == 1] = 2
    mask = paint_mask(h.anatomy, ScarSpec("smile", 0.05, segments=(16, 17), shares=(0.2, 0.6)))
    assert (mask[0] > 0).any() and measure(mask, h.anatomy).segments == (16, 17)


@pytest.mark.parametrize("spec", SPECS[:2], ids=lambda s: s.shape)
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


def test_no_reflow_has_the_share_asked_where_there_is_room(heart):
    anatomy = heart(slices=9, size=96, spacing=(8.0, 0.9, 0.9)).anatomy
    spec = ScarSpec("sector", 0.2, 0.9, angle=1.0, extent=2.5, slice=4, length=8)
    for asked in (0.1, 0.2, 0.3):
        found = measure(paint_mask(anatomy, dataclasses.replace(spec, no_reflow=asked)), anatomy)
        assert found.no_reflow == pytest.approx(asked, abs=0.002)
    thin = dataclasses.replace(spec, transmurality=0.2, burden=0.03, no_reflow=0.9)
    assert measure(paint_mask(anatomy, thin), anatomy).no_reflow < 0.8


def test_lesions_share_the_wall(heart):
    anatomy = heart(size=80).anatomy
    specs = [SECTOR, dataclasses.replace(SECTOR, burden=0.05, angle=2.0)]
    alone = [paint_mask(anatomy, s) > 0 for s in specs]
    assert (alone[0] & alone[1]).any()
    mask = paint_masks(anatomy, specs) > 0
    assert mask.sum() == pytest.approx(0.13 * anatomy.wall.sum(), abs=1)


def test_mask_is_a_function_of_the_spec(heart):
    anatomy = heart().anatomy
    first, again = (paint_mask(anatomy, SECTOR) for _ in range(2))
    other = paint_mask(anatomy, dataclasses.replace(SECTOR, texture=1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@EVERY
def test_spec_survives_json(spec):
    assert ScarSpec.from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_too_large_a_burden_is_refused_with_the_range(heart):
    anatomy = heart(slices=9, size=96).anatomy
    spec = ScarSpec("sector", 0.2, 0.5, (8, 9))
    with pytest.raises(Unreachable, match=r"all of segments 8, 9, which can") as refused:
        paint_mask(anatomy, spec)
    low, high = (float(v) / 100 for v in re.search(r"hold ([\d.]+)% to ([\d.]+)%",
                                                   str(refused.value)).groups())
    for burden in (high, 1.05 * low):
        paint_mask(anatomy, dataclasses.replace(spec, burden=burden))
    capacity = (np.isin(anatomy.segment, (8, 9)) & (anatomy.depth <= 0.5)).sum()
    assert high == pytest.approx(capacity / anatomy.wall.sum(), rel=0.2)


def test_too_small_a_burden_for_the_segments_is_refused(heart):
    with pytest.raises(Unreachable, match="which can hold"):
        paint_mask(heart(slices=9).anatomy, ScarSpec("sector", 0.002, 0.8, tuple(range(1, 13))))


def test_segments_the_stack_lacks_are_named(heart):
    anatomy = heart(slices=1).anatomy                     # a mid slice alone
    with pytest.raises(Unreachable, match=r"does not cover AHA segment 2 \(basal anteroseptal\), "
                                          r"17 \(apex\).*it has 7, 8, 9, 10, 11, 12"):
        paint_mask(anatomy, ScarSpec("sector", 0.02, 0.5, (2, 8, 17)))
    h = heart(scar=(1.0, 1.5, 0.5), scar_slices=slice(0, 1), slices=3)
    with pytest.raises(Unreachable, match="has a real scar in every slice of AHA segment 14"):
        paint_mask(h.anatomy, ScarSpec("sector", 0.02, 0.5, (14,)))


@pytest.mark.parametrize("change, words", [
    ({"shape": "star"}, "shape must be one of"), ({"extent": 0.0}, "scar's extent must lie"),
    ({"extent": 7.0}, "scar's extent must lie above 0 and be at most 6.28319, not 7"),
    ({"transmurality": 0.0}, "transmurality must"), ({"transmurality": 1.2}, "transmurality must"),
    ({"length": 0.0}, "length must"), ({"depth": -0.1}, "depth must"),
    ({"no_reflow": 1.0}, "no_reflow must"), ({"burden": 0.0}, "burden must"),
    ({"extent": float("nan")}, "extent must"), ({"slice": float("nan")}, "slice must"),
    ({"segments": (0, 18)}, r"numbered 1 to 17, not \[0, 18\]"),
    ({"angle": None}, "needs AHA segments, or all of"), ({"transmurality": None}, "needs a trans"),
    ({"shares": (0.5,)}, "one value a segment"),
    ({"segments": (8, 9), "shares": (-1, 1)}, "none below 0"),
    ({"segments": (8, 9), "shares": (0, 0)}, "none below 0 and one above"),
    ({"profile": ((0, 1, 1),)}, "at least 2 rows"), ({"profile": ((0, 1, 1), (0, 0, 1))}, "rows"),
    ({"shape": "midwall", "transmurality": 0.9}, "spares a part of the wall")])
def test_contradictions_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(SECTOR, **change)


def test_shares_stay_with_their_segments():
    spec = ScarSpec("smile", 0.05, segments=(9, 8), shares=(0.9, 0.1))
    assert (spec.segments, spec.shares) == ((8, 9), (0.1, 0.9))


def test_every_shape_is_tried_here():
    assert {s.shape for s in SPECS} == set(SHAPES)
