"""The fixed test set of a generator: requests in validation hearts, committed as JSON lines.

A line is one slice of one lesion: case, slice, the lesion's `ScarSpec`, its pixels there, and the
seed of its draft. Requests come from the `fitted` prior of the fold's TRAINING scars and go into
scar-free slices of its VALIDATION patients; of a lesion's slices one is taken by chance, so that
long lesions do not count more than short ones.

    python -m benchmarks.testset -d 116 -f 4      writes benchmarks/requests/<dataset>_fold4.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks import exit_code
from nnunet_lgesynth.anatomy.scar import ScarSpec, Unreachable, paint_mask
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import write_text
from nnunet_lgesynth.generators.subject import Subject, measure_prior, read_subjects
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["Asked", "about", "command_line", "count", "draw", "fold_parser", "open_fold",
           "patients", "read", "request_file", "write"]

REQUESTS, SEED = 500, 4
DECIMALS = 5


@dataclass(frozen=True)
class Asked:
    """One slice (`z`) of one lesion to paint into one patient."""

    case: str
    z: int
    pixels: int
    seed: int
    spec: ScarSpec

    def mask(self, heart: Subject) -> np.ndarray:
        """(Z, Y, X) uint8: the lesion in this slice alone. Raises where the anatomy has changed."""
        mask = paint_mask(heart.anatomy, self.spec)
        mask[[z for z in range(len(mask)) if z != self.z]] = 0
        if (mask > 0).sum() != self.pixels:
            raise UserError(f"{self.case}, slice {self.z}: the request covers "
                            f"{(mask > 0).sum()} pixels and {self.pixels} in the test set; was "
                            "the dataset converted otherwise? Draw a new set with "
                            "benchmarks.testset.")
        return mask


def request_file(fold: Fold) -> Path:
    """Where the test set of a fold is committed."""
    return Path(__file__).parent / "requests" / f"{fold.dataset}_fold{fold.fold}.jsonl"


def patients(fold: Fold) -> dict[str, Subject]:
    """The fold's validation patients; here they are only painted into and judged."""
    found = {}
    for identifier in fold.val:
        try:
            found[identifier] = Subject.of(fold, fold.read(identifier))
        except UserError as error:
            warnings.warn(f"{identifier} is left out: {error}", stacklevel=2)
    return found


def draw(fold: Fold, n: int = REQUESTS, seed: int = SEED) -> list[Asked]:
    """A new test set."""
    prior = measure_prior(read_subjects(fold, fold.train), fold, "fitted")
    hearts = [p for p in patients(fold).values() if p.anatomy.paintable.any()]
    if not hearts:
        raise UserError(f"{fold.dataset} fold {fold.fold}: no validation patient has a scar-free "
                        "slice; choose another fold.")
    rng, least, found = np.random.default_rng(seed), QCConfig().min_pixels, []
    while len(found) < n:
        heart = hearts[rng.integers(len(hearts))]
        try:
            spec = prior.draw(heart.anatomy, rng)
            spec = _rounded(spec)
            pixels = (paint_mask(heart.anatomy, spec) > 0).sum(axis=(1, 2))
        except Unreachable:
            continue
        slices = np.flatnonzero(pixels >= least)
        if len(slices):
            z = int(rng.choice(slices))
            found.append(Asked(heart.case.identifier, z, int(pixels[z]),
                               int(rng.integers(2 ** 31)), spec))
    return found


def write(path: Path, requests: list[Asked]) -> None:
    write_text(path, "".join(json.dumps(dataclasses.asdict(a)) + "\n" for a in requests))


def read(path: Path) -> list[Asked]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; draw the fold's test set with: python -m "
                        "benchmarks.testset -d DATASET_ID -f FOLD") from error
    return [Asked(**{**line, "spec": _spec(line["spec"])}) for line in lines]


def _spec(values: dict) -> ScarSpec:
    return ScarSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _rounded(settings):
    """A frozen dataclass with short decimals."""
    def short(value):
        if isinstance(value, float):
            return round(value, DECIMALS)
        return tuple(map(short, value)) if isinstance(value, tuple) else value

    return dataclasses.replace(settings, **{f.name: short(getattr(settings, f.name))
                                            for f in dataclasses.fields(settings)})


def fold_parser(text: str, device: bool = True) -> argparse.ArgumentParser:
    """The flags that every benchmark of a fold has, named as nnU-Net names them."""
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", default="2d")
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-f", type=int, required=True)
    if device:
        parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"))
    return parser


def count(text: str) -> int:
    """The type of `-n`: at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of requests; give 1 or more")
    return int(text)


def command_line(module: str) -> str:
    """How this process was called, for result rows; of absolute paths the last two parts."""
    words = ["/".join(Path(w).parts[-2:]) if Path(w).is_absolute() else w for w in sys.argv[1:]]
    return f"python -m {module} {shlex.join(words)}"


def about(benchmark: str, fold: Fold, device: str) -> dict:
    """What all result rows of one run of `benchmarks.<benchmark>` have in common."""
    return {"benchmark": benchmark, "dataset": fold.dataset, "seeds": [0],
            "split": f"validation, fold {fold.fold}", "device": machine(device),
            "command": command_line(f"benchmarks.{benchmark}"), "versions": versions(),
            "date": date.today().isoformat()}


def open_fold(arguments) -> Fold:
    return Fold.open(arguments.d, arguments.c, arguments.f, arguments.p)


def main() -> None:
    fold = open_fold(fold_parser(__doc__, device=False).parse_args())
    write(request_file(fold), draw(fold))


if __name__ == "__main__":
    sys.exit(exit_code("testset", main))
