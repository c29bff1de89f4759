"""Drafting on a GPU: how fast, by which settings, and how far from a CPU's drafts.

    throughput   seconds a draft by batch, from conditions to drafts as `sample.paint` makes them
                 (decoding included) in the device's half precision; then float32 and channels_last
    compile      the same with torch.compile, beside the plain networks at the same batch
    agreement    the same seeds on both devices in float32, and half precision against float32.
                 PyTorch lets convolutions round float32 to TF32 on CUDA: that is its own row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.gpu_sizes import (
    Check,
    Size,
    attempted,
    conditions_of,
    free,
    precision,
    range_row,
    timed,
    untrained,
)
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import FitConfig
from nnunet_lgesynth.generators.condition import Condition
from nnunet_lgesynth.generators.inpaint.networks import Networks
from nnunet_lgesynth.generators.inpaint.sample import paint

__all__ = ["agreement", "compiled", "differences", "throughput"]

FULL_PRECISION = "float32"
COMPILE_S = 75                # a compilation is not begun with less time left
COMPILED_WARM_UP = 3          # compiles, records the CUDA graph, replays it
UNIT = "normalised intensity"


class Drafting:
    """One size's drafting, timed; it remembers medians, so that variants are told as ratios."""

    def __init__(self, check: Check, size: Size):
        self.check, self.size = check, size
        self.networks = untrained(size.config).to(check.device)
        self.conditions = conditions_of(check, size, max(size.batches))
        self.plain = precision(check.device)
        self.medians: dict[tuple[str, int], float] = {}

    def paint(self, batch: int, half: bool = True) -> list[np.ndarray]:
        return paint(self.networks, self.size.config, self.conditions[:batch], range(batch),
                     batch_size=batch, half=half)

    def rows(self, arm: str, batch: int, half: bool = True, warm_up: int = 1) -> list[dict]:
        """Seconds a draft, and how many times as fast as the plain networks."""
        here = self.check.here(arm, self.size, f"batch {batch}")

        def measure() -> list[dict]:
            found, begun = timed(lambda: self.paint(batch, half), self.check.device,
                                 self.check.plan.repeats, warm_up)
            median = self.medians[arm, batch] = float(np.median(found))
            rows = [range_row(here, "seconds_per_draft", found / batch, "s")]
            plain = self.medians.get((self.plain, batch))
            if arm != self.plain and plain:
                rows.append(number_row(here, "speed_ratio", plain / median, n=len(found),
                                       unit=f"times as fast as {self.plain}"))
            if warm_up > 1:
                rows.append(number_row(here, "seconds_of_warm_up", begun, n=1,
                                       unit="s, compilation included"))
            return rows

        return attempted(here, "seconds_per_draft", "s", measure)


def throughput(check: Check) -> Iterator[dict]:
    """Seconds a draft by size, batch and setting."""
    for size in check.plan.sizes:
        drafting = Drafting(check, size)
        plain = drafting.plain
        for batch in size.batches:
            yield from drafting.rows(plain, batch)
        if plain != FULL_PRECISION:
            yield from drafting.rows(FULL_PRECISION, size.compared[0], half=False)
        for name in ("vae", "unet", "controlnet"):
            drafting.networks.modules[name].to(memory_format=torch.channels_last)
        for batch in size.compared:
            yield from drafting.rows(f"{plain}, channels_last", batch)
        del drafting
        free()


def compiled(check: Check) -> Iterator[dict]:
    """U-Net and ControlNet as one compiled function; each compilation beside the plain networks."""
    for number, settings in check.plan.compiled:
        size, batch = check.plan.sizes[number], check.plan.sizes[number].compared[0]
        name = " ".join(f"{k} {v}" for k, v in settings.items())
        arm = f"{precision(check.device)}, torch.compile ({name})"
        if check.left < COMPILE_S:
            here = check.here(arm, size, f"batch {batch}; not begun: little time was left")
            yield number_row(here, "seconds_per_draft", None, n=0, unit="s")
            continue
        drafting = Drafting(check, size)
        yield from drafting.rows(drafting.plain, batch)
        networks = drafting.networks
        networks.velocity = torch.compile(networks.velocity, dynamic=False, **settings)
        yield from drafting.rows(arm, batch, warm_up=COMPILED_WARM_UP)
        del drafting, networks
        torch.compiler.reset()
        free()


def agreement(check: Check) -> Iterator[dict]:
    """Drafts of untrained networks across devices and precisions."""
    for size in check.plan.sizes:
        here = check.here(f"{check.device.type} against cpu", size, "untrained networks")

        def measure(size=size, here=here) -> list[dict]:
            return differences(check, here, untrained(size.config), size.config,
                               conditions_of(check, size, size.agreed))

        yield from attempted(here, "draft_difference_max", UNIT, measure)


def differences(check: Check, here: dict, networks: Networks, config: FitConfig,
                conditions: Sequence[Condition]) -> list[dict]:
    """Largest and root mean square difference of pixels between drafts from the same seeds; and
    the CPU's drafts' standard deviation, to see them against. `networks` end on the device."""
    device, half = check.device, precision(check.device)

    def drafts(half: bool) -> np.ndarray:
        networks.train_only()           # forgets captions that it encoded in another precision
        return np.stack(paint(networks, config, conditions, range(len(conditions)), half=half)
                        ).astype(float)

    def row(arm: str, metric: str, value: float) -> dict:
        return number_row({**here, "arm": arm}, metric, value, n=len(conditions), unit=UNIT)

    def compared(one: str, other: str, error: np.ndarray) -> list[dict]:
        arm = f"{one} against {other}"
        return [row(arm, "draft_difference_max", np.abs(error).max()),
                row(arm, "draft_difference_rms", np.sqrt((error ** 2).mean()))]

    networks.to("cpu")
    cpu, exact, tf32 = "cpu float32", f"{device.type} float32", f"{device.type} float32 with TF32"
    reference = drafts(False)
    networks.to(device)
    with convolutions_in_tf32(False):
        here_exactly = drafts(False)
    rows = [row(cpu, "draft_spread", reference.std()),
            *compared(exact, cpu, here_exactly - reference)]
    if device.type == "cuda":
        with convolutions_in_tf32(True):
            rows += compared(tf32, exact, drafts(False) - here_exactly)
    if half != FULL_PRECISION:
        rows += compared(f"{device.type} {half}", exact, drafts(True) - here_exactly)
    return rows


@contextmanager
def convolutions_in_tf32(allowed: bool):
    """Whether CUDA convolutions may round float32; matrix products do not, by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
