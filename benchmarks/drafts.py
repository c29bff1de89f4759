"""One draft a request, judged: what the tables of `benchmarks.generator` are computed from.

Requests (`testset.Asked`) are painted as the pool paints them and pasted through the feather; the
same requests are painted as healthy wall; real scars of the validation patients are painted again
in their own place, from a slice in which the scar was filled by the level of normal myocardium (for
every generator, so that none can see the scar it is to paint). A fill has no texture to give, so
there a model's texture is its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from nnunet_lgesynth.anatomy.measure import Wall
from nnunet_lgesynth.anatomy.scar import SCAR
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.roles import Roles
from nnunet_lgesynth.generators.condition import (
    Condition,
    Request,
    conditions,
    feather,
    paste_array,
)
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.judge.qc import Painted, dice, examine

__all__ = ["Asked", "Draft", "asked_slice", "contrast", "draft", "in_place", "judge_drafts",
           "judge_real", "own_texture", "real_masks", "requests_of"]

BATCH = 16
FEATHER_MM = 4.0             # around real scars, as the generators' own


@dataclass(frozen=True, eq=False)
class Draft:
    """One slice before and after; arrays are (Y, X) on the slice, intensities normalised."""

    heart: Subject
    z: int
    request: np.ndarray            # 0, SCAR, NO_REFLOW
    source: np.ndarray             # real slice
    sample: np.ndarray             # with the pasted draft
    condition: Condition
    healthy: bool
    changed_outside: int = 0       # pixels changed where the feather's weight is 0

    @property
    def burden(self) -> float:
        """The request's share of the slice's myocardium."""
        return float((self.request > 0).sum() / self.heart.anatomy.myocardium[self.z].sum())


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be drafted: a request in one slice and the seed of its draft."""

    heart: Subject
    z: int
    condition: Condition
    request: np.ndarray
    seed: int
    healthy: bool


def requests_of(testset, patients: dict[str, Subject], generator,
                healthy: bool = False) -> list[Asked]:
    """The committed test set for this generator's crop."""
    asked = []
    for line in testset:
        if line.case not in patients:
            raise UserError(f"The test set asks for a scar in {line.case}, which is no validation "
                            "patient of this fold; was the split changed? Draw a new set with "
                            "benchmarks.testset.")
        heart, mask = patients[line.case], line.mask(patients[line.case])
        request = Request(mask, line.spec.contrast, line.spec.no_reflow_contrast, healthy)
        asked.append(asked_slice(heart, line.z, request, generator, line.seed))
    return asked


def in_place(patients: dict[str, Subject], roles: Roles, generator, seeds: int) -> list[Asked]:
    """Every real scar slice of the patients, to be painted again in its own place."""
    asked = []
    for heart in patients.values():
        for z, mask in real_masks(heart, roles):
            contrasts = heart.contrasts(mask, z)
            for seed in range(seeds):
                one = asked_slice(heart, z, Request(mask, *contrasts), generator, seed)
                filled = np.where(one.condition.region, 0, one.condition.source)
                asked.append(dataclasses.replace(one, condition=dataclasses.replace(
                    one.condition, source=filled.astype(np.float32))))
    return asked


def own_texture(generator):
    """The generator, painting its own texture where it would take the source's."""
    if not getattr(generator, "config", None):
        return generator
    changed = copy.copy(generator)
    changed.config = dataclasses.replace(generator.config, texture_mm=0.0)
    return changed


def real_masks(heart: Subject, roles: Roles):
    """(z, mask) of every slice with a real scar large enough; masks (Z, Y, X) hold that slice."""
    mask = heart.scar_mask(roles)
    for z in np.flatnonzero(heart.anatomy.covered):
        if (mask[z] > 0).sum() >= QCConfig().min_pixels:
            one = np.zeros_like(mask)
            one[z] = mask[z]
            yield int(z), one


def asked_slice(heart: Subject, z: int, request: Request, generator, seed: int) -> Asked:
    condition = conditions(heart.lge, heart.anatomy, heart.intensities, request, [z],
                           pixels=generator.pixels, mm=generator.mm,
                           feather_mm=generator.feather_mm)[0]
    return Asked(heart, z, condition, request.mask[z], seed, request.healthy)


def draft(generator, asked: Sequence[Asked]) -> tuple[list[Draft], float]:
    """Drafts, pasted, and the seconds they took."""
    begin, drafts = perf_counter(), []
    for first in range(0, len(asked), BATCH):
        part = asked[first:first + BATCH]
        painted = generator.drafts([a.condition for a in part], [a.seed for a in part])
        for one, crop in zip(part, painted):
            scale, source = one.heart.intensities, one.heart.lge[one.z]
            pasted = paste_array(source, crop, one.condition)
            outside = (pasted != source) & (one.condition.weight == 0)
            drafts.append(Draft(one.heart, one.z, one.request, scale.apply(source),
                                scale.apply(pasted), one.condition, one.healthy,
                                int(outside.sum())))
    return drafts, perf_counter() - begin


