"""Requests by a person: lesions as asked for, in the files' own geometry and intensities.

The same composition as the pool's (`synthesize.paint_case`), on the raw case instead of nnU-Net's
preprocessed one; the judge sees it through nnU-Net's preprocessing. Sample k depends on (seed, k)
and its heart alone. The output folder is renamed into place when all samples are written:

    images/<name>_000c.nii.gz  labels/<name>.nii.gz  sheets/<name>.png  samples.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nnunet_lgesynth.anatomy.caption import caption, caption_of
from nnunet_lgesynth.anatomy.measure import measure
from nnunet_lgesynth.anatomy.priors import Asked, Prior
from nnunet_lgesynth.anatomy.scar import Unreachable, paint_mask
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.dataset.raw_case import RawCase, Stored, raw_folder
from nnunet_lgesynth.files import new_folder, write_json
from nnunet_lgesynth.generators.condition import Crop
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.pool.sheet import save_sample
from nnunet_lgesynth.pool.synthesize import Sample, paint_case

__all__ = ["RawSubject", "read_raw_subject", "write_samples"]

LEAST_CORE_MISS = 0.02     # of the lesion; less is a voxel or two


@dataclass(frozen=True, eq=False)
class RawSubject(Subject):
    """A case in its files' intensities, in the fold's axis order."""

    fold: Fold
    raw: RawCase

    def judged(self, judge, slices: Sequence[int],
               after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Subject.judged`, through nnU-Net's preprocessing and back."""
        changed = self.case.image.copy()
        changed[:, slices] = after
        maps = []
        for stored in (self._stored, Stored.of(self.fold, self.raw.case, changed)):
            seen = judge.predict(torch.from_numpy(stored.slices(slices)),
                                 centre=stored.point(self.anatomy.lv_centre))
            maps.append(stored.back(np.asarray(seen.cpu())))
        return maps[0], maps[1]

    @cached_property
    def _stored(self) -> Stored:
        """The case as it is, the same for every draft."""
        return Stored.of(self.fold, self.raw.case, self.case.image)


def read_raw_subject(fold: Fold, identifier: str) -> RawSubject:
    """The raw case, measured; `UserError` where it cannot be."""
    raw = RawCase.read(raw_folder(fold.dataset), identifier, fold.plans["transpose_forward"])
    raw.require_same_axes()
    plain = Subject.of(fold, raw.case)
    return RawSubject(plain.case, plain.channel, plain.anatomy, plain.intensities, fold, raw)


def write_samples(fold: Fold, generator, judge, prior: Prior, asked: Asked, cases: Sequence[str],
                  n: int, seed: int, out: Path) -> list[dict]:
    """Write `n` samples into the new folder `out`; returns what `samples.json` holds.

    With one case, a request that it cannot hold is an error; of several, another is taken.
    """
    if n < 1:
        raise UserError(f"-n must be at least 1, not {n}.")
    with new_folder(out) as partial:
        records = list(tqdm(_samples(fold, generator, judge, prior, asked, cases, n, seed, partial),
                            total=n, desc="Painting", unit="sample"))
        write_json(partial / "samples.json", records)
    return records


def _samples(fold: Fold, generator, judge, prior: Prior, asked: Asked, cases: Sequence[str],
             n: int, seed: int, folder: Path) -> Iterator[dict]:
    config = dataclasses.replace(QCConfig(), min_pixels=1)     # every slice that was asked for
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        heart, spec, mask = _draw(fold, generator, prior, asked, cases, rng)
        sample = paint_case(fold, generator, heart, spec, mask, judge, config,
                            seed=int(rng.integers(2 ** 31)))
        name = f"{heart.case.identifier}_synth{k:03d}"
        files = heart.raw.write(sample.case, folder, name)
        record = _record(name, heart, sample, mask, asked, prior, generator)
        sheet = save_sample(folder / "sheets" / f"{name}.png", heart, sample.case, mask, record)
        yield {**record, "files": [p.relative_to(folder).as_posix() for p in (*files, sheet)]}


