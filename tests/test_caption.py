"""Captions use a closed vocabulary, say what the mask holds, and can be read back."""

import itertools

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.aha import NAMES, SEGMENTS
from nnunet_lgesynth.anatomy.caption import (
    LAYERS,
    LONGEST,
    NO_ENHANCEMENT,
    VOCABULARY,
    caption,
    caption_of,
    parse_caption,
)
from nnunet_lgesynth.anatomy.measure import measure
from nnunet_lgesynth.anatomy.scar import ScarSpec, paint_mask, paint_masks
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import UserError

EXAMPLE = ("subendocardial enhancement of 10 percent burden and 75 percent depth in the mid "
           "inferoseptal wall with no reflow core")


def of(h):
    return caption(np.isin(h.labels, (3, 4)) + (h.labels == 4).astype(np.uint8), h.anatomy)


@pytest.mark.parametrize("segment", SEGMENTS[:16])
def test_a_segment_is_named(heart, segment):
    anatomy = heart(slices=9, size=80).anatomy
    assert f"in the {NAMES[segment]} wall" in caption(
        (anatomy.segment == segment).astype(np.uint8), anatomy)


def test_layers(heart):
    h = heart(size=96, spacing=(10.0, 0.9, 0.9))
    depth, angle = h.anatomy.depth, h.anatomy.angle
    for (low, high), layer in {(0, 0.5): "subendocardial", (0, 1): "transmural",
                               (0.4, 0.7): "midwall", (0.6, 1): "subepicardial"}.items():
        mask = ((depth >= low) & (depth <= high) & (angle < 1)).astype(np.uint8)
        assert caption(mask, h.anatomy).split()[0] == layer


def test_burden_and_depth_are_told(heart):
    anatomy = heart(slices=9, size=80).anatomy
    for burden, depth in ((0.05, 0.5), (0.1, 0.75), (0.02, 1.0)):
        text = caption(paint_mask(anatomy, ScarSpec("sector", burden, depth - 0.1, (8, 9, 14))),
                       anatomy)
        assert f"of {burden:.0%} burden".replace("%", " percent") in text
        assert f"and {depth:.0%} depth".replace("%", " percent") in text


def test_one_slice_is_described_by_its_own_wall(heart):
    """A lesion of one slice takes a larger share of that slice than of the heart."""
    anatomy = heart(slices=9, size=80).anatomy
    mask = (anatomy.segment == 9) & (np.arange(9)[:, None, None] == 4)
    text = caption(mask.astype(np.uint8), anatomy, [4])
    share = mask.sum() / anatomy.wall[4].sum()
    assert share == pytest.approx(1 / 6, abs=0.02) and "15 percent burden" in text
    assert "2 percent burden" in caption(mask.astype(np.uint8), anatomy)
    assert caption(mask.astype(np.uint8), anatomy, [3]) == NO_ENHANCEMENT


def test_core_is_told(heart):
    assert "no reflow" in of(heart(scar=(1, 2, 0.8), core=True, size=80))
    assert "no reflow" not in of(heart(scar=(1, 2, 0.8), size=80))


def test_nothing_is_no_enhancement(heart):
    assert of(heart()) == NO_ENHANCEMENT == caption_of(())
    assert parse_caption(NO_ENHANCEMENT) == ()


def test_several_lesions_are_told_apart(heart):
    anatomy = heart(slices=9, size=80).anatomy
    specs = [ScarSpec("sector", 0.025, 0.6, (8,)), ScarSpec("subepicardial", 0.02, 0.5, (11,))]
    text = caption(paint_masks(anatomy, specs), anatomy)
    first, second = text.split(" plus ")
    assert "mid anteroseptal" in first and first.startswith("subendocardial")
    assert "mid inferolateral" in second and second.startswith("subepicardial")
    assert [s.segments for s in parse_caption(text)] == [(8,), (11,)]


def test_the_user_gets_what_a_caption_says(heart):
    """Caption -> spec -> mask -> caption."""
    anatomy = heart(slices=9, size=96, spacing=(10.0, 1.0, 1.0)).anatomy
    spec, = parse_caption("transmural enhancement of 10 percent burden and 100 percent depth in "
                          "the mid inferoseptal and mid inferior wall with no reflow core")
    mask = paint_mask(anatomy, spec)
    found = measure(mask, anatomy)
    assert found.segments == (9, 10) and found.no_reflow > 0
    assert found.burden == pytest.approx(0.1, abs=0.001)
    assert caption(mask, anatomy) == caption_of([spec])


