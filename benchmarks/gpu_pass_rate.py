"""Whether drafts in half precision pass the quality control as often as those in float32.

Everything is made on the spot, each step as a user would: analytic patients are converted and
preprocessed by nnU-Net, a small real-only nnU-Net becomes the judge, a generator is fitted to it
with a share of its preset's steps, and a test set is drawn for the validation patients. Then
`benchmarks.generator` measures the generator in both precisions: pass rate, control errors,
seconds a draft and seconds an accepted draft. `float32` is PyTorch's own, in which convolutions on
CUDA round to TF32. The fitted generator's drafts are also compared across devices and precisions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks import testset
from benchmarks.drafts import requests_of
from benchmarks.generator import Bench
from benchmarks.gpu_drafts import FULL_PRECISION, differences
from benchmarks.gpu_sizes import Check, precision
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.demo import DATASET, prepare, run_step
from nnunet_lgesynth.generators.inpaint.sample import Inpainter
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.pool.generator import fit_generator, judge_of

__all__ = ["compare", "pass_rate"]

PLANS, CONFIGURATION, FOLD = "nnUNetPlans", "2d", 0
JUDGE = "nnUNetTrainerLGEReal"
WORKERS = 8                   # of nnU-Net, at most
AGREED = 16                   # requests whose drafts are compared between devices


def pass_rate(check: Check) -> Iterator[dict]:
    """Make dataset, judge and generator; then measure it in both precisions."""
    with TemporaryDirectory() as name:
        out = Path(name).resolve()
        for what, make in (("dataset", _dataset), ("judge", _judge), ("generator", _generator)):
            print(f"Making the {what}", flush=True)
            begin = perf_counter()
            folder = make(check, out)
            yield number_row(_here(check, what), "seconds_to_make", perf_counter() - begin, n=1,
                             unit="s")
        fold = Fold.open(DATASET, CONFIGURATION, FOLD)
        yield from compare(check, fold, folder, judge_of(folder, fold, check.device))


def _dataset(check: Check, out: Path) -> None:
    workers = str(min(WORKERS, max(1, (os.cpu_count() or 2) // 2)))
    for variable in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        os.environ.setdefault(variable, workers)
    prepare(out, check.plan.fold_patients, print)


def _judge(check: Check, out: Path) -> None:
    run_step(out, "judge", sys.executable, "-m", "nnunet_lgesynth", "train", str(DATASET),
             CONFIGURATION, str(FOLD), "-tr", JUDGE, "-device", check.device.type, "--epochs",
             str(check.plan.epochs), "--iterations", str(check.plan.iterations))


def _generator(check: Check, out: Path) -> Path:
    return fit_generator(str(DATASET), CONFIGURATION, FOLD, PLANS, check.plan.fitted, None,
                         check.device.type)


def compare(check: Check, fold: Fold, folder: Path, judge: Segmenter) -> Iterator[dict]:
    """Rows of the fitted generator in `folder`: agreement, then the test set by `judge` in half
    precision (where the device has one) and in float32, and real scars by the same rules."""
    name, half = check.plan.fitted.preset, precision(check.device)
    requests, patients = testset.draw(fold, check.plan.requests), testset.patients(fold)
    here = _here(check, name)
    generator = Inpainter.load(folder, check.device)
    asked = requests_of(requests[:AGREED], patients, generator)
    yield from differences(check, here, generator.networks, generator.config,
                           [a.condition for a in asked])
    bench = Bench(fold, patients, requests, {"own": judge}, {**check.about, "split": here["split"]},
                  looks=False)
    yield from bench.real()
    for precise in dict.fromkeys((half, FULL_PRECISION)):
        # loaded anew, since networks keep the captions they have encoded
        generator = Inpainter.load(folder, check.device)
        generator.half = precise != FULL_PRECISION
        yield from bench.measure(generator, name, f"{name}, {precise}")


def _here(check: Check, arm: str) -> dict:
    config = check.plan.fitted
    steps = "+".join(str(getattr(config, f"{s}_steps"))
                     for s in ("vae", "unet", "controlnet", "reward"))
    return {**check.about, "arm": arm, "preset": config.preset, "split":
            f"validation, fold {FOLD}, generator fitted in {steps} steps"}
