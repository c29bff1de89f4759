"""What the plugin costs a training: stock nnU-Net against one of its trainers, epoch by epoch.

    python -m benchmarks.overhead -d 116 -f 0 -device cpu --generator FOLD_FOLDER -o overhead.json

Both trainers live in this process and train in turn, one epoch each, so that what else the machine
does falls on both. While the stock one trains, the other's process sleeps and earns no credit.
Synthesis never rests: the pool is small, full from the start, and renewed as fast as the budget
allows. An epoch is its training iterations and what sums it up; validation is the same code in
both.

    epoch_overhead_p50       median over pairs of (plugin's epoch / stock's) - 1, bootstrapped
    iteration_*              seconds, by arm
    late_iterations          share of iterations above twice the stock's 99th percentile
    accepted_per_second      slices accepted by the quality control, a second of training
    synthesis_share          computing of the process over that of the training's cores
    host_memory_growth_mb    of both processes, from the second epoch to the last
    start_delay              seconds by which the first batch is later than the stock's, with an
                             empty pool
    gpu_memory_extra_gb      peak of the plugin's epochs over the stock's, and the weights of
                             inpainter and judge, which both find there; CUDA only
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import bootstrap

from benchmarks import exit_code, result_file, testset
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.discovery import add_to_environment
from nnunet_lgesynth.files import write_json

__all__ = ["main", "measure", "rows_of"]

ARMS = ("stock", "plugin")
POOL = 8                     # scarred cases; small, so that renewing it never ends
LATE = 2.0                   # times the stock's 99th percentile


def main() -> int | None:
    parser = testset.fold_parser(__doc__)
    parser.add_argument("--generator", default="paint", metavar="DIR",
                        help="fold folder of a fitted generator (default: the painter)")
    parser.add_argument("--pairs", type=int, default=12, help="of epochs; the first is not counted")
    parser.add_argument("--iterations", type=int, default=50, help="in an epoch")
    parser.add_argument("--budget", type=float, default=None,
                        help="share of the time for synthesis (default: the trainers')")
    parser.add_argument("--serve", action="store_true",
                        help="run the networks in the training's process on a CPU, too, as on an "
                             "accelerator")
    parser.add_argument("-o", type=result_file, required=True, help="JSON file of the rows")
    arguments = parser.parse_args()
    if arguments.pairs < 3 or arguments.iterations < 1:
        raise UserError("--pairs must be at least 3 and --iterations 1, not "
                        f"{arguments.pairs} and {arguments.iterations}.")
    fold = testset.open_fold(arguments)
    always = patch("nnunet_lgesynth.pool.attach.shares_device", lambda device: True)
    with always if arguments.serve else nullcontext():
        found = measure(fold, arguments.generator, torch.device(arguments.device),
                        arguments.pairs, arguments.iterations, arguments.budget)
    about = {**testset.about("overhead", fold, arguments.device), "preset": found["generator"],
             "split": f"fold {fold.fold}, {arguments.pairs - 1} pairs of epochs of "
                      f"{arguments.iterations} iterations, batch "
                      f"{'x'.join(map(str, found['batch']))}, budget {found['budget']}"
                     + ", networks in the training's process" * found["served"]}
    rows = rows_of(found, about)
    write_json(arguments.o, rows)
    for row in rows:
        print(f"{row['arm']:8} {row['metric']:24} {row['value']} ({row['low']}, {row['high']})")
    return None


def measure(fold: Fold, generator: str, device: torch.device, pairs: int, iterations: int,
            budget: float | None = None) -> dict:
    """Train in turn; returns what was seen, by arm and epoch."""
    if generator != "paint":
        os.environ["LGESYNTH_GENERATOR"] = str(Path(generator).resolve())
    theirs = os.environ["nnUNet_results"]
    with tempfile.TemporaryDirectory() as results:
        try:
            os.environ["nnUNet_results"] = results       # no training of the user's is touched
            first, *others = (_trainer(arm, fold, generator, device, iterations, budget)
                              for arm in ("stock", *ARMS))
        finally:
            os.environ["nnUNet_results"] = theirs        # where the judge may be
        _start(first)                    # what only the first training of a process waits for
        _end_loaders(first)
        return _in_turn(dict(zip(ARMS, others)), generator, device, pairs, iterations)


def _in_turn(trainers: dict, generator: str, device: torch.device, pairs: int,
             iterations: int) -> dict:
    engine = None
    try:
        starts = {arm: _start(trainer) for arm, trainer in trainers.items()}
        engine = trainers["plugin"].engine
        # the pool is full: no training would have waited for that; its drafts are not the epochs'
        delay = starts["plugin"] - engine.epoch_row()["seconds_waited"] - starts["stock"]
        seen = {arm: [] for arm in ARMS}
        for pair in range(pairs):
            for arm in ARMS if pair % 2 == 0 else ARMS[::-1]:
                with engine.asleep() if arm == "stock" else nullcontext():
                    seen[arm].append(_epoch(trainers[arm], device, iterations))
        return {**seen, "delay": delay, "served": engine.server is not None,
                "budget": engine.injection.budget, "cores": engine.order.cores,
                "generator": "paint" if generator == "paint" else Path(generator).parent.name,
                "batch": seen["stock"][0].pop("batch")}
    finally:
        if engine is not None:
            engine.close()
        for trainer in trainers.values():
            _end_loaders(trainer)


def _trainer(arm: str, fold: Fold, generator: str, device: torch.device, iterations: int,
             budget: float | None):
    """One of nnU-Net's trainers, as `nnUNetv2_train` makes it."""
    add_to_environment()
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    name = "nnUNetTrainer" if arm == "stock" else \
        "nnUNetTrainerLGEPaint" if generator == "paint" else "nnUNetTrainerLGESynth"
    trainer = recursive_find_trainer_class_by_name(name)(
        {**fold.plans, "continue_training": False}, fold.configuration, fold.fold,
        fold.dataset_json, device)
    trainer.disable_checkpointing = True
    trainer.num_iterations_per_epoch = iterations
    if arm == "plugin":
        trainer.injection = dataclasses.replace(
            trainer.injection, pool_cases=POOL, warm_up=POOL, refresh_cases=10 ** 6,
            budget=budget or trainer.injection.budget)
    return trainer


