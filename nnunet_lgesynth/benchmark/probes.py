"""What an audit looks at: real scars, drafts of many requests, one request asked in many ways.

Everything is a crop (P, P) on the generator's grid in normalised intensities. Drafts are shown as
the pool gets them, pasted into their slice, but one draft a slice and unjudged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from nnunet_lgesynth.anatomy.priors import Prior
from nnunet_lgesynth.anatomy.scar import SCAR, ScarSpec
from nnunet_lgesynth.benchmark.nearest import Patch
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.condition import (
    Condition,
    Crop,
    Request,
    conditions,
    extract,
    paste_array,
)
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.pool.synthesize import requests

__all__ = ["Ask", "Probe", "asks", "contrast_range", "paint_probes", "paint_scars", "real_scars"]

BATCH = 16            # requests painted at a time
TRIES = 50            # requests in a row that may not do
LEAST_RANGE = 0.2     # between two contrasts asked, normalised units: EMIDEC's quartiles


@dataclass(frozen=True, eq=False)
class Ask:
    """One request in one slice of one heart, with the seed of its first draft."""

    heart: Subject
    z: int
    spec: ScarSpec
    condition: Condition
    seed: int


@dataclass(frozen=True, eq=False)
class Probe:
    """One request asked in many ways; all crops are (P, P).

    `by_seed` (S, P, P) are its pasted drafts by seed, `by_contrast` (2, P, P) those with one seed
    and the contrasts `contrasts` asked. `by_place` (2, P, P) are the drafts themselves, not pasted,
    of this request and of another one in the same slice, same seed and contrast; `other` is its
    mask. Masks hold 0, SCAR, NO_REFLOW.
    """

    case: str
    z: int
    mask: np.ndarray
    other: np.ndarray
    contrasts: tuple[float, float]
    by_seed: np.ndarray
    by_contrast: np.ndarray
    by_place: np.ndarray


def real_scars(fold: Fold, subjects: Sequence[Subject], generator) -> list[Patch]:
    """Every slice with a real scar of at least `QCConfig.min_pixels`, on the generator's grid."""
    patches = []
    for subject in subjects:
        crop = Crop.around(subject.anatomy.lv_centre, subject.anatomy.spacing[1:],
                           generator.pixels, generator.mm)
        scars = np.isin(subject.labels, fold.info.roles.scars)
        for z in np.flatnonzero(subject.anatomy.covered):
            here = crop.holding(scars[z])
            mask = _on_crop(scars[z], here, "nearest") > 0
            if mask.sum() >= QCConfig().min_pixels:
                patches.append(Patch(subject.case.identifier, int(z), _on_crop(
                    subject.intensities.apply(subject.lge[z]), here), mask))
    return patches


def asks(fold: Fold, prior: Prior, hearts: Sequence[Subject], generator,
         rng: np.random.Generator) -> Iterator[Ask]:
    """Endless requests as the pool draws them, one slice of each, that the crop holds; `UserError`
    if it holds none."""
    config, refused = QCConfig(), 0
    for heart, spec, mask in requests(fold, prior, hearts, config, rng):
        slices = np.flatnonzero((mask > 0).sum(axis=(1, 2)) >= config.min_pixels)
        z, seed = int(rng.choice(slices)), int(rng.integers(2 ** 31))
        condition = _condition(heart, mask, spec, z, generator)
        if _held(condition, mask[z]):
            refused = 0
            yield Ask(heart, z, spec, condition, seed)
        elif (refused := refused + 1) >= TRIES:
            raise UserError(f"{TRIES} scars in a row are larger than the "
                            f"{generator.pixels * generator.mm:.0f} mm that the generator "
                            f"{generator.name!r} paints; fit one with a larger crop.")


def paint_scars(asked: Iterable[Ask], generator) -> Iterator[Patch]:
    """One pasted draft of each request."""
    asked = iter(asked)
    while batch := list(islice(asked, BATCH)):
        drafts = _drafts(generator, [a.condition for a in batch], [a.seed for a in batch])
        for ask, draft in zip(batch, drafts):
            yield Patch(ask.heart.case.identifier, ask.z, _pasted(ask, draft),
                        ask.condition.request > 0)


