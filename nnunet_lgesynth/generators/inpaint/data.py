"""Training material of the inpainter: the ring slices of a fold's training cases.

Three kinds of slices, all as `Condition`s on the generator's crop:
    real     every ring slice as it is (VAE, U-Net), with its caption;
    scarred  slices with a real scar, whose region is to be repainted as it was (ControlNet);
    drawn    scar-free slices under a mask from the prior, to be repainted as healthy wall
             (ControlNet, reward) or as the scar that the prior asked for (reward only: there is
             no true image).
`batch` makes batches of them. Augmentation keeps captions true: turns of up to 10
degrees, small shifts and zooms, and gain (which scales the contrast asked as well).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from nnunet_lgesynth.anatomy.caption import NO_ENHANCEMENT
from nnunet_lgesynth.anatomy.priors import Prior
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR, Unreachable, paint_mask
from nnunet_lgesynth.config import FitConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.condition import Condition, Request, conditions
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.judge.segmenter import patch_start

__all__ = ["Item", "SliceSet", "as_healthy", "augment", "canvas"]

DRAWN_LESIONS = 400           # lesions drawn before training; each gives a few slices
MAX_TURN = 10.0               # degrees
MAX_SHIFT = 2.0               # crop pixels
MAX_ZOOM = 0.08
MAX_GAIN = 0.1


@dataclass(frozen=True, eq=False)
class Item:
    """One slice of one subject and what is asked of it there."""

    subject: Subject
    z: int
    request: np.ndarray           # (Y, X) uint8: 0, SCAR, NO_REFLOW; the region where healthy
    condition: Condition
    healthy: bool = False


@dataclass(frozen=True, eq=False)
class SliceSet:
    """All slices of a fold's training cases that the inpainter learns from."""

    fold: Fold
    config: FitConfig
    subjects: tuple[Subject, ...]
    prior: Prior
    real: tuple[Item, ...]
    scarred: tuple[Item, ...]
    asked: tuple[Item, ...]       # drawn; `as_healthy` turns one into its healthy twin

    @classmethod
    def of(cls, fold: Fold, config: FitConfig, prior: Prior,
           subjects: Sequence[Subject]) -> SliceSet:
        """Measure and draw everything; deterministic in `config.seed`."""
        real, scarred = [], []
        for subject in subjects:
            for item in _real_items(subject, fold, config):
                real.append(item)
                if item.request.any():
                    scarred.append(item)
        if not scarred:
            raise UserError("No training slice with a wall around the cavity holds a scar, so "
                            "there is nothing to learn from; check the roles with: lgesynth doctor")
        return cls(fold, config, tuple(subjects), prior, tuple(real), tuple(scarred),
                   tuple(_drawn_items(subjects, prior, config)))


def _real_items(subject: Subject, fold: Fold, config: FitConfig) -> list[Item]:
    mask = subject.scar_mask(fold.info.roles)
    return [_item(subject, z, mask[z], subject.contrasts(mask, z), config)
            for z in np.flatnonzero(subject.anatomy.covered)]


def _drawn_items(subjects: Sequence[Subject], prior: Prior, config: FitConfig) -> list[Item]:
    paintable = [s for s in subjects if s.anatomy.paintable.any()]
    if not paintable:
        raise UserError("No training case has a scar-free slice with a wall around the cavity, so "
                        "there is none to paint into.")
    rng = np.random.default_rng([config.seed, 1])
    asked = []
    for i in range(min(DRAWN_LESIONS, 20 * len(paintable))):
        subject = paintable[i % len(paintable)]
        try:
            spec = prior.draw(subject.anatomy, rng)
        except Unreachable:
            continue
        mask = paint_mask(subject.anatomy, spec)
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            contrasts = (spec.contrast, spec.no_reflow_contrast)
            asked.append(_item(subject, z, mask[z], contrasts, config))
    if not asked:
        raise UserError("The prior's masks miss every scar-free slice; check the labels of the "
                        "training cases with: lgesynth doctor")
    return asked


def _item(subject: Subject, z: int, mask: np.ndarray, contrasts,
          config: FitConfig) -> Item:
    stack = np.zeros(subject.labels.shape, np.uint8)
    stack[z] = mask
    request = Request(stack, *contrasts)
    condition = conditions(subject.lge, subject.anatomy, subject.intensities,
                           request, [z], pixels=config.crop_pixels, mm=config.crop_mm,
                           feather_mm=config.feather_mm)[0]
    return Item(subject, int(z), mask, condition)


def as_healthy(item: Item) -> Item:
    """The same region, to be repainted as normal wall; exactly what `conditions` makes of it."""
    condition = replace(item.condition, request=np.zeros_like(item.condition.request),
                        caption=NO_ENHANCEMENT)
    return replace(item, condition=condition, healthy=True)


def augment(condition: Condition, rng: np.random.Generator) -> Condition:
    """The same slice turned, shifted, zoomed and brightened a little; its caption stays true."""
    turn = np.deg2rad(rng.uniform(-MAX_TURN, MAX_TURN))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix *= 1 + rng.uniform(-MAX_ZOOM, MAX_ZOOM)
    middle = (condition.crop.pixels - 1) / 2
    offset = middle - matrix @ np.full(2, middle) + rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
    gain = 1 + rng.uniform(-MAX_GAIN, MAX_GAIN)
    # cubic, since a linear interpolation would teach a texture smoother than the slices have

    def moved(array: np.ndarray, order: int) -> np.ndarray:
        return ndimage.affine_transform(array, matrix, offset, order=order, mode="nearest")

    return replace(
        condition, source=(moved(condition.source, 3) * gain).astype(np.float32),
        request=moved(condition.request, 0),
        region=moved(condition.region.astype(np.uint8), 0) > 0,
        contrast=condition.contrast * gain, no_reflow_contrast=condition.no_reflow_contrast * gain)


def canvas(item: Item, fold: Fold) -> dict:
    """What a segmenter of this fold sees around the LV, in nnU-Net's intensities, as numpy arrays.

    image (C, H, W), weight (H, W), target (H, W) label values as asked, and the crop's place on it.
    H x W is nnU-Net's patch; like its predictor, what lies outside the slice is 0.
    """
    subject, roles = item.subject, fold.info.roles
    labels = subject.labels[item.z].astype(np.int64)
    if not item.healthy:
        labels = np.where(item.request == SCAR, roles.scar, labels)
        labels = np.where(item.request == NO_REFLOW, roles.scars[-1], labels)
    starts = [patch_start(n, p, c) for n, p, c in
              zip(labels.shape, fold.patch_size, subject.anatomy.lv_centre)]
    return {"image": _window(subject.case.image[:, item.z], starts, fold.patch_size),
            "weight": _window(item.condition.weight, starts, fold.patch_size),
            "target": _window(labels, starts, fold.patch_size),
            "crop": item.condition.crop.shifted(starts)}


def _window(array: np.ndarray, starts: Sequence[int], size: Sequence[int]) -> np.ndarray:
    result = np.zeros((*array.shape[:-2], *size), array.dtype)
    inner, outer = [], []
    for start, length, n in zip(starts, size, array.shape[-2:]):
        low, high = max(start, 0), min(start + length, n)
        outer.append(slice(low, high))
        inner.append(slice(low - start, high - start))
    result[(..., *inner)] = array[(..., *outer)]
    return result
