"""A long training in miniature: does memory grow, do epochs become slower? `make soak`.

    python -m benchmarks.soak -o soak.json [--dir FOLDER]

On the analytic phantom a real training of 100 short epochs with painted scars, whose pool is full
early and renewed in every epoch. Of each epoch's memory (both processes) and seconds, the slope is
Theil's and Sen's over the epochs after the first tenth, with its 95 % interval, as growth over all
epochs in parts of the median. Exit code 1 where an interval lies above the bound: then it grows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

from benchmarks import exit_code, result_file, testset
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.demo import DATASET, prepare
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["grows", "main", "rows_of", "train"]

EPOCHS, ITERATIONS, PATIENTS = 100, 20, 16
TRAINER = "nnUNetTrainerLGEPaint"
SETTLED = 0.1                # of the epochs, until caches and the pool are filled
MOST_GROWTH = 0.02           # of the median over all epochs, beyond what the interval allows for
MEASURES = {"host_memory": ("memory_mb", "memory_synthesis_mb"), "epoch": ("seconds_epoch",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, help="where to train (default: a temporary folder)")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("-o", type=result_file, required=True, help="JSON file of the rows")
    arguments = parser.parse_args()
    if arguments.epochs < 20 or arguments.iterations < 1:
        raise UserError("--epochs must be at least 20 and --iterations 1, not "
                        f"{arguments.epochs} and {arguments.iterations}.")
    with nullcontext(arguments.dir) if arguments.dir else tempfile.TemporaryDirectory() as folder:
        epochs = train(Path(folder).resolve(), arguments.epochs, arguments.iterations)
    about = {"benchmark": "soak", "arm": TRAINER, "dataset": "phantom", "seeds": [0],
             "split": f"{arguments.epochs} epochs of {arguments.iterations} iterations",
             "preset": None, "device": machine("cpu"), "versions": versions(),
             "command": testset.command_line("benchmarks.soak"), "date": date.today().isoformat()}
    rows = rows_of(epochs, about)
    write_json(arguments.o, rows)
    for row in rows:
        print(f"{row['metric']:24} {row['value']} ({row['low']}, {row['high']}) {row['unit']}")
    for metric in grows(rows):
        print(f"soak: {metric} is above {MOST_GROWTH}", file=sys.stderr)
    return 1 if grows(rows) else 0


def train(folder: Path, epochs: int, iterations: int) -> list[dict]:
    """Train for real in `folder`; returns the rows of `lgesynth.jsonl`."""
    prepare(folder, PATIENTS, print)
    command = [sys.executable, "-m", "nnunet_lgesynth", "train", str(DATASET), "2d", "0", "-tr",
               TRAINER, "-device", "cpu", "--epochs", str(epochs), "--iterations", str(iterations),
               "--seed", "0", "--warm-up", "8"]
    log = folder / "soak.log"
    with open(log, "w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False,
                              env=dict(os.environ)).returncode
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"The training ended with exit code {code} ({''.join(last)}); see {log}.")
    path = next((folder / "nnUNet_results").glob(f"*/{TRAINER}__*/fold_0/lgesynth.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(epochs: Sequence[dict], about: dict) -> list[dict]:
    """Growth and median of each measure; and what the pool went through meanwhile."""
    settled = list(epochs)[int(SETTLED * len(epochs)):]
    at, rows = np.array([e["epoch"] for e in settled]), []
    for name, parts in MEASURES.items():
        values = np.array([sum(e[p] for p in parts) for e in settled], float)
        median = float(np.median(values))
        slope, _, low, high = theilslopes(values, at, 0.95)
        growth = [len(epochs) * s / median for s in (slope, low, high)]
        rows += [number_row(about, f"{name}_growth", *growth, n=len(settled)),
                 number_row(about, f"{name}_p50", median, values.min(), values.max(),
                            n=len(settled), unit="s" if name == "epoch" else "MiB")]
    return [*rows,
            number_row(about, "injected_fraction", np.mean([e["injected_fraction"]
                                                            for e in settled]), n=len(settled)),
            number_row(about, "synthesis_share", np.mean([e["synthesis_share"] for e in settled]),
                       n=len(settled)),
            number_row(about, "drafted", sum(e["drafted"] for e in settled), n=len(settled),
                       unit="scar slices")]


def grows(rows: Sequence[dict]) -> list[str]:
    """The measures whose growth is certain and more than the bound."""
    return [r["metric"] for r in rows if r["metric"].endswith("_growth")
            and r["low"] > 0 and r["value"] > MOST_GROWTH]


if __name__ == "__main__":
    sys.exit(exit_code("soak", main))
