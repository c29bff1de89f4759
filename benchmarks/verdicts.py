"""How often the benchmark's verdict is wrong, and how often it finds what is there: simulated.

    python -m benchmarks.verdicts -o verdicts.json

A study is the paired differences of some arms over some patients, in one primary metric; each arm
is judged as `compare` judges it (interval, sign flips, Holm). Of 2,000 studies a scenario:

    exchangeable    no effect: differences are symmetric, patients differ in how much an arm changes
    half_equal      the same, but half of the patients do not change at all (as no-reflow Dice 0, 0)
    skewed          no effect on the mean, but few patients change by much and all in one direction:
                    the arms are not exchangeable, which sign flips take them to be
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
from nnunet_lgesynth.benchmark.compare import mean_difference, number_row
from nnunet_lgesynth.benchmark.statistics import detectable, holm
from nnunet_lgesynth.benchmark.verdict import proven
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["SCENARIOS", "main", "signs", "simulate"]

STUDIES, RESAMPLES = 2000, 500
PATIENTS = (9, 14, 40)
ARMS = 2


def _exchangeable(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape) * rng.exponential(size=(1, shape[1]))


def _half_equal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return _exchangeable(rng, shape) * (np.arange(shape[1]) < shape[1] / 2)


def _skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.exponential(size=shape) - 1


# no effect in any arm: differences (arms, patients)
SCENARIOS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "exchangeable": _exchangeable, "half_equal": _half_equal, "skewed": _skewed}


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
        for name in (*SCENARIOS, "effect"):
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
    found = [mean_difference(one, resamples) for one in differences]
    return [proven(bounds, p) for (_, bounds, _, _), p in zip(found, holm([f[2] for f in found]))]


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
        else:
            hits += any(signs(SCENARIOS[name](rng, shape), resamples))
    return hits / studies


def _wilson(share: float, studies: int) -> tuple[float, float, float]:
    from statsmodels.stats.proportion import proportion_confint

    return share, *proportion_confint(round(share * studies), studies, method="wilson")


if __name__ == "__main__":
    sys.exit(exit_code("verdicts", main))