# "transmural" is the last quarter, and of the other layers only patchy foci reach it
DEPTHS = [(layer, depth) for layer, depth in itertools.product(LAYERS, (25, 50, 75, 100))
          if layer == "patchy" or (layer == "transmural") == (depth == 100)]


@pytest.mark.parametrize("layer, depth", DEPTHS)
@pytest.mark.parametrize("burden, places, core", itertools.product(
    (1, 15, 100), (("apex",), ("mid inferior", "apical septal")), (False, True)))
def test_caption_to_spec_to_caption_is_stable(layer, burden, depth, places, core):
    text = (f"{layer} enhancement of {burden} percent burden and {depth} percent depth in the "
            f"{' and '.join(places)} wall" + " with no reflow core" * core)
    specs = parse_caption(text)
    assert caption_of(specs) == text and parse_caption(caption_of(specs)) == specs
    assert len(text.split()) <= LONGEST and set(text.split()) <= set(VOCABULARY)


def test_every_word_of_a_mask_is_in_the_vocabulary(heart):
    texts = {of(heart(scar=(a, a + 0.9, depth), core=core, size=80))
             for a in np.arange(0, 5.3, 0.9) for depth in (0.4, 1.0) for core in (False, True)}
    assert len(texts) > 10
    for text in texts:
        assert set(text.split()) <= set(VOCABULARY) and len(text.split()) <= LONGEST
        assert caption_of(parse_caption(text)) == text


@pytest.mark.parametrize("change", [
    ("mid inferoseptal", "mid septal"), ("subendocardial", "endocardial"), ("10", "ten"),
    ("10", "6"), ("10", "0"), ("75", "60"),
    (" wall", ""), ("enhancement of", "scar of")])
def test_what_is_no_caption_is_refused_with_an_example(change):
    with pytest.raises(UserError, match="is no caption; write, for example"):
        parse_caption(EXAMPLE.replace(*change))


@pytest.mark.parametrize("text", [
    "transmural enhancement of 10 percent burden and 25 percent depth in the mid inferior wall",
    "midwall enhancement of 10 percent burden and 100 percent depth in the mid inferior wall"])
def test_a_caption_that_contradicts_itself_is_refused(text):
    with pytest.raises(UserError, match="contradicts itself: it would be"):
        parse_caption(text)


def test_a_place_is_needed():
    with pytest.raises(UserError, match="is no caption"):
        parse_caption("transmural enhancement of 10 percent burden")
    with pytest.raises(UserError, match="named by its mask"):
        caption_of([ScarSpec("sector", 0.1, 0.5, angle=1, extent=1, slice=2, length=3)])


@pytest.mark.parametrize("shape, layer", [
    ("sector", "subendocardial"), ("midwall", "midwall"), ("subepicardial", "subepicardial")])
@pytest.mark.parametrize("size, spacing", [(64, 1.4), (48, 1.9), (96, 0.9)])
def test_a_mask_is_called_by_the_layer_that_was_asked_for(heart, shape, layer, size, spacing):
    """As stack and as single slices, at every transmurality that the shape allows."""
    anatomy = heart(slices=6, size=size, spacing=(10.0, spacing, spacing)).anatomy
    for depth in np.arange(0.25, SHAPES[shape].deepest + 1e-9, 0.1):
        spec = ScarSpec(shape, 0.02, min(float(depth), 0.7), (8, 9))
        mask = paint_mask(anatomy, spec)
        texts = [caption(mask, anatomy, z) for z in (None, *([z] for z in np.flatnonzero(
            mask.any(axis=(1, 2)))))]
        assert texts[0].split()[0] == layer == caption_of([spec]).split()[0]
        assert np.mean([t.split()[0] == layer for t in texts]) >= 2 / 3


def test_many_small_parts_are_patchy(heart):
    anatomy = heart(slices=9, size=96, spacing=(10.0, 1.0, 1.0)).anatomy
    texts = [caption(paint_mask(anatomy, ScarSpec(
        "patchy", 0.04, angle=1.0, extent=4.0, slice=4, length=9, texture=t)), anatomy)
        for t in range(10)]
    assert np.mean([t.startswith("patchy") for t in texts]) > 0.7


def test_a_full_wall_of_one_pixel_is_transmural(heart):
    h = heart(spacing=(10.0, 6.0, 6.0), size=24, slices=3)
    h.labels[:] = 0
    h.labels[:, 8:15, 8:15] = 2
    h.labels[:, 9:14, 9:14] = 1
    anatomy = h.anatomy
    text = caption((anatomy.segment == 8).astype(np.uint8), anatomy)
    assert text.startswith("transmural") and caption_of(parse_caption(text)) == text
