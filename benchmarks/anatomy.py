"""Geometry and control, measured on a fold: control error of masks, realism of priors, speed.

    control   random requests (heart, connected AHA segments, shape, burden, transmurality), painted
              and measured again; burden is drawn within what the segments hold at that depth
    realism   masks of each prior, fitted on the training scars and painted into the training
              hearts without their scars, against the validation scars (and, `_to_train`, against
              the training scars); `train` are the training scars themselves: what separates them
              from the validation scars is chance
    speed     CPU time of the anatomy of a case, and of a mask drawn and painted
    insertion the zero angle that is estimated from the image against insertions read by eye

    python -m benchmarks.anatomy -d 116 -f 4 -o anatomy_fold4.json

Needs nnU-Net's environment variables and a preprocessed dataset. Minutes on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from time import process_time

import numpy as np
from scipy import stats

from benchmarks import exit_code, result_file
from nnunet_lgesynth.anatomy.aha import APEX, neighbours
from nnunet_lgesynth.anatomy.heart import Anatomy, describe
from nnunet_lgesynth.anatomy.measure import measure
from nnunet_lgesynth.anatomy.priors import PRIORS, Prior
from nnunet_lgesynth.anatomy.reference import Reference
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR, ScarSpec, Unreachable, paint_mask
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.provenance import machine, versions

SEED = 11
REQUESTS = 1000
DRAWS = 10                       # a heart and prior
MOST_SEGMENTS = 4
READ_BY_EYE = Path(__file__).with_name("emidec_insertions.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True)
    parser.add_argument("-f", required=True)
    parser.add_argument("-c", default="2d")
    parser.add_argument("-o", type=result_file, required=True)
    arguments = parser.parse_args()
    fold = Fold.open(arguments.d, arguments.c, arguments.f)
    train, val = ([Subject.of(fold, fold.read(i)) for i in part] for part in (fold.train, fold.val))
    about = {"benchmark": "anatomy", "dataset": fold.dataset, "seeds": [SEED], "preset": None,
             "device": f"{machine('cpu')}, one core used", "versions": versions(),
             "command": "python benchmarks/" + shlex.join(["anatomy.py", *sys.argv[1:]]),
             "date": date.today().isoformat()}
    rows = [*control(train + val, about | {"split": "all cases"}),
            *realism(train, val, fold, about | {"split": f"fold {fold.fold}, training against "
                                                         "validation"}),
            *speed(train, fold, about | {"split": f"training, fold {fold.fold}"}),
            *insertions(fold, about | {"split": "cases read by eye"})]
    write_json(arguments.o, rows)
    for row in rows:
        print(f"{row['arm']:16} {row['metric']:36} {row['value']} {row['unit']} (n {row['n']})")


def one_slice(anatomy: Anatomy, z: int) -> Anatomy:
    """Slice `z` as a stack of its own; it keeps its segments."""
    parts = {f.name: getattr(anatomy, f.name) for f in dataclasses.fields(anatomy)}
    return Anatomy(**{name: part[z:z + 1] if isinstance(part, np.ndarray) else part
                      for name, part in parts.items()})


def control(hearts: list[Subject], about: dict) -> Iterator[dict]:
    for name, flat in (("stack", False), ("one slice", True)):
        rng = np.random.default_rng([SEED, flat])
        found, refused = [], 0
        while len(found) < REQUESTS:
            anatomy = hearts[rng.integers(len(hearts))].anatomy
            if not anatomy.paintable.any():
                continue
            if flat:
                anatomy = one_slice(anatomy, int(rng.choice(np.flatnonzero(anatomy.paintable))))
            spec = random_request(anatomy, rng)
            try:
                got = measure(paint_mask(anatomy, spec), anatomy)
            except Unreachable:
                refused += 1
                continue
            found.append((abs(got.burden - spec.burden),
                          abs(got.transmurality - spec.transmurality),
                          len(set(got.segments) - set(spec.segments)),
                          len(set(spec.segments) - set(got.segments))))
        burden, depth, outside, missing = np.array(found).T
        arm = {**about, "arm": name}
        for metric, values in (("mask_burden_error", burden), ("mask_transmurality_error", depth)):
            yield number_row(arm, f"{metric}_median", np.median(values), n=REQUESTS)
            yield number_row(arm, f"{metric}_p95", np.percentile(values, 95), n=REQUESTS)
            yield number_row(arm, f"{metric}_max", values.max(), n=REQUESTS)
        for metric, values in (("segments_outside_request", outside),
                               ("segments_missed", missing)):
            yield number_row(arm, metric, values.sum(), n=REQUESTS, unit="segments")
        yield number_row(arm, "requests_refused", refused / (refused + REQUESTS),
                         n=refused + REQUESTS)


def random_request(anatomy: Anatomy, rng: np.random.Generator) -> ScarSpec:
    """Any shape in connected segments; 10 to 90 % of what they hold at a random depth."""
    free = anatomy.segment[anatomy.paintable]
    available = set(np.unique(free[free > 0]).tolist())
    chosen = {int(rng.choice(sorted(available)))}
    for _ in range(int(rng.integers(0, MOST_SEGMENTS))):
        border = sorted({n for s in chosen for n in neighbours(s)} & available - chosen)
        if border:
            chosen.add(int(rng.choice(border)))
    shape = str(rng.choice(sorted(SHAPES)))
    depth = float(rng.uniform(0.2, SHAPES[shape].deepest))
    room = np.isin(free, list(chosen)).sum() / anatomy.myocardium.sum() * depth
    shares = tuple(rng.uniform(0.1, 1, len(chosen)).tolist()) if shape == "smile" else ()
    return ScarSpec(shape, float(rng.uniform(0.1, 0.9) * room), depth, tuple(chosen),
                    shares=shares, texture=int(rng.integers(2 ** 31)))


def realism(train: list[Subject], val: list[Subject], fold: Fold, about: dict) -> Iterator[dict]:
    roles = fold.info.roles
    scars = [[(real_mask(s, fold), s.anatomy) for s in part if s.scar(roles)]
             for part in (train, val)]
    records = tuple(s.scar(roles) for s in train if s.scar(roles))
    truths = {"": measured(scars[1]), "_to_train": measured(scars[0])}
    told = {"train": truths["_to_train"]}
    hearts = [dataclasses.replace(s.anatomy, scarred=np.zeros_like(s.anatomy.scarred))
              for s in train]
    for name in PRIORS:
        prior, rng = Prior(name, records), np.random.default_rng(SEED)
        told[name] = measured([(paint_mask(a, prior.draw(a, rng)), a)
                               for _ in range(DRAWS) for a in hearts])
    for name, (values, map_) in told.items():
        arm, n = {**about, "arm": name}, len(values["burden"])
        for suffix, (truth, true_map) in truths.items():
            scars_ = len(truth["burden"])
            yield number_row(arm, f"bulls_eye_correlation{suffix}",
                             np.corrcoef(map_, true_map)[0, 1], n=n, unit="Pearson r")
            for what, drawn in values.items():
                yield number_row(arm, f"ks_{what}{suffix}",
                                 stats.ks_2samp(drawn, truth[what]).statistic, n=n,
                                 unit=f"KS distance to {scars_} scars")


def real_mask(subject: Subject, fold: Fold) -> np.ndarray:
    roles = fold.info.roles
    mask = np.where(subject.labels == roles.scar, SCAR, 0)
    return np.where(np.isin(subject.labels, roles.scars[1:]), NO_REFLOW, mask).astype(np.uint8)


def measured(pairs) -> tuple[dict[str, list[float]], np.ndarray]:
    """What the scars measure, and how much of each segment is scarred on average (16,)."""
    found = [measure(mask, anatomy) for mask, anatomy in pairs]
    maps = [[(mask[anatomy.segment == s] > 0).mean() if (anatomy.segment == s).any() else np.nan
             for s in range(1, APEX)] for mask, anatomy in pairs]
    return ({"burden": [f.burden for f in found],
             "transmurality": [f.transmurality for f in found],
             "extent": [f.extent for f in found],
             "slice_share": [f.slices / a.covered.sum() for f, (_, a) in zip(found, pairs)],
             "no_reflow": [f.no_reflow for f in found]}, np.nanmean(maps, axis=0))


def speed(train: list[Subject], fold: Fold, about: dict) -> Iterator[dict]:
    cases = [fold.read(i) for i in fold.train]
    times = []
    for case in cases:
        begin = process_time()
        describe(case.labels[0], fold.info.roles, case.spacing, fold.info.frame,
                 case.image[fold.info.roles.lge_channel])
        times.append(process_time() - begin)
    yield number_row({**about, "arm": "anatomy"}, "seconds_per_case", np.median(times),
                     n=len(times), unit="CPU s")
    records = tuple(r for s in train if (r := s.scar(fold.info.roles)))
    free = [s.anatomy for s in train if s.anatomy.paintable.any()]
    for name in PRIORS:
        for what, flat in (("stack", False), ("2d", True)):
            rng, times = np.random.default_rng(SEED), []
            while len(times) < REQUESTS:
                anatomy = free[rng.integers(len(free))]
                if flat:
                    z = int(rng.choice(np.flatnonzero(anatomy.paintable)))
                    anatomy = one_slice(anatomy, z)
                begin = process_time()
                paint_mask(anatomy, Prior(name, records).draw(anatomy, rng))
                times.append(process_time() - begin)
            yield number_row({**about, "arm": name}, f"milliseconds_per_mask_{what}",
                             1000 * np.mean(times), n=REQUESTS, unit="CPU ms")


def insertions(fold: Fold, about: dict) -> Iterator[dict]:
    """Only for EMIDEC: the angles of READ_BY_EYE are in its display."""
    read = json.loads(READ_BY_EYE.read_text())["degrees"]
    known = set(fold.train + fold.val)
    errors: dict[str, list[float]] = {"image": [], "dataset": []}
    for identifier in sorted(set(read) & known):
        case, frame = fold.read(identifier), fold.info.frame
        found = describe(case.labels[0], fold.info.roles, case.spacing, frame,
                         case.image[fold.info.roles.lge_channel]).reference
        for name, reference in (("image", found), ("dataset", Reference.of(frame, "dataset"))):
            row, column = reference.zero
            angle = np.arctan2(-column, -row)                # from up, towards the image's left
            off = np.angle(np.exp(1j * (angle - np.deg2rad(read[identifier]))))
            errors[name].append(float(np.rad2deg(off)))
    for name, off in errors.items():
        if off:
            yield number_row({**about, "arm": name}, "insertion_angle_error",
                             np.abs(off).mean(), n=len(off), unit="degrees, mean absolute")
            yield number_row({**about, "arm": name}, "insertion_angle_bias", np.mean(off),
                             n=len(off), unit="degrees")


if __name__ == "__main__":
    sys.exit(exit_code("anatomy", main))