def contrast_range(prior: Prior) -> tuple[float, float]:
    """Lower and upper quartile of the real scars' contrasts, at least `LEAST_RANGE` apart."""
    low, high = np.quantile([r.contrast for r in prior.records], (0.25, 0.75))
    return float(low), float(max(high, low + LEAST_RANGE))


def paint_probes(fold: Fold, prior: Prior, hearts: Sequence[Subject], generator, n: int,
                 seeds: int, rng: np.random.Generator) -> Iterator[Probe]:
    """`n` requests, each drafted with `seeds` seeds, with two contrasts, and in a second place."""
    contrasts, refused = contrast_range(prior), 0
    for ask in asks(fold, prior, hearts, generator, rng):
        if n < 1:
            return
        other = _elsewhere(fold, prior, ask, generator, rng)
        if other is not None:
            refused, n = 0, n - 1
            yield _probe(ask, other, generator, contrasts,
                         rng.integers(2 ** 31, size=seeds).tolist())
        elif (refused := refused + 1) >= TRIES:
            raise UserError(f"{fold.dataset} fold {fold.fold}: {TRIES} requests in a row could not "
                            "be asked twice in one slice; are the roles right? See: lgesynth "
                            "doctor")


def _elsewhere(fold: Fold, prior: Prior, ask: Ask, generator,
               rng: np.random.Generator) -> Condition | None:
    """Another request in the same slice with the same contrast; None if none is found."""
    for heart, spec, mask in islice(requests(fold, prior, [ask.heart], QCConfig(), rng), TRIES):
        if (mask[ask.z] > 0).sum() < QCConfig().min_pixels:
            continue
        condition = _condition(heart, mask, replace(spec, contrast=ask.spec.contrast), ask.z,
                               generator)
        if _held(condition, mask[ask.z]) and (condition.request != ask.condition.request).any():
            return condition
    return None


def _probe(ask: Ask, other: Condition, generator, contrasts: tuple[float, float],
           seeds: list[int]) -> Probe:
    varied = [replace(ask.condition, contrast=c) for c in contrasts]
    asked = [*[ask.condition] * len(seeds), *varied, other]
    drafts = _drafts(generator, asked, [*seeds, *seeds[:1] * (len(varied) + 1)])
    pasted = np.stack([_pasted(ask, draft) for draft in drafts[:-1]])
    return Probe(ask.heart.case.identifier, ask.z, ask.condition.request, other.request, contrasts,
                 pasted[:len(seeds)], pasted[len(seeds):], np.stack([drafts[0], drafts[-1]]))


def _condition(heart: Subject, mask: np.ndarray, spec: ScarSpec, z: int, generator) -> Condition:
    request = Request(mask, spec.contrast, spec.no_reflow_contrast)
    return conditions(heart.lge, heart.anatomy, heart.intensities, request, [z],
                      pixels=generator.pixels, mm=generator.mm, feather_mm=generator.feather_mm)[0]


def _held(condition: Condition, mask: np.ndarray) -> bool:
    """Whether the crop holds all of a slice's mask (Y, X), and it is more than a core."""
    return bool((condition.weight[mask > 0] > 0).all() and (condition.request == SCAR).any())


def _drafts(generator, asked: Sequence[Condition], seeds: Sequence[int]) -> list[np.ndarray]:
    drafts = generator.drafts(asked, seeds)
    if not all(np.isfinite(draft).all() for draft in drafts):
        raise UserError(f"The generator {generator.name!r} paints values that are not finite; fit "
                        "it again.")
    return drafts


def _pasted(ask: Ask, draft: np.ndarray) -> np.ndarray:
    after = paste_array(ask.heart.lge[ask.z], draft, ask.condition)
    return _on_crop(ask.heart.intensities.apply(after), ask.condition.crop)


def _on_crop(image: np.ndarray, crop: Crop, mode: str = "bilinear") -> np.ndarray:
    """The part (P, P) float32 of a slice (Y, X) that the crop shows."""
    slices = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    return extract(slices, [crop], mode)[0, 0].numpy()
