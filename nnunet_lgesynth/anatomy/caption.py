"""A scar in words, and words back to a request.

    caption  = "no enhancement" | lesion { " plus " lesion }
    lesion   = layer " enhancement of " B " percent burden" [ " and " D " percent depth" ]
               " in the " segment { " and " segment } " wall" [ " with no reflow core" ]
    layer    = "subendocardial" | "transmural" | "midwall" | "subepicardial" | "patchy"
    segment  = an AHA segment's name: "basal anterior" ... "apical lateral" | "apex"

for example "subendocardial enhancement of 10 percent burden and 75 percent depth in the mid
inferoseptal wall with no reflow core". B is the nearest of `BURDENS`, the lesion's share of the
myocardium it was looked for in; D of `QUARTERS`, the quarter of the wall that its transmurality
falls in, as in clinical reading (Kim et al., N Engl J Med 2000;343:1445). A mask's layer is that of
the border it touches: "transmural" is the last quarter, "subendocardial" and "subepicardial" touch
one border, "midwall" neither; "patchy" are several parts of which none is most of the scar. Named
are the segments that hold most of it. The language is finite, so a small text encoder can be
trained on it from scratch and embeddings can be kept. `parse_caption` reads what `caption` and
`caption_of` write, and `caption_of(parse_caption(text)) == text`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from nnunet_lgesynth.anatomy.aha import NAMES, number_of
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.measure import Wall
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, ScarSpec
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import UserError

__all__ = ["LONGEST", "NO_ENHANCEMENT", "VOCABULARY", "caption", "caption_of", "parse_caption"]

NO_ENHANCEMENT = "no enhancement"
LAYERS = ("subendocardial", "transmural", "midwall", "subepicardial", "patchy")
BURDENS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 70, 100)      # percent
QUARTERS = (25, 50, 75, 100)
MOST_LESIONS, MOST_SEGMENTS = 2, 4
LEAST_SHARE = 0.1             # of the scar, a lesion; of the lesion, a segment
GAP = 0.15                    # of the wall: nearer than that a scar touches its border
EVEN = 0.05                   # gaps that differ by less name no border
PATCHES, MOST_OF_IT = 3, 0.6  # parts of a patchy scar, and what the largest may hold of it
CORE = 0.2                    # no-reflow's share where a caption asks for it
_PLUS, _NO_REFLOW = " plus ", " with no reflow core"
VOCABULARY = tuple(sorted({
    *LAYERS, *map(str, BURDENS), *map(str, QUARTERS), *" ".join(NAMES.values()).split(),
    *f"enhancement of percent burden and depth in the wall{_PLUS}{_NO_REFLOW}".split(),
    *NO_ENHANCEMENT.split()}))
LONGEST = MOST_LESIONS * (16 + 3 * MOST_SEGMENTS) + 1          # words
_LESION = re.compile(
    rf"(?P<layer>{'|'.join(LAYERS)}) enhancement of (?P<burden>{'|'.join(map(str, BURDENS))}) "
    rf"percent burden(?: and (?P<depth>{'|'.join(map(str, QUARTERS))}) percent depth)? in the "
    rf"(?P<place>[a-z ]+?) wall(?P<core>{_NO_REFLOW})?")


def caption(mask: np.ndarray, anatomy: Anatomy, slices: Sequence[int] | None = None) -> str:
    """Describe a request mask (Z, Y, X), or what it has in some slices alone."""
    chosen = anatomy.covered.copy()
    if slices is not None:
        chosen &= np.isin(np.arange(len(chosen)), slices)
    mask = np.where(chosen[:, None, None] & anatomy.myocardium, mask, 0)
    if not mask.any():
        return NO_ENHANCEMENT
    total = int(anatomy.myocardium[chosen].sum())
    return _PLUS.join(_describe(lesion, total, anatomy) for lesion in _lesions(mask))


def caption_of(specs: Sequence[ScarSpec]) -> str:
    """Describe requests for segments; the burden is that of the whole myocardium."""
    if not all(s.segments for s in specs):
        raise UserError("A scar that is placed by angle and slice is named by its mask: use "
                        "caption(mask, anatomy).")
    return _PLUS.join(_text(_layer_of(s), s.burden, s.transmurality, s.segments, s.no_reflow > 0)
                      for s in specs) or NO_ENHANCEMENT


def parse_caption(text: str) -> tuple[ScarSpec, ...]:
    """The requests that a caption describes; `UserError` where it is none."""
    if text.strip() == NO_ENHANCEMENT:
        return ()
    specs = tuple(_parsed(part, text) for part in text.strip().split(_PLUS))
    if " depth" in text and caption_of(specs) != text.strip():
        raise UserError(f"{text!r} contradicts itself: it would be {caption_of(specs)!r}.")
    return specs


def _parsed(part: str, text: str) -> ScarSpec:
    found = _LESION.fullmatch(part)
    segments = [number_of(n) for n in found["place"].split(" and ")] if found else [None]
    if None in segments:
        raise UserError(f"{text!r} is no caption; write, for example: subendocardial enhancement "
                        "of 10 percent burden and 75 percent depth in the mid inferoseptal wall "
                        "with no reflow core")
    layer = found["layer"]
    shape = "sector" if layer in ("subendocardial", "transmural") else layer
    depth = None if found["depth"] is None else int(found["depth"]) / 100
    if depth is None and not SHAPES[shape].blobs:
        depth = 1.0 if layer == "transmural" else 0.5
    return ScarSpec(shape, int(found["burden"]) / 100,
                    None if depth is None else min(depth, SHAPES[shape].deepest),
                    tuple(segments), no_reflow=CORE if found["core"] else 0.0)


def _lesions(mask: np.ndarray) -> list[np.ndarray]:
    """The largest connected parts of the mask, largest first; a patchy scar is one lesion."""
    parts, n = ndimage.label(mask > 0, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=n + 1)[1:]
    if _scattered(sizes):
        return [mask]
    order = np.argsort(-sizes, kind="stable")[:MOST_LESIONS]
    return [np.where(parts == k + 1, mask, 0) for k in order
            if sizes[k] >= LEAST_SHARE * sizes.sum() or k == order[0]]


def _scattered(sizes: np.ndarray) -> bool:
    """Several parts of which none is most of the scar."""
    return len(sizes) >= PATCHES and sizes.max() < MOST_OF_IT * sizes.sum()


def _describe(lesion: np.ndarray, total: int, anatomy: Anatomy) -> str:
    where = lesion > 0
    sizes = np.bincount(anatomy.segment[where], minlength=max(NAMES) + 1)
    order = np.argsort(-sizes, kind="stable")[:MOST_SEGMENTS]
    named = [int(s) for s in order if sizes[s] >= LEAST_SHARE * sizes.sum()]
    wall = Wall.of(anatomy, where)
    every = np.arange(len(wall.index))
    depth = wall.transmurality(every)
    parts = ndimage.label(where, np.ones((3, 3, 3)))[0]
    layer = "patchy" if _scattered(np.bincount(parts.ravel())[1:]) else _layer(*wall.gaps(every),
                                                                              depth)
    return _text(layer, where.sum() / total, depth, named or [int(order[0])],
                 bool((lesion == NO_REFLOW).any()))


def _layer(inner: float, outer: float, depth: float) -> str:
    """From the gaps to the endocardium and the epicardium, and the transmurality."""
    if _quarter(depth) == QUARTERS[-1]:
        return "transmural"
    if min(inner, outer) > GAP or abs(inner - outer) < EVEN:
        return "midwall"
    return "subendocardial" if inner <= outer else "subepicardial"


def _layer_of(spec: ScarSpec) -> str:
    if spec.shape in LAYERS or spec.transmurality is None:
        return spec.shape if spec.shape in LAYERS else "patchy"
    half = spec.transmurality / 2
    low, high = (0.0, spec.transmurality) if spec.shape in ("sector", "smile") else (
        max(spec.depth - half, 0.0), min(spec.depth + half, 1.0))
    return _layer(low, 1 - high, spec.transmurality)


def _text(layer: str, burden: float, depth: float | None, segments: Sequence[int],
          core: bool) -> str:
    nearest = min(BURDENS, key=lambda b: abs(np.log(b / 100 / burden)))
    text = f"{layer} enhancement of {nearest} percent burden"
    if depth is not None:
        text += f" and {_quarter(depth)} percent depth"
    if segments:
        text += f" in the {' and '.join(NAMES[s] for s in sorted(segments))} wall"
    return text + (_NO_REFLOW if core else "")


def _quarter(depth: float) -> int:
    return next((q for q in QUARTERS if depth <= q / 100 + 1e-6), QUARTERS[-1])
