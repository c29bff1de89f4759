"""Captions use a closed vocabulary and name the wall, the layer and the core."""

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.caption import LAYERS, NO_ENHANCEMENT, VOCABULARY, WALLS, caption


def of(h):
    return caption(np.isin(h.labels, (3, 4)) + (h.labels == 4).astype(np.uint8), h.anatomy)


@pytest.mark.parametrize("number, wall", enumerate(WALLS))
def test_walls_follow_each_other_from_the_anterior_insertion(heart, number, wall):
    first = number * np.pi / 3
    text = of(heart(scar=(first + 0.1, first + np.pi / 3 - 0.1, 0.5)))
    assert f"in the {wall} wall" in text and sum(w in text.split() for w in WALLS) == 1


def test_aha_order():
    assert WALLS == ("anteroseptal", "inferoseptal", "inferior", "inferolateral",
                     "anterolateral", "anterior")


def test_layers(heart):
    h = heart()
    depth, angle = h.anatomy.depth, h.anatomy.angle
    for (low, high), layer in {(0, 0.5): "subendocardial", (0, 1): "transmural",
                               (0.4, 0.7): "midwall", (0.6, 1): "subepicardial"}.items():
        mask = ((depth >= low) & (depth <= high) & (angle < 1)).astype(np.uint8)
        assert caption(mask, h.anatomy).split()[0] == layer


def test_every_word_is_in_the_vocabulary(heart):
    texts = {of(heart(scar=(a, a + 0.9, depth), core=core, size=80))
             for a in np.arange(0, 5.3, 0.9) for depth in (0.4, 1.0) for core in (False, True)}
    assert len(texts) > 10
    for text in [*texts, NO_ENHANCEMENT]:
        assert set(text.split()) <= set(VOCABULARY)
    assert set(WALLS) | set(LAYERS) <= set(VOCABULARY) and len(set(VOCABULARY)) == len(VOCABULARY)


def test_core_is_told(heart):
    assert "no reflow" in of(heart(scar=(1, 2, 0.8), core=True, size=80))
    assert "no reflow" not in of(heart(scar=(1, 2, 0.8), size=80))


def test_nothing_is_no_enhancement(heart):
    assert of(heart()) == NO_ENHANCEMENT
