"""What `benchmarks.gpu_check` measures: sizes, the slices and networks they run on, and rows.

Slices are those of analytic patients, made in memory and z-scored as nnU-Net does. Networks are
untrained, which costs what trained ones cost; layers that are zero at birth get small weights, so
that every branch reaches the draft. A time is the median of its repeats, `low` and `high` their
range. What fails leaves a row without a value, its `split` tells why.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from nnunet_lgesynth.dataset_conversion.Dataset115_EMIDEC import FRAME, LABELS, ROLES

from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import FitConfig, NetworkConfig
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.dataset.roles import DatasetInfo
from nnunet_lgesynth.generators.condition import Condition
from nnunet_lgesynth.generators.inpaint.data import SliceSet
from nnunet_lgesynth.generators.inpaint.networks import Networks, build
from nnunet_lgesynth.generators.subject import Subject, measure_prior
from nnunet_lgesynth.judge.checkpoint import build_network
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.phantom import PATHOLOGICAL, draw_patient, render
from nnunet_lgesynth.precision import half_precision
from nnunet_lgesynth.presets import PRESETS

__all__ = ["FULL", "TINY", "Check", "Plan", "Size", "attempted", "conditions_of", "free",
           "precision", "range_row", "slices_of", "timed", "untrained", "untrained_judge"]

SEED = 0
WEIGHT = 0.02                 # standard deviation where a layer is zero at birth
LEAST, ENOUGH_S = 2, 6.0      # repeats in any case; no more of them after so many seconds
TOLD = 160                    # letters of a failure's reason
FOLDERS = re.compile(r"(?<![\w.])/(\S*/)?")          # in front of a file's name
FEATURES, MOST_FEATURES, BOTTLENECK = 32, 512, 4     # of the U-Net that nnU-Net plans


@dataclass(frozen=True)
class Size:
    """One size of the inpainter; `name` is what its rows call the preset."""

    name: str
    config: FitConfig
    batches: tuple[int, ...]      # drafts at a time
    compared: tuple[int, ...]     # of them, those at which variants are compared
    agreed: int                   # drafts compared between devices; the CPU makes them as well

    def __str__(self) -> str:
        config = self.config
        return (f"{config.crop_pixels} x {config.crop_pixels} pixels, {config.sampler_steps} "
                f"sampler steps, guidance {config.guidance_scale:g}")


@dataclass(frozen=True)
class Plan:
    """How much is measured, and how small."""

    sizes: tuple[Size, ...]
    compiled: tuple[tuple[int, dict], ...]   # (size, arguments of torch.compile), in this order
    repeats: int
    patients: int                 # whose slices in memory are drafted and trained on
    fitted: FitConfig             # the generator of the pass rate; and for it:
    fold_patients: int            # of the dataset that judge and generator learn from
    epochs: int                   # of the judge
    iterations: int
    requests: int                 # drafts that are judged


@dataclass(frozen=True)
class Check:
    """One run: its plan, where it runs, and what is the same in all its rows."""

    plan: Plan
    device: torch.device
    about: dict
    deadline: float               # perf_counter seconds; nothing optional begins near it

    def here(self, arm: str, size: Size, split: str | None = None) -> dict:
        """Where a row of this size comes from."""
        split = f"{size}, {split}" if split else str(size)
        return {**self.about, "arm": arm, "preset": size.name, "split": split}

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - perf_counter()


def scaled(config: FitConfig, share: float) -> FitConfig:
    """The preset with a share of its steps."""
    names = ("vae_steps", "unet_steps", "controlnet_steps", "reward_steps")
    return replace(config, **{n: round(share * getattr(config, n)) for n in names})


LARGE = replace(PRESETS["gpu-2d"], crop_pixels=256)
FULL = Plan(
    sizes=(Size("roi-cpu", PRESETS["roi-cpu"], (1, 16, 64, 256), compared=(16, 64), agreed=16),
           Size("gpu-2d, 256 pixels", LARGE, (1, 16, 64, 256), compared=(16, 64), agreed=2)),
    compiled=((0, {"mode": "reduce-overhead"}), (1, {"mode": "default"}),
              (0, {"mode": "default"}), (1, {"mode": "reduce-overhead"})),
    repeats=5, patients=5, fitted=scaled(PRESETS["roi-cpu"], 0.4), fold_patients=30, epochs=15,
    iterations=50, requests=300)

_TINY = FitConfig("tiny", NetworkConfig((8, 16), 2, (16, 32), 1, 16, 16, 1), crop_pixels=32,
                  batch_size=2, vae_steps=2, unet_steps=2, controlnet_steps=2, reward_steps=1,
                  sampler_steps=2)
TINY = Plan(sizes=(Size("tiny", _TINY, (1, 3), compared=(3,), agreed=2),),
            compiled=((0, {"backend": "eager"}),), repeats=1, patients=2, fitted=_TINY,
            fold_patients=5, epochs=1, iterations=1, requests=4)


def precision(device: torch.device) -> str:
    """The name of what drafts are computed in as the product runs, e.g. bfloat16."""
    return str(half_precision(device) or torch.float32).removeprefix("torch.")


def untrained(config: FitConfig) -> Networks:
    """Frozen networks on the CPU, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        networks = build(config)
        for parameter in networks.controlnet.parameters():
            if not parameter.any():
                parameter.data.normal_(0, WEIGHT)
    networks.train_only()
    return networks