def judge_drafts(drafts: Sequence[Draft], judge, roles: Roles,
                 qc: QCConfig) -> tuple[list[dict], float]:
    """One row a draft: verdict, the judge's scar inside the feather as `mask` (Y, X), and the
    control errors by it; and the seconds."""
    begin, maps = perf_counter(), [None] * len(drafts)
    hearts = {id(d.heart): d.heart for d in drafts}
    for key, heart in hearts.items():
        mine = [k for k, d in enumerate(drafts) if id(d.heart) == key]
        slices = sorted({drafts[k].z for k in mine})
        before = dict(zip(slices, _predict(judge, heart, heart.case.image[:, slices])))
        after = heart.case.image[:, [drafts[k].z for k in mine]].copy()
        for column, k in enumerate(mine):
            after[heart.channel, column] = heart.intensities.invert(drafts[k].sample)
        for k, found in zip(mine, _predict(judge, heart, after)):
            maps[k] = before[drafts[k].z], found
    rows = [_row(d, *m, roles, qc) for d, m in zip(drafts, maps)]
    return rows, perf_counter() - begin


def _predict(judge, heart: Subject, images: np.ndarray) -> np.ndarray:
    """Label maps (n, Y, X) of (C, n, Y, X)."""
    parts = [judge.predict(torch.from_numpy(np.ascontiguousarray(
        images[:, first:first + BATCH].swapaxes(0, 1))), centre=heart.anatomy.lv_centre)
        for first in range(0, images.shape[1], BATCH)]
    return np.concatenate([np.asarray(p.cpu()) for p in parts])


def _row(d: Draft, before: np.ndarray, after: np.ndarray, roles: Roles, qc: QCConfig) -> dict:
    scale = d.heart.intensities
    painted = Painted(scale.invert(d.source), scale.invert(d.sample), d.heart.labels[d.z],
                      d.request, d.condition.weight, d.condition.contrast, d.healthy, scale,
                      before, after, d.condition.no_reflow_contrast)
    verdict, hit = examine(painted, roles, qc), np.isin(after, roles.scars)
    near = hit & (d.condition.weight > 0)
    found = near & d.heart.anatomy.myocardium[d.z]
    row = {"case": d.heart.case.identifier, "z": d.z, "burden": d.burden,
           "accepted": verdict.accepted, "asked_contrast": d.condition.contrast, "mask": found,
           "contrast": contrast(d.sample, d.request)}
    return row if d.healthy else {**row, **_found(hit, near, d.request > 0, qc),
                                  **_control(d, found)}


def _found(hit: np.ndarray, near: np.ndarray, scar: np.ndarray, qc: QCConfig) -> dict:
    """Whether the judge's scar (Y, X) is the one asked for, told in the feather (`near`), as the
    quality control does, and in the whole slice (`hit`), as was published."""
    value = dice(near, scar)
    return {"dice": value, "found": value >= qc.min_dice,
            "found_anywhere": dice(hit, scar) >= qc.min_dice}


def judge_real(patients: dict[str, Subject], judge, roles: Roles, qc: QCConfig) -> list[dict]:
    """The same rows of the patients' real scar slices: `found` with the Dice asked of drafts. There
    is no untouched slice to tell new scar from old by, so none is `accepted`."""
    rows = []
    for heart in patients.values():
        masks = list(real_masks(heart, roles))
        maps = _predict(judge, heart, heart.case.image[:, [z for z, _ in masks]]) if masks else []
        for (z, mask), found in zip(masks, maps):
            scar, wall = mask[z] > 0, heart.anatomy.myocardium[z]
            values = heart.intensities.apply(heart.lge[z])
            real = Draft(heart, z, mask[z], values, values, None, False)
            hit = np.isin(found, roles.scars)
            near = hit & (feather(scar, heart.anatomy.spacing[1:], FEATHER_MM) > 0)
            rows.append({"case": heart.case.identifier, "z": z, "burden": real.burden,
                         "accepted": None, "contrast": contrast(values, mask[z]),
                         **_found(hit, near, scar, qc), **_control(real, near & wall)})
    return rows


def contrast(values: np.ndarray, mask: np.ndarray) -> float:
    """Median of a normalised slice (Y, X) under the scar of a mask, or under its core alone."""
    return float(np.median(values[mask == SCAR if (mask == SCAR).any() else mask > 0]))


def _control(d: Draft, found: np.ndarray) -> dict:
    """The judge's mask (Y, X) against the request, in this slice."""
    asked, got = (_measured(d, mask) for mask in (d.request > 0, found))
    both, either = asked["segments"] & got["segments"], asked["segments"] | got["segments"]
    return {"found_burden": got["pixels"] / d.heart.anatomy.myocardium[d.z].sum(),
            "burden_error": abs(got["pixels"] - asked["pixels"]) / max(asked["pixels"], 1),
            "segment_jaccard": len(both) / max(len(either), 1),
            "transmurality_error": abs(got["transmurality"] - asked["transmurality"])}


def _measured(d: Draft, mask: np.ndarray) -> dict:
    stack = np.zeros(d.heart.labels.shape, bool)
    stack[d.z] = mask
    wall = Wall.of(d.heart.anatomy, stack)
    every = np.arange(len(wall.index))
    return {"pixels": len(every), "segments": set(wall.segment.tolist()),
            "transmurality": wall.transmurality(every)}
