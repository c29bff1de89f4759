"""How dark painted no-reflow cores are, beside what was asked and beside real ones.

Scars with a core are requested in scar-free slices of a fold's training hearts, as its pool does,
and drafted once by each generator. Contrasts are medians in the units of `Intensities`: 0 is normal
myocardium. A core that is as bright as its scar teaches nnU-Net nothing, whatever its label says.

    python -m benchmarks.cores -d 116 -f 4 --judge FOLD_FOLDER --generators FOLD_FOLDER ... \\
        -o benchmarks/results/cores_fold4.json

Needs nnU-Net's environment variables and a preprocessed dataset. Minutes on one core.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from benchmarks import exit_code, result_file
from benchmarks.drafts import Asked, asked_slice, draft, judge_drafts
from benchmarks.testset import about, count, fold_parser, open_fold
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import QCConfig
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.generators.condition import Request
from nnunet_lgesynth.generators.inpaint.sample import Inpainter
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.generators.subject import read_subjects
from nnunet_lgesynth.pool.generator import usable_device
from nnunet_lgesynth.pool.synthesize import prepare, requests

SEED = 5


def main() -> None:
    parser = fold_parser(__doc__)
    parser.add_argument("-n", type=count, default=100, help="slices with a core (default 100)")
    parser.add_argument("--judge", type=Path, required=True, help="its fold folder")
    parser.add_argument("--generators", type=Path, nargs="+", required=True, metavar="DIR",
                        help="fold folders of fitted inpainters; the painter is measured anyway")
    parser.add_argument("-o", type=result_file, required=True)
    arguments = parser.parse_args()
    fold = open_fold(arguments)
    found = measure(fold, arguments.judge, arguments.generators, arguments.n,
                    usable_device(arguments.device))
    write_json(arguments.o, rows_of(found, {
        **about("cores", fold, arguments.device), "seeds": [SEED],
        "split": f"training, fold {fold.fold}"}))


def rows_of(found: dict, shared: dict) -> list[dict]:
    """What `measure` found as result rows: a metric is a number and of what, as `core_drafted`."""
    rows = []
    for name, parts in {"real": {"measured": found["real"]}, **found["generators"]}.items():
        arm = {**shared, "arm": name, "preset": None if name in ("real", "paint") else name}
        for part, numbers in parts.items():
            if part == "accepted_share":
                rows.append(number_row(arm, part, numbers, n=parts["drafted"]["slices"]))
                continue
            rows += [number_row(arm, f"{metric}_{part}", value, n=numbers["slices"],
                                unit="pixels" if metric == "core_pixels" else "normalised")
                     for metric, value in numbers.items()
                     if metric != "slices" and value is not None]
    return rows


def measure(fold: Fold, judge_folder: Path, folders: list[Path], n: int, device) -> dict:
    """{"real": numbers, "generators": {name: numbers}} of `n` slices with a core, see `_numbers`.
    """
    from nnunet_lgesynth.judge.segmenter import Segmenter  # nnU-Net reads its folders at import

    judge = Segmenter.load_fold(judge_folder, device)
    fitted = [Inpainter.load(f, device) for f in folders]
    generators = {"paint": Painter(), **{one.config.preset: one for one in fitted}}
    found = {}
    for name, generator in generators.items():
        drafts, _ = draft(generator, _asked(fold, generator, n))
        rows, _ = judge_drafts(drafts, judge, fold.info.roles, QCConfig())
        accepted = [d for d, row in zip(drafts, rows) if row["accepted"]]
        found[name] = {"asked": _numbers([(d.condition.contrast, d.condition.no_reflow_contrast,
                                           d.request) for d in drafts]),
                       "drafted": _numbers(map(_levels, drafts)),
                       "accepted": _numbers(map(_levels, accepted)),
                       "accepted_share": round(len(accepted) / len(drafts), 3)}
    return {"real": _numbers(_real(fold)), "generators": found}


def _asked(fold: Fold, generator, n: int) -> list[Asked]:
    prior, hearts = prepare(fold, "fitted")
    rng, asked = np.random.default_rng(SEED), []
    for heart, spec, mask in requests(fold, dataclasses.replace(prior, no_reflow_share=1.0),
                                      hearts, QCConfig(), rng):
        request = Request(mask, spec.contrast, spec.no_reflow_contrast)
        asked += [asked_slice(heart, z, request, generator, int(rng.integers(2 ** 31)))
                  for z in range(len(mask)) if _measurable(mask[z])]
        if len(asked) >= n:
            return asked[:n]


def _measurable(mask: np.ndarray) -> bool:
    return all((mask == part).sum() >= QCConfig().min_pixels for part in (SCAR, NO_REFLOW))


def _levels(d) -> tuple[float, float, np.ndarray]:
    return (*(float(np.median(d.sample[d.request == part])) for part in (SCAR, NO_REFLOW)),
            d.request)


def _real(fold: Fold):
    for subject in read_subjects(fold, fold.train):
        mask = subject.scar_mask(fold.info.roles)
        for z in np.flatnonzero(subject.anatomy.covered):
            if _measurable(mask[z]):
                yield (*subject.contrasts(mask, z), mask[z])


def _numbers(slices) -> dict:
    """Medians over slices of (contrast of scar, of the core, request): of the contrasts, of how far
    the core lies below the scar, and of the core's pixels; None where there is no slice."""
    rows = np.array([(scar, core, scar - core, (request == NO_REFLOW).sum())
                     for scar, core, request in slices])
    names = ("scar", "core", "scar_above_core", "core_pixels")
    return {"slices": len(rows)} | {
        name: round(float(v), 3) if len(rows) else None
        for name, v in zip(names, np.median(rows, 0) if len(rows) else [0.0] * len(names))}


if __name__ == "__main__":
    sys.exit(exit_code("cores", main))
