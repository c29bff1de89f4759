"""How often a fold's drafts pass the quality control, beside real scars: `qc_pass_own`.

One draft a request, no retry, in the hearts of the fold's validation patients; the requests are the
same for every generator. The judge is the one that tuned the inpainter, so the rate flatters it.
Real scar slices of the same patients, judged alike, bound what a rate can mean: `qc_pass_real`.

    python benchmarks/qc_pass.py -d 116 -f 4 --guidance 1 2 4 -device cpu -o qc_pass_fold4.json

Needs nnU-Net's environment variables, a fitted generator and its judge. Minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from dataclasses import replace
from datetime import date
from itertools import islice
from time import perf_counter

import numpy as np
import torch

from nnunet_lgesynth.benchmark.compare import interval, number_row
from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError, write_json
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.judge.qc import dice
from nnunet_lgesynth.pool.generator import (
    find_inpainter,
    load_generator,
    preset_of,
    usable_device,
)
from nnunet_lgesynth.pool.synthesize import prepare, synthesize
from nnunet_lgesynth.provenance import machine, versions

SEED = 7
RESAMPLES = 2000


def main() -> None:
    arguments = _arguments()
    fold = Fold.open(arguments.d, arguments.c, arguments.f, arguments.p)
    inpainter, judge = load_generator("lgesynth", fold, usable_device(arguments.device))
    prior, _ = prepare(fold, InjectionConfig().prior)
    patients = _patients(fold)
    hearts = [p for p in patients if p.anatomy.paintable.sum() >= p.anatomy.covered.sum() / 2]
    about = {"benchmark": "qc_pass", "dataset": fold.dataset, "seeds": [SEED],
             "split": f"validation, fold {fold.fold}", "device": machine(arguments.device),
             "command": "python benchmarks/" + shlex.join(["qc_pass.py", *sys.argv[1:]]),
             "versions": versions(), "date": date.today().isoformat()}
    share, n = _real_rate(patients, fold, judge)
    rows = [number_row({**about, "arm": "real", "preset": None}, "qc_pass_real", share, n=n)]
    arms = {"paint": Painter()}
    for scale in arguments.guidance:
        arms[f"lgesynth, guidance {scale:g}"] = _guided(inpainter, scale)
    preset = preset_of(find_inpainter(fold))
    for arm, generator in arms.items():
        mine = {**about, "arm": arm, "preset": None if arm == "paint" else preset}
        rows += _rows(mine, generator, fold, prior, hearts, judge, arguments.lesions)
        print(json.dumps({k: rows[-2][k] for k in ("arm", "value", "low", "high", "n")}))
    write_json(arguments.o, rows)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", default="2d")
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-f", type=int, required=True)
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"))
    parser.add_argument("--lesions", type=int, default=40, help="requests, a few slices each")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0])
    parser.add_argument("-o", required=True, help="JSON file of the rows")
    return parser.parse_args()


def _patients(fold: Fold) -> list[Subject]:
    """The fold's validation patients; here they are only painted into and judged."""
    patients = []
    for identifier in fold.val:
        try:
            patients.append(Subject.of(fold, fold.read(identifier)))
        except UserError as error:
            warnings.warn(f"{identifier} is left out: {error}", stacklevel=2)
    return patients


def _guided(inpainter, scale: float):
    return type(inpainter)(inpainter.networks,
                           replace(inpainter.config, guidance_scale=scale), inpainter.prior,
                           inpainter.hash)


def _rows(about: dict, generator, fold: Fold, prior, hearts, judge, lesions: int) -> list[dict]:
    """Pass rate over slices (interval over lesions) and time a draft."""
    once = replace(QCConfig(), drafts_per_slice=1)
    begin = perf_counter()
    samples = list(islice(synthesize(fold, generator, prior, hearts, judge, once,
                                     np.random.default_rng(SEED), kinds=["scar"]), lesions))
    seconds = perf_counter() - begin
    drafted = np.array([len(s.verdicts) for s in samples])
    passed = np.array([s.passed_first for s in samples])
    bounds = interval(lesions, lambda i: passed[i].sum(-1) / drafted[i].sum(-1), RESAMPLES)
    n = drafted.sum()
    return [number_row(about, "qc_pass_own", passed.sum() / n, *bounds, n=n),
            number_row(about, "seconds_per_draft", seconds / n, n=n, unit="s, judge included")]


def _real_rate(patients, fold: Fold, judge) -> tuple[float, int]:
    """Share of real scar slices in which the judge reaches the Dice asked of drafts."""
    bounds, scars, found = QCConfig(), fold.info.roles.scars, []
    for patient in patients:
        truth = np.isin(patient.labels, scars)
        slices = [z for z in np.flatnonzero(patient.anatomy.covered)
                  if truth[z].sum() >= bounds.min_pixels]
        if slices:
            images = np.ascontiguousarray(patient.case.image[:, slices].swapaxes(0, 1))
            maps = np.asarray(judge.predict(torch.from_numpy(images),
                                            centre=patient.anatomy.lv_centre).cpu())
            found += [dice(np.isin(m, scars), truth[z]) for m, z in zip(maps, slices)]
    return float(np.mean(np.array(found) >= bounds.min_dice)), len(found)


if __name__ == "__main__":
    main()