def _draw(fold: Fold, generator, prior: Prior, asked: Asked, cases: Sequence[str],
          rng: np.random.Generator):
    order = rng.permutation(len(cases))
    for i in order:
        heart = read_raw_subject(fold, cases[i])
        try:
            spec = prior.draw(heart.anatomy, rng, asked)
            return heart, spec, _inside_crop(heart, generator, paint_mask(heart.anatomy, spec))
        except Unreachable as error:
            refused = error
    if len(cases) == 1:
        raise UserError(f"{cases[0]}: {refused}")
    raise UserError(f"None of the {len(cases)} hearts can hold this; {cases[order[-1]]}: {refused}")


def _inside_crop(heart: RawSubject, generator, mask: np.ndarray) -> np.ndarray:
    """The mask, if the generator sees all of it."""
    crop = Crop.around(heart.anatomy.lv_centre, heart.anatomy.spacing[1:], generator.pixels,
                       generator.mm)
    if (mask > 0)[:, ~crop.covers(mask.shape[1:])].any():
        raise Unreachable(f"The scar lies outside of the {generator.pixels * generator.mm:.0f} mm "
                          f"around the LV that the generator {generator.name!r} paints.")
    return mask


def _record(name: str, heart: RawSubject, sample: Sample, mask: np.ndarray, asked: Asked,
            prior: Prior, generator) -> dict:
    """Requested against realised; shares are of the myocardium, see `anatomy.measure`."""
    written = np.where(sample.case.labels[0] != heart.labels, mask, 0)
    requested, realised = measure(mask, heart.anatomy), measure(written, heart.anatomy)
    spec, reference = sample.spec, heart.anatomy.reference
    wanted = {"segments": list(spec.segments or requested.segments), "burden": spec.burden,
              "transmurality": spec.transmurality, "no_reflow": spec.no_reflow}
    found = {"segments": list(realised.segments), "burden": realised.burden,
             "transmurality": realised.transmurality, "no_reflow": realised.no_reflow,
             "slices": realised.slices, "extent_degrees": float(np.rad2deg(realised.extent))}
    both = set(wanted["segments"]) | set(found["segments"])
    shared = set(wanted["segments"]) & set(found["segments"])
    return {
        "name": name, "case": heart.case.identifier, "generator": generator.name,
        "prior": prior.name, "seed": sample.seed, "accepted": sample.accepted,
        "asked": dataclasses.asdict(asked), "requested": wanted, "realised": found,
        "errors": {"mask_burden_error": abs(found["burden"] - wanted["burden"]),
                   "mask_transmurality_error": None if wanted["transmurality"] is None else
                   abs(found["transmurality"] - wanted["transmurality"]),
                   "no_reflow_error": abs(found["no_reflow"] - wanted["no_reflow"]),
                   "segment_jaccard": len(shared) / max(len(both), 1)},
        "caption": caption(mask, heart.anatomy),
        "caption_asked": caption_of([spec]) if spec.segments and not SHAPES[spec.shape].blobs
        else None,
        "spec": dataclasses.asdict(spec),
        "verdicts": {str(z + 1): v.as_dict() for z, v in sample.verdicts.items()},
        "slices_accepted": len(sample.slices), "slices_asked": len(sample.verdicts),
        "reference": {"source": reference.source, "uncertainty_degrees":
                      reference.uncertainty and float(np.rad2deg(reference.uncertainty))},
        "order": {"along_slices": heart.anatomy.order, "source": heart.anatomy.order_from},
        "notes": [*heart.anatomy.notes, *_shortfalls(sample, requested.no_reflow)]}


def _shortfalls(sample: Sample, core: float) -> list[str]:
    """Where the sample is less than what was asked for."""
    found = []
    for z, verdict in sample.verdicts.items():
        failed = [n for n, c in verdict.checks.items() if not c.passed]
        if failed:
            found.append(f"slice {z + 1} was refused ({', '.join(failed)}) and stays as it was")
    if core < sample.spec.no_reflow - LEAST_CORE_MISS:
        found.append(f"the lesion has room for a no-reflow core of {core:.0%} alone, not "
                     f"{sample.spec.no_reflow:.0%}")
    return found
