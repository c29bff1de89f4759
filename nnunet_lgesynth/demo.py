"""The main job on the phantom: convert, plan, train, fit, inject, compare; nothing is faked.

Every step is the command a user would run, with the `demo` preset and small nnU-Net networks. All
of nnU-Net's folders lie inside the output folder; a second run goes on where the first stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from nnunet_lgesynth.benchmark.run import benchmark
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.discovery import add_to_environment
from nnunet_lgesynth.files import make_folder, write_json
from nnunet_lgesynth.phantom import write_phantom

__all__ = ["DATASET", "prepare", "run_demo", "run_step"]

DATASET, PATIENTS, SEED = 901, 30, 0
PIXELS, SPACING = 64, 1.6
PROCESSES = 2                     # that preprocess
BATCH_SIZE = 12
FEATURES = [16, 32, 64, 128]      # of the U-Net's stages; nnU-Net would plan 32 to 512
EPOCHS, ITERATIONS = 15, 44
WARM_UP = 32                      # scarred cases; so short a training is over before a pool fills
ARMS = ("real", "paint", "lgesynth")
# nnUNetv2_plan_and_preprocess by this interpreter, wherever its scripts were installed
PREPROCESS = ("from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import "
              "plan_and_preprocess_entry; plan_and_preprocess_entry()")


def run_demo(out: Path, log: Callable[[str], None], *, patients: int = PATIENTS,
             arms: Sequence[str] = ARMS, epochs: int = EPOCHS,
             iterations: int = ITERATIONS) -> dict:
    """Run the demo in `out`; returns the benchmark's outcome (verdict, report, ...)."""
    begin = perf_counter()
    out = Path(out).resolve()
    prepare(out, patients, log)
    log(f"Training and comparing {', '.join(arms)}, {epochs} epochs x {iterations} iterations "
        f"each; logs in {out / 'benchmark' / 'logs'}")
    outcome = benchmark(str(DATASET), "2d", arms, [0], 1, out / "benchmark", preset="demo",
                        device="cpu", epochs=epochs, iterations=iterations, warm_up=WARM_UP)
    log(f"Done in {(perf_counter() - begin) / 60:.1f} min")
    return outcome


def prepare(out: Path, patients: int, log: Callable[[str], None]) -> None:
    """Make the phantom dataset in `out` ready to train: drawn, converted, planned, preprocessed.

    nnU-Net's variables of this process then point into `out` (an absolute path).
    """
    _set_environment(out)
    name = f"Dataset{DATASET}_EMIDECROI"
    if not (out / "phantom").is_dir():
        log(f"Drawing {patients} phantom patients")
        write_phantom(out / "phantom", n_patients=patients, seed=SEED)
    if not (out / "nnUNet_raw" / name).is_dir():
        run_step(out, "convert", sys.executable, "-m", "nnunet_lgesynth", "convert", "emidec", "-i",
                 str(out / "phantom"), "-d", str(DATASET), "--roi", str(PIXELS), "--spacing",
                 str(SPACING))
    if not (out / "nnUNet_preprocessed" / name / "nnUNetPlans_2d").is_dir():
        log("Planning and preprocessing with nnU-Net")
        run_step(out, "preprocess", sys.executable, "-c", PREPROCESS, "-d", str(DATASET), "-c",
                 "2d", "-np", str(PROCESSES), "-npfp", str(PROCESSES))
        _shrink(out / "nnUNet_preprocessed" / name / "nnUNetPlans.json")


def _set_environment(out: Path) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(make_folder(out / variable))
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    os.environ["nnUNet_compile"] = "f"
    add_to_environment()


def _shrink(path: Path) -> None:
    """Make the planned network small enough for two CPU cores, as nnU-Net's docs allow by hand."""
    plans = json.loads(path.read_text())
    settings = plans["configurations"]["2d"]
    stages = len(FEATURES)
    network = settings["architecture"]["arch_kwargs"]
    network.update(n_stages=stages, features_per_stage=FEATURES,
                   n_conv_per_stage_decoder=network["n_conv_per_stage_decoder"][:stages - 1],
                   **{key: network[key][:stages]
                      for key in ("kernel_sizes", "strides", "n_conv_per_stage")})
    settings["batch_size"] = BATCH_SIZE
    write_json(path, plans)


def run_step(out: Path, name: str, *command: str) -> None:
    """Run a command, its output in `out`/<name>.log; `UserError` with its last line if it fails."""
    log = out / f"{name}.log"
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"The step '{name}' failed ({last[0]}); see {log}")
