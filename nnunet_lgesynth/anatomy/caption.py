"""A scar in words: "transmural enhancement in the inferior wall with no-reflow core".

The wall is named by the angle of the lesion's centre (six AHA walls), the layer by its depth. The
vocabulary is finite, so a small text encoder can be trained on it from scratch.
"""

from __future__ import annotations

import numpy as np

from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.scar import NO_REFLOW

__all__ = ["NO_ENHANCEMENT", "VOCABULARY", "caption"]

NO_ENHANCEMENT = "no enhancement"
# From the anterior RV insertion through the septum, 60 degrees each.
WALLS = ("anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral", "anterior")
LAYERS = ("subendocardial", "midwall", "subepicardial", "transmural")
VOCABULARY = tuple(sorted({*WALLS, *LAYERS,
                           *"enhancement in the wall with no reflow core".split()}))


def caption(mask: np.ndarray, anatomy: Anatomy) -> str:
    """Describe a request mask (Z, Y, X) or the part of it in some slices."""
    scar = (mask > 0) & np.isfinite(anatomy.depth)
    if not scar.any():
        return NO_ENHANCEMENT
    centre = np.angle(np.exp(1j * anatomy.angle[scar].astype(float)).mean()) % (2 * np.pi)
    wall = WALLS[int(centre / (2 * np.pi) * len(WALLS)) % len(WALLS)]
    text = f"{_layer(anatomy.depth[scar])} enhancement in the {wall} wall"
    return text + " with no reflow core" if (mask == NO_REFLOW).any() else text


def _layer(depth: np.ndarray) -> str:
    low, high = np.percentile(depth, [5, 95])
    if low < 1 / 3:
        return "transmural" if high > 3 / 4 else "subendocardial"
    return "subepicardial" if high > 3 / 4 and low > 1 / 2 else "midwall"
