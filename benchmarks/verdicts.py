"""How often the benchmark's verdict is wrong, and how often it finds what is there: simulated.

    python -m benchmarks.verdicts -o verdicts.json

A study is the paired differences of some arms over some patients, in one primary metric; each arm
is judged as `compare` judges it (interval, sign flips, Holm). Of 2,000 studies a scenario:

    exchangeable    no effect: differences are symmetric, patients differ in how much an arm changes
    half_equal      the same, but half of the patients do not change at all (as no-reflow Dice 0, 0)
    skewed          no effect on the mean, but few patients change by much and all in one direction:
                    the arms are not exchangeable, which sign flips take them to be
    shared          no effect of the method, but all patients of a fold have one network, which is
                    better or worse than the other arm's by chance: by a quarter of the patients'
                    standard deviation (one seed; ten patients a fold)
    slice_auroc     no effect; the metric of a whole run, of eight slices a patient
    effect          normal, of the size that the benchmark states as detectable with 80 % power

    false_verdicts  share of studies in which any arm "helps" or "harms", with its Wilson interval
    power           share in which the one arm with an effect "helps"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import date

import numpy as np

from benchmarks import exit_code, result_file, testset
from nnunet_lgesynth.benchmark.arms import Arm
from nnunet_lgesynth.benchmark.differences import mean_difference, run_difference
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.benchmark.statistics import detectable, holm
from nnunet_lgesynth.benchmark.verdict import proven
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["SCENARIOS", "main", "signs", "simulate"]

STUDIES, RESAMPLES = 2000, 500
PATIENTS = (9, 14, 40)
ARMS = 2
FOLD, SHIFT = 10, 0.25     # patients of one network; its luck, in the patients' standard deviations
SLICES = 8


def _exchangeable(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape) * rng.exponential(size=(1, shape[1]))


def _half_equal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return _exchangeable(rng, shape) * (np.arange(shape[1]) < shape[1] / 2)


def _skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.exponential(size=shape) - 1


def _shared(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    fold = np.arange(shape[1]) // FOLD
    return rng.normal(size=shape) + rng.normal(scale=SHIFT, size=(shape[0], fold[-1] + 1))[:, fold]


# no effect in any arm: differences (arms, patients)
SCENARIOS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "exchangeable": _exchangeable, "half_equal": _half_equal, "skewed": _skewed,
    "shared": _shared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("-o", type=result_file, required=True, help="JSON file of the rows")
    arguments = parser.parse_args()
    if arguments.studies < 10:
        raise UserError(f"--studies must be at least 10, not {arguments.studies}.")
    rows = []
    for patients in PATIENTS:
        about = {"benchmark": "verdicts", "dataset": "simulated", "seeds": [0], "preset": None,
                 "split": f"{patients} patients, {ARMS} arms", "device": machine("cpu"),
                 "versions": versions(), "command": testset.command_line("benchmarks.verdicts"),
                 "date": date.today().isoformat()}
        for name in (*SCENARIOS, "slice_auroc", "effect"):
            metric = "power" if name == "effect" else "false_verdicts"
            share = simulate(name, patients, arguments.studies)
            rows.append(number_row({**about, "arm": name}, metric, *_wilson(
                share, arguments.studies), n=arguments.studies))
            row = rows[-1]
            print(f"{row['split']:22} {name:14} {metric:16} {row['value']:.3f} "
                  f"({row['low']:.3f}, {row['high']:.3f})", flush=True)
    write_json(arguments.o, rows)


def signs(differences: Sequence[np.ndarray], resamples: int = RESAMPLES) -> list[int]:
    """What the verdict says about arms, from their patients' differences (arms, n)."""
    return _judged([mean_difference(one, resamples) for one in differences])


def simulate(name: str, patients: int, studies: int, resamples: int = RESAMPLES,
             seed: int = 0) -> float:
    """The share of studies with a false verdict, of "effect" with a true one."""
    rng, shape = np.random.default_rng(seed), (ARMS, patients)
    hits = 0
    for _ in range(studies):
        if name == "effect":
            size = detectable(patients, ARMS)
            told = signs([rng.normal(size, 1, patients), rng.normal(0, 1, patients)], resamples)
            hits += told[0] == 1
        elif name == "slice_auroc":
            hits += any(_judged(_auroc_study(rng, patients, resamples)))
        else:
            hits += any(signs(SCENARIOS[name](rng, shape), resamples))
    return hits / studies


def _judged(found: Sequence[tuple]) -> list[int]:
    """Of (difference, interval, p, n) of each arm."""
    return [proven(bounds, p) for (_, bounds, _, _), p in zip(found, holm([f[2] for f in found]))]


def _auroc_study(rng: np.random.Generator, patients: int, resamples: int) -> list[tuple]:
    """Arms of one quality: a slice's burden is seen through the patient's, the arm's and the
    slice's noise."""
    scarred = rng.random(patients) < 2 / 3
    truth = scarred[:, None] & (rng.random((patients, SLICES)) < 0.6)
    hard = truth + rng.normal(scale=0.3, size=(patients, 1))
    seen = [hard + rng.normal(scale=0.3, size=(patients, 1))
            + rng.normal(scale=0.5, size=truth.shape) for _ in range(ARMS + 1)]

    def rows(side: int, scores: np.ndarray) -> list[dict]:
        return [{"case": (side, i), "fold": 0, "seed": 0, "split": "validation",
                 "has_scar": bool(truth[i].any()), "found_scar": True,
                 "slices": [[z, float(truth[i, z]), float(scores[i, z])] for z in range(SLICES)]}
                for i in range(patients)]
    real, *arms = seen
    return [run_difference(Arm.of(rows(0, real) + rows(1, arm)), "slice_auroc", patients, resamples)
            for arm in arms]


def _wilson(share: float, studies: int) -> tuple[float, float, float]:
    from statsmodels.stats.proportion import proportion_confint

    return share, *proportion_confint(round(share * studies), studies, method="wilson")


if __name__ == "__main__":
    sys.exit(exit_code("verdicts", main))