def conditions_of(check: Check, size: Size, n: int) -> list[Condition]:
    """So many conditions of this size's crop; each drawn lesion again where there are fewer."""
    asked = slices_of(size.config, check.plan.patients).asked
    return [asked[k % len(asked)].condition for k in range(n)]


@lru_cache(maxsize=4)
def slices_of(config: FitConfig, patients: int) -> SliceSet:
    """All slices of phantom patients, every third of them normal."""
    cases = [_case(k) for k in range(patients)]
    fold = Fold("phantom", _plans(config.crop_pixels), "2d", 0, Path(), tuple(
        c.identifier for c in cases), (), {"channel_names": {"0": "LGE"}, "labels": LABELS},
        DatasetInfo(ROLES, FRAME))
    subjects = [Subject.of(fold, case) for case in cases]
    return SliceSet.of(fold, config, measure_prior(subjects, fold, config.prior), subjects)


def _case(number: int) -> Case:
    rng = np.random.default_rng([SEED, number])
    pathological = PATHOLOGICAL[number % len(PATHOLOGICAL)]
    image, labels, spacing = render(draw_patient(rng, pathological), rng)
    image = (image - image.mean()) / image.std()
    return Case(f"Case_{number}", image[None], labels[None].astype(np.int16), {}, spacing)


def _plans(pixels: int) -> dict:
    """The part of nnU-Net's plans that a judge of slices of this size is built from."""
    stages = max(2, int(np.log2(pixels / BOTTLENECK)) + 1)
    features = [min(MOST_FEATURES, FEATURES * 2 ** k) for k in range(stages)]
    network = {"n_stages": stages, "features_per_stage": features,
               "conv_op": "torch.nn.modules.conv.Conv2d", "kernel_sizes": [[3, 3]] * stages,
               "strides": [[1, 1]] + [[2, 2]] * (stages - 1), "n_conv_per_stage": [2] * stages,
               "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
               "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
               "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None,
               "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
               "nonlin_kwargs": {"inplace": True}}
    architecture = {"network_class_name": "dynamic_network_architectures.architectures.unet."
                    "PlainConvUNet", "arch_kwargs": network,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}
    return {"dataset_name": "phantom", "plans_name": "nnUNetPlans", "label_manager":
            "LabelManager", "configurations": {"2d": {
                "patch_size": [pixels, pixels], "architecture": architecture}}}


def untrained_judge(fold: Fold, device: torch.device) -> Segmenter:
    """A frozen U-Net as nnU-Net plans it for these slices."""
    network = build_network(fold.plans, "2d", fold.dataset_json, "nnUNetTrainer", Path("judge"))
    return Segmenter(network.requires_grad_(False).eval().to(device), fold.plans,
                     fold.dataset_json, "2d", fold.fold, Path("judge"), "0" * 12, device)


def timed(run: Callable[[], object], device: torch.device, repeats: int,
          warm_up: int = 1) -> tuple[np.ndarray, float]:
    """Seconds of each repeat, and of the warm-up before them."""
    begin = perf_counter()
    for _ in range(warm_up):
        run()
    _synchronise(device)
    begun, found = perf_counter() - begin, []
    while len(found) < min(LEAST, repeats) or (len(found) < repeats and sum(found) < ENOUGH_S):
        begin = perf_counter()
        run()
        _synchronise(device)
        found.append(perf_counter() - begin)
    return np.array(found), begun


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def range_row(here: dict, metric: str, values: np.ndarray, unit: str) -> dict:
    """The median of repeats, and their range."""
    return number_row(here, metric, np.median(values), values.min(), values.max(), n=len(values),
                      unit=f"{unit}, median and range of the repeats")


def attempted(here: dict, metric: str, unit: str, measure: Callable[[], Sequence[dict]]) -> list:
    """The rows of `measure`, or one of no value that tells why there are none."""
    reason = None
    try:
        return list(measure())
    except Exception as error:   # whatever a GPU or a compiler raises is a result here
        reason = told(error)
    finally:
        free()
    return [number_row({**here, "split": f"{here['split']}; failed: {reason}"}, metric, None, n=0,
                       unit=unit)]


def told(error: Exception) -> str:
    """An error in one line, its folders left out."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {FOLDERS.sub('', first)[:TOLD]}"


def free() -> None:
    """Give unused memory back to the GPU, if there is one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
