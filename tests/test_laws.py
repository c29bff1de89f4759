"""Laws of anatomy, measure and painting, on hearts of many forms."""

import dataclasses
import re

import numpy as np
import pytest
from hearts import ROLES, forms
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nnunet_lgesynth.anatomy.heart import ORDERS
from nnunet_lgesynth.anatomy.measure import Wall, measure
from nnunet_lgesynth.anatomy.priors import NON_ISCHAEMIC, PRIORS, Asked, Prior, ScarRecord
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, ScarSpec, Unreachable, paint_mask
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import UserError

CIRCLES = (2, 3, 4, 5, 6, 1), (8, 9, 10, 11, 12, 7), (14, 15, 16, 13)     # as the angle grows
UNKNOWN = 99
RECORDS = (
    ScarRecord(1.2, 1.9, 0.62, 0.6, 0.4, 0.12, 0.15, 0.7, 0.2, 0.25,
               ((0.2, 0.7, 0.8), (0.1, 1.0, 1.1), (0, 1.2, 1.2), (0, 1.1, 1.0), (-0.1, 0.8, 0.7))),
    ScarRecord(4.0, 1.1, 0.45, 0.3, 0.7, 0.03, 0.0, 0.5, None, 0.3))


def law(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True,
                    phases=(Phase.explicit, Phase.generate))      # shrinking hearts takes minutes


@st.composite
def requests(draw, anatomy):
    """For segments of this heart, or placed freely."""
    name = draw(st.sampled_from(sorted(SHAPES)))
    shape = SHAPES[name]
    depth = draw(st.floats(0.2, shape.deepest))
    spec = {"shape": name, "depth": draw(st.floats(0.1, 0.9)), "texture": draw(st.integers(0, 99)),
            "no_reflow": draw(st.sampled_from((0.0, 0.3))),
            "transmurality": None if shape.blobs and draw(st.booleans()) else depth}
    room = anatomy.segment[anatomy.paintable]
    if draw(st.booleans()):
        segments = draw(st.sets(st.sampled_from(np.unique(room[room > 0]).tolist()), min_size=1,
                                max_size=3))
        room, spec["segments"] = room[np.isin(room, list(segments))], tuple(segments)
    else:
        spec |= {"angle": draw(st.floats(0, 6.28)), "extent": draw(st.floats(0.5, 4)),
                 "slice": draw(st.floats(0, len(anatomy.kinds) - 1)),
                 "length": draw(st.floats(1, len(anatomy.kinds)))}
        if draw(st.booleans()):
            spec["profile"] = RECORDS[0].profile
    share = draw(st.floats(0.02, 0.8)) * (room > 0).sum() / anatomy.myocardium.sum()
    return ScarSpec(burden=float(share), **spec)


def painted(anatomy, spec):
    """The mask, or why there is none."""
    try:
        return paint_mask(anatomy, spec)
    except UserError as refusal:
        assert isinstance(refusal, Unreachable)
        return str(refusal)


def tolerance(anatomy, mask):
    """Of the transmurality: 0.05, or half a pixel where the wall is thin."""
    return max(0.05, float(np.median(Wall.of(anatomy, mask > 0).half_pixel)))


def blur(anatomy, mask):
    """What the grid alone may move a transmurality by: a pixel, since the finer grid's voxels
    fall into neighbouring sectors."""
    return max(0.05, 2 * float(Wall.of(anatomy, mask > 0).half_pixel.mean()))


def assert_same_anatomy(found, expected, turn):
    """`turn` is what was done to the stack."""
    assert np.array_equal(found.segment, turn(expected.segment))
    assert np.allclose(found.depth, turn(expected.depth), atol=1e-5, equal_nan=True)
    offset = np.angle(np.exp(1j * (found.angle - turn(expected.angle))))
    assert np.nanmax(np.abs(offset)) < 1e-5


def turned_table(degrees):
    """New segment by old one after the angle grew; UNKNOWN where that cuts segments."""
    table = np.full(18, UNKNOWN)
    for circle in CIRCLES:
        steps = degrees * len(circle) / 360
        if steps == round(steps):
            table[list(circle)] = np.roll(circle, -round(steps))
    table[[0, 17]] = 0, 17
    return table


def assert_permuted(found, expected, degrees):
    turned = turned_table(degrees)[expected]
    assert (found == turned)[turned != UNKNOWN].all()


@law(40)
@given(forms(scarred=True))
def test_segments_tile_the_myocardium(form):
    anatomy = form.describe()
    assert anatomy.covered.all()
    assert np.array_equal(anatomy.segment > 0, anatomy.myocardium)
    assert anatomy.segment.max() <= 17
    levels = np.where(anatomy.segment == 17, 18, anatomy.segment - 1) // 6
    assert all(len(np.unique(level[wall])) == 1 for level, wall in zip(levels, anatomy.wall))


