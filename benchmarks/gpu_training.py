"""What drafting and training take of a GPU: peak memory, and seconds a training step.

A step is the fit's own (`train.objective_of`, AdamW, gradient clipping, averaged weights, autocast)
on one batch at hand; `seconds_per_batch_drawn` is what one process needed to make it, which a fit
on CUDA leaves to several. Where the preset's batch does not fit, it is halved until it
does. Memory is what PyTorch has allocated, the weights of all networks included, in 1e9 bytes; a
CPU gives no such row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from benchmarks.gpu_sizes import (
    Check,
    Size,
    attempted,
    conditions_of,
    free,
    precision,
    range_row,
    slices_of,
    timed,
    untrained,
    untrained_judge,
)
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import FitConfig
from nnunet_lgesynth.generators.inpaint.batch import STAGES, Draws
from nnunet_lgesynth.generators.inpaint.sample import paint
from nnunet_lgesynth.generators.inpaint.train import MAX_GRADIENT, accelerator_on, objective_of

__all__ = ["memory"]

HALVINGS = 3


def memory(check: Check) -> Iterator[dict]:
    """Peak memory of drafting; then of a training step of each stage, and its seconds."""
    for size in check.plan.sizes:
        if check.device.type == "cuda":
            yield from _drafting(check, size)
        for stage in STAGES:
            if getattr(size.config, f"{stage}_steps"):
                yield from _stage(check, size, stage)


def _drafting(check: Check, size: Size) -> Iterator[dict]:
    networks = untrained(size.config).to(check.device)
    conditions = conditions_of(check, size, max(size.compared))
    for batch in size.compared:
        here = check.here(precision(check.device), size, f"drafting, batch {batch}")

        def measure(batch=batch, here=here) -> list[dict]:
            free()
            torch.cuda.reset_peak_memory_stats(check.device)
            paint(networks, size.config, conditions[:batch], range(batch), batch_size=batch)
            return _peak(here, check.device)

        yield from attempted(here, "gpu_memory_peak_gb", "GB", measure)


def _stage(check: Check, size: Size, stage: str) -> Iterator[dict]:
    """The preset's batch, or the largest half of it that fits."""
    most = size.config.batch_size
    for batch in (most >> k for k in range(HALVINGS + 1) if most >> k):
        here = check.here(precision(check.device), size, f"training of {stage}, batch {batch}")

        def measure(batch=batch, here=here) -> list[dict]:
            return _steps(check, here, size, stage, batch)

        rows = attempted(here, "seconds_per_training_step", "s", measure)
        yield from rows
        if rows[0]["value"] is not None:
            return


def _steps(check: Check, here: dict, size: Size, stage: str, batch: int) -> list[dict]:
    config = replace(size.config, batch_size=batch)
    slices = replace(slices_of(size.config, check.plan.patients), config=config)
    networks = untrained(config).to(check.device)
    begin = perf_counter()
    draw = Draws(slices, stage, networks.snr())[0]
    drawn = perf_counter() - begin
    judge = untrained_judge(slices.fold, check.device) if stage == "reward" else None
    objective = objective_of(stage, networks, config, judge, slices.fold.info.roles.scars)
    step = _step(objective, config, check.device)
    free()
    if check.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(check.device)
    repeats = check.plan.repeats
    found, _ = timed(lambda: step(draw), check.device, repeats, warm_up=min(2, repeats))
    rows = [range_row(here, "seconds_per_training_step", found, "s"),
            number_row(here, "seconds_per_batch_drawn", drawn, n=1, unit="s, one CPU process")]
    return rows + (_peak(here, check.device) if check.device.type == "cuda" else [])


def _step(objective: nn.Module, config: FitConfig,
          device: torch.device) -> Callable[[tuple], float]:
    """A training step as `train.fit` takes it; returns the loss."""
    accelerator = accelerator_on(device)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=config.learning_rate)
    average = EMAModel(objective.parameters(), decay=config.ema_decay)
    average.to(device)
    model, optimizer = accelerator.prepare(objective, optimizer)

    def step(draw: tuple) -> float:
        loss = model(*(batch.to(device) for batch in draw))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(objective.parameters(), MAX_GRADIENT)
        optimizer.step()
        optimizer.zero_grad()
        average.step(objective.parameters())
        return float(loss.detach())

    return step


def _peak(here: dict, device: torch.device) -> list[dict]:
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    return [number_row(here, "gpu_memory_peak_gb", peak, n=1, unit="GB")]