def _epoch(trainer, device: torch.device, iterations: int) -> dict:
    """One epoch's training iterations, as `nnUNetTrainer.run_training` has them."""
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs, begin = [], perf_counter()
    for _ in range(iterations):
        last = perf_counter()
        batch = next(trainer.dataloader_train)
        outputs.append(trainer.train_step(batch))        # ends with the loss on the CPU
        seconds.append(perf_counter() - last)
    trainer.on_train_epoch_end(outputs)
    engine = getattr(trainer, "engine", None)
    row = None if engine is None else engine.epoch_row()
    epoch = perf_counter() - begin
    trainer.current_epoch += 1
    return {"epoch": epoch, "iterations": seconds, "row": row, "batch": list(batch["data"].shape),
            "gpu": torch.cuda.max_memory_allocated() if device.type == "cuda" else None}


def _start(trainer) -> float:
    """Begin the training; returns seconds until its first batch was there."""
    begun = perf_counter()
    trainer.on_train_start()
    next(trainer.dataloader_train)
    return perf_counter() - begun


def _end_loaders(trainer) -> None:
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()


def rows_of(found: dict, about: dict) -> list[dict]:
    """The numbers of what `measure` has seen, without the first pair."""
    epochs = {arm: np.array([e["epoch"] for e in found[arm][1:]]) for arm in ARMS}
    steps = {arm: np.concatenate([e["iterations"] for e in found[arm][1:]]) for arm in ARMS}
    plugin = [e["row"] for e in found["plugin"][1:]]
    here = {arm: {**about, "arm": arm} for arm in ARMS}
    ratios = epochs["plugin"] / epochs["stock"] - 1
    interval = bootstrap((ratios,), np.median, rng=0, method="percentile").confidence_interval
    rows = [number_row(here["plugin"], "epoch_overhead_p50", np.median(ratios), *interval,
                       n=len(ratios))]
    for arm in ARMS:
        rows += [number_row(here[arm], "epoch_p50", np.median(epochs[arm]), epochs[arm].min(),
                            epochs[arm].max(), n=len(epochs[arm]), unit="s, lowest to highest"),
                 *(number_row(here[arm], f"iteration_p{p}", np.percentile(steps[arm], p),
                              n=len(steps[arm]), unit="s") for p in (50, 95, 99, 100))]
    late = steps["plugin"] > LATE * np.percentile(steps["stock"], 99)
    seconds = epochs["plugin"].sum()
    rows += [
        number_row(here["plugin"], "epoch_overhead_p99", np.percentile(steps["plugin"], 99) /
                   np.percentile(steps["stock"], 99) - 1, n=len(late)),
        number_row(here["plugin"], "late_iterations", late.mean(), n=len(late)),
        number_row(here["stock"], "late_iterations", np.mean(
            steps["stock"] > LATE * np.percentile(steps["stock"], 99)), n=len(late)),
        number_row(here["plugin"], "synthesis_share", sum(r["seconds_synthesis"] for r in plugin)
                   / seconds / found["cores"], n=len(plugin)),
        *(number_row(here["plugin"], f"{kind}_per_second", sum(r[kind] for r in plugin) / seconds,
                     n=len(plugin), unit="scar slices a second")
          for kind in ("drafted", "accepted")),
        number_row(here["plugin"], "host_memory_growth_mb", sum(
            plugin[-1][k] - plugin[0][k] for k in ("memory_mb", "memory_synthesis_mb")),
            n=len(plugin), unit="MiB"),
        number_row(here["plugin"], "start_delay", found["delay"], n=1, unit="s")]
    if found["stock"][0]["gpu"] is not None:
        peaks = {arm: max(e["gpu"] for e in found[arm][1:]) for arm in ARMS}
        rows.append(number_row(here["plugin"], "gpu_memory_extra_gb",
                               (peaks["plugin"] - peaks["stock"]) / 1e9
                               + max(r["memory_gpu_synthesis_mb"] for r in plugin) * 2 ** 20 / 1e9,
                               n=len(plugin), unit="GB"))
    return rows


if __name__ == "__main__":
    sys.exit(exit_code("overhead", main))