@law(25)
@given(forms(), st.sampled_from((60, 90, 120, 180, -60)))
def test_a_turned_zero_direction_permutes_the_segments(form, degrees):
    by = np.deg2rad(degrees) * (1 if form.mirrored else -1)
    turned = form.describe(form.labels(), frame=form.but(zero=form.zero - by).frame)
    assert_permuted(turned.segment, form.describe().segment, degrees)


@law(25)
@given(forms(), st.integers(1, 3))
def test_a_turned_heart_permutes_its_segments_unless_the_frame_turns_along(form, turns):
    def turn(stack):
        return np.rot90(stack, turns, axes=(1, 2))
    labels, anatomy = turn(form.labels()), form.describe()
    spacing = (form.spacing[0], *form.spacing[1:][::(-1) ** turns])
    kept = form.describe(labels, spacing=spacing)
    assert_permuted(kept.segment, turn(anatomy.segment), (-90 if form.mirrored else 90) * turns)
    along = form.describe(labels, spacing=spacing,
                          frame=form.but(zero=form.zero - turns * np.pi / 2).frame)
    assert_same_anatomy(along, anatomy, turn)


@law(40)
@given(forms(scarred=True), st.data())
def test_a_mirrored_stack_gets_the_mirrored_answer(form, data):
    def turn(stack):
        return stack if isinstance(stack, str) else stack[:, :, ::-1]
    anatomy = form.describe()
    mirrored = form.describe(turn(form.labels()),
                             frame=form.but(zero=-form.zero, mirrored=not form.mirrored).frame)
    assert_same_anatomy(mirrored, anatomy, turn)
    spec = data.draw(requests(anatomy))
    assert np.array_equal(painted(mirrored, spec), turn(painted(anatomy, spec)))


@law(40)
@given(forms(scarred=True), st.data())
def test_a_stack_upside_down_gets_the_answer_upside_down(form, data):
    def turn(stack):
        return stack if isinstance(stack, str) else stack[::-1]
    anatomy = form.describe()
    frame = dataclasses.replace(form.frame, slices=ORDERS[1 - ORDERS.index(form.order)])
    flipped = form.describe(turn(form.labels()), frame=frame)
    assert_same_anatomy(flipped, anatomy, turn)
    assert np.allclose(flipped.level, turn(anatomy.level))
    spec = other = data.draw(requests(anatomy))
    if spec.slice is not None:
        other = dataclasses.replace(spec, slice=form.slices - 1 - spec.slice)
    assert np.array_equal(painted(flipped, other), turn(painted(anatomy, spec)))


@law(25)
@given(forms(scarred=True), st.sampled_from((0.25, 0.5, 2.0, 8.0)), st.data())
def test_the_unit_of_length_changes_nothing(form, factor, data):
    anatomy = form.describe()
    scaled = form.describe(spacing=tuple(s * factor for s in form.spacing))
    assert_same_anatomy(scaled, anatomy, lambda stack: stack)
    assert scaled.axis == pytest.approx(anatomy.axis)
    spec = data.draw(requests(anatomy))
    assert np.array_equal(painted(scaled, spec), painted(anatomy, spec))


@law(25)
@given(forms(slices=(4, 7)))
def test_the_long_axis_leans_as_the_heart_in_millimetres(form):
    form = form.but(cap=False)
    axis = np.array([form.spacing[0] * (-1) ** (form.order == "base_to_apex"), *form.tilt])
    assert form.describe().axis == pytest.approx(axis / np.linalg.norm(axis), abs=0.04)


@law(25)
@given(forms(), st.data())
def test_a_request_measures_the_same_at_twice_the_resolution(form, data):
    fine = form.describe(form.labels().repeat(2, 1).repeat(2, 2),
                         spacing=(form.spacing[0], *(s / 2 for s in form.spacing[1:])))
    coarse = form.describe()
    spec = data.draw(requests(coarse))
    masks = painted(coarse, spec), painted(fine, spec)
    if isinstance(masks[0], str) or (masks[0] > 0).sum() < 50:     # a sector holds some voxels
        return
    found, same = measure(masks[0], coarse), masks[0].repeat(2, 1).repeat(2, 2)
    assert measure(same, fine).burden == pytest.approx(found.burden)
    if spec.transmurality is not None:      # else blobs are loose, and so is what they span
        assert measure(same, fine).transmurality == pytest.approx(found.transmurality,
                                                                  abs=blur(coarse, masks[0]))
    if isinstance(masks[1], str):
        return
    other = measure(masks[1], fine)
    assert other.burden == pytest.approx(found.burden, rel=0.02)
    assert spec.transmurality is None or other.transmurality == pytest.approx(
        spec.transmurality, abs=tolerance(fine, masks[1]))


