"""The main job on the phantom: convert, plan, train, fit, inject, compare; nothing is faked.

Every step is the command a user would run, with the `demo` preset and nnU-Net networks planned for
little memory. All of nnU-Net's folders lie inside the output folder; a second run goes on where
the first one stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from nnunet_lgesynth.benchmark.run import benchmark
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.discovery import add_to_environment
from nnunet_lgesynth.phantom import write_phantom

__all__ = ["run_demo"]

DATASET, PATIENTS, SEED = 901, 30, 0
PIXELS, SPACING = 64, 1.6
GPU_MEMORY_GB = 0.35      # plans a network of a few hundred thousand weights
EPOCHS, ITERATIONS = 12, 20
# nnUNetv2_plan_and_preprocess by this interpreter, wherever its scripts were installed
PREPROCESS = ("from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import "
              "plan_and_preprocess_entry; plan_and_preprocess_entry()")


def run_demo(out: Path, log: Callable[[str], None]) -> dict:
    """Run the demo in `out`; returns the benchmark's outcome (verdict, report, ...)."""
    begin = perf_counter()
    out = Path(out).resolve()
    _set_environment(out)
    name = f"Dataset{DATASET}_EMIDECROI"
    if not (out / "phantom").is_dir():
        log(f"Drawing {PATIENTS} phantom patients")
        write_phantom(out / "phantom", n_patients=PATIENTS, seed=SEED)
    if not (out / "nnUNet_raw" / name).is_dir():
        _run(out, "convert", sys.executable, "-m", "nnunet_lgesynth", "convert", "emidec", "-i",
             str(out / "phantom"), "-d", str(DATASET), "--roi", str(PIXELS), "--spacing",
             str(SPACING))
    if not (out / "nnUNet_preprocessed" / name / "nnUNetPlans_2d").is_dir():
        log("Planning and preprocessing with nnU-Net")
        _run(out, "preprocess", sys.executable, "-c", PREPROCESS, "-d", str(DATASET), "-c", "2d",
             "-gpu_memory_target", str(GPU_MEMORY_GB), "-np", "2", "-npfp", "2")
    log(f"Training and comparing three arms, {EPOCHS} epochs x {ITERATIONS} iterations each; "
        f"logs in {out / 'benchmark' / 'logs'}")
    outcome = benchmark(str(DATASET), "2d", ["real", "paint", "lgesynth"], [0], 1,
                        out / "benchmark", plans="nnUNetPlans", preset="demo", device="cpu",
                        epochs=EPOCHS, iterations=ITERATIONS)
    log(f"Done in {(perf_counter() - begin) / 60:.1f} min")
    return outcome


def _set_environment(out: Path) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (out / variable).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(out / variable)
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    os.environ["nnUNet_compile"] = "f"
    add_to_environment()


def _run(out: Path, name: str, *command: str) -> None:
    log = out / f"{name}.log"
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"The demo's step '{name}' failed ({last[0]}); see {log}")