@law(12)
@given(forms(slices=(5, 7)), st.floats(0, 360), st.floats(80, 180), st.floats(0.4, 1))
def test_a_lesion_measures_the_same_at_twice_the_resolution(form, start, width, reach):
    """Of so many pixels that the grid alone moves it less."""
    form = form.but(spacing=(form.spacing[0], 0.8, 0.9), wall=max(form.wall, 9.0), cap=False)

    def lesion(z, depth, angle):
        return (depth <= reach) & (np.mod(np.rad2deg(angle) - start, 360) < width)
    found = []
    for factor in (1, 2):
        finer = form.but(spacing=(form.spacing[0], *(s / factor for s in form.spacing[1:])))
        labels = finer.labels(lesion)
        anatomy, mask = finer.describe(labels), labels == ROLES.scar
        found.append((measure(mask, anatomy), blur(anatomy, mask)))
    (coarse, slack), (fine, _) = found
    assert fine.burden == pytest.approx(coarse.burden, rel=0.02)
    assert fine.transmurality == pytest.approx(coarse.transmurality, abs=slack)


@law(150)
@given(forms(scarred=True), st.data())
def test_a_request_is_met_or_refused_with_what_is_reachable(form, data):
    anatomy = form.describe()
    spec = data.draw(requests(anatomy))
    mask = painted(anatomy, spec)
    if isinstance(mask, str):
        return assert_reachable_as_told(anatomy, spec, mask)
    found, voxel = measure(mask, anatomy), 1 / anatomy.myocardium.sum()
    assert not (mask > 0)[~anatomy.wall].any() and not mask[anatomy.scarred].any()
    assert found.burden == pytest.approx(spec.burden, abs=max(voxel, 0.01 * spec.burden))
    assert found.segments == (spec.segments or found.segments)
    assert spec.transmurality is None or found.transmurality == pytest.approx(
        spec.transmurality, abs=tolerance(anatomy, mask))
    assert found.no_reflow <= spec.no_reflow + 1 / (mask > 0).sum()


def assert_reachable_as_told(anatomy, spec, refusal):
    """Every burden that the refusal names is painted."""
    named = re.search(r"can hold ([\d.]+)% to ([\d.]+)% \(nearest: .+\)", refusal)
    assert named or "nor of another burden" in refusal
    for percent in map(float, re.findall(r"[\d.]+(?=%)", named[0] if named else "")):
        assert float(named[1]) <= percent <= float(named[2])
        near = dataclasses.replace(spec, burden=percent / 100)
        assert not isinstance(painted(anatomy, near), str), (refusal, percent)


def drawn(prior, anatomy, seed, sample):
    spec = prior.draw(anatomy, np.random.default_rng((seed, sample)))
    return spec, paint_mask(anatomy, spec)


@law(4)
@given(forms(scarred=True, slices=(5, 7)), st.permutations(range(4)), st.integers(0, 99))
def test_a_sample_is_the_same_in_any_order_and_batch(form, order, seed):
    for name in ("sector", "smile"):
        prior = Prior(name, RECORDS)
        together = {k: drawn(prior, form.describe(), seed, k) for k in order}
        anatomy = form.describe()
        for k in range(4):
            spec, mask = drawn(prior, anatomy, seed, k)
            assert spec == together[k][0] and np.array_equal(mask, together[k][1])


@pytest.mark.parametrize("name", PRIORS)
@law(6)
@given(form=forms(scarred=True, slices=(5, 7)), seed=st.integers(0, 99))
def test_every_prior_draws_what_can_be_painted(name, form, seed):
    assert drawn(Prior(name, RECORDS), form.describe(), seed, 0)[1].any()


@pytest.mark.parametrize("name", PRIORS)
@law(6)
@given(form=forms(slices=(5, 7)), seed=st.integers(0, 99), data=st.data())
def test_a_prior_keeps_to_what_is_asked(name, form, seed, data):
    anatomy = form.describe()
    pairs = [pair for pair in ((2, 3), (8, 9), (10, 11), (6, 12))
             if set(pair) <= set(np.unique(anatomy.segment))]
    asked = Asked(segments=data.draw(st.sampled_from(pairs)), burden=(0.01, 0.03),
                  transmurality=(0.35, 0.6),
                  no_reflow=(0.0, 0.0) if name in NON_ISCHAEMIC else (0.05, 0.2))
    spec = Prior(name, RECORDS).draw(anatomy, np.random.default_rng(seed), asked)
    mask = paint_mask(anatomy, spec)
    found = measure(mask, anatomy, NO_REFLOW)
    assert found.segments == spec.segments == asked.segments
    slacks = {"burden": 1 / anatomy.myocardium.sum(), "no_reflow": 1 / (mask > 0).sum(),
              "transmurality": tolerance(anatomy, mask)}
    for part, slack in slacks.items():
        low, high = getattr(asked, part)
        assert low <= getattr(spec, part) <= high and getattr(found, part) <= high + slack
        assert part == "no_reflow" or getattr(found, part) >= low - slack
