"""Fit the inpainter on one fold's training cases: one flat loop over the stages.

    prior        real scars measured, prior.json
    vae          crops -> latents and back; then the latents' scale
    unet         latent diffusion of whole crops, with the small text encoder
    controlnet   repaint scarred regions and, as often, healthy wall; all else frozen
    reward       ControlNet fine-tuning by a frozen nnU-Net, see `tune`; skipped without one

A stage is an objective: a module whose parameters are trained and whose forward gives the loss of
one draw. The average of the weights over the steps is what a stage leaves to the next; the reward
leaves weights between those it found and those, `reward_blend` of the way (WiSE-FT, arXiv
2109.01903): drafts keep their realism longer than they lose what the reward gave. Every
`save_every` steps the state is saved in one rename, and since batch k depends on the seed and k
alone, a resumed fit goes on as if it had never stopped. config.json comes last: a folder that has
it is fitted.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from time import monotonic

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from nnunet_lgesynth import __version__
from nnunet_lgesynth.config import FitConfig, UserError, config_hash
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.generators.fitted import RECORD, is_fitted
from nnunet_lgesynth.generators.inpaint.batch import STAGES, Draws
from nnunet_lgesynth.generators.inpaint.data import SliceSet
from nnunet_lgesynth.generators.inpaint.networks import Networks, build, build_controlnet
from nnunet_lgesynth.generators.inpaint.objectives import DiffusionObjective, VaeObjective
from nnunet_lgesynth.generators.inpaint.progress import (
    Progress,
    draw_picture,
    write_checkpoint,
)
from nnunet_lgesynth.generators.inpaint.state import (
    identity_of,
    read_finished,
    read_state,
    refuse_existing,
    restore_weights,
    state_of,
    take_shared,
)
from nnunet_lgesynth.generators.inpaint.text import build_text
from nnunet_lgesynth.generators.inpaint.tune import RewardObjective
from nnunet_lgesynth.generators.subject import measure_prior, read_subjects
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.precision import half_precision
from nnunet_lgesynth.processes import alone

__all__ = ["accelerator_on", "check", "fit", "leave", "objective_of"]

WARM_UP = 0.05                # share of a stage's steps with a rising rate; then a cosine to 10 %
FLOOR = 0.1
MAX_GRADIENT = 1.0
ROW_EVERY = 10                # steps a row of metrics.json
LOADER_WORKERS = 8            # on CUDA; a CPU fit makes its batches itself


def objective_of(stage: str, networks: Networks, config: FitConfig, reward: Segmenter | None,
                 scars: tuple[int, ...]) -> nn.Module:
    """The stage's objective, with gradients enabled for what it trains and nothing else; `scars`
    are the labels that mean scar."""
    if stage == "reward":
        objective: nn.Module = RewardObjective(networks, config, reward, scars)
    elif stage == "vae":
        objective = VaeObjective(networks)
    else:
        objective = DiffusionObjective(networks, control=stage == "controlnet")
    networks.train_only(*objective.trained)
    return objective


def fit(fold: Fold, config: FitConfig, folder: str | Path, device: str | torch.device,
        reward: Segmenter | None = None, resume: bool = False, start: Path | None = None,
        progress: Callable[[str, int, float], None] | None = None) -> dict:
    """Fit into `folder`; returns what config.json says.

    Parameters
    ----------
    reward : frozen nnU-Net of the same fold; without one the reward stage is skipped.
    resume : go on where an interrupted fit stopped; a finished fit is returned as it is.
    start : fitted folder whose VAE, U-Net and text encoder are taken instead of fitting them, and
        its ControlNet where that would come out the same.
    progress : called as (stage, steps done, loss) after every step.
    """
    folder = Path(folder)
    if resume and is_fitted(folder):
        return read_finished(folder, identity_of(fold, config, reward, start))
    refuse_existing(folder, resume)
    if reward is not None:
        reward.check_fold(fold)
    first = os.environ.get("RANK", "0") == "0"             # of those that accelerate starts
    try:
        with alone(folder, "fit") if first else nullcontext():
            return _fit(fold, config, folder, torch.device(device), reward, start, progress)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The fit in {folder} stopped ({error}); if the disk is full or not "
                        "writable, mend that and go on with --resume.") from error


def _fit(fold: Fold, config: FitConfig, folder: Path, device: torch.device,
         reward: Segmenter | None, start: Path | None, progress) -> dict:
    accelerator = accelerator_on(device)
    identity = identity_of(fold, config, reward, start)
    reward = reward and reward.to(accelerator.device)
    state = read_state(folder, identity)
    torch.manual_seed(config.seed)
    networks = build(config).to(accelerator.device)
    folder.mkdir(parents=True, exist_ok=True)
    record = Progress(folder, state.get("rows", []), state.get("minutes", {}))
    subjects = read_subjects(fold, fold.train)
    prior = measure_prior(subjects, fold, config.prior)
    slices = SliceSet.of(fold, config, prior, subjects)
    if accelerator.is_main_process:
        write_json(folder / "prior.json", prior.as_dict())
        record.log(f"{len(subjects)} training cases, {len(slices.real)} ring slices, "
                   f"{len(slices.scarred)} of them scarred, {len(prior.records)} scars in the "
                   f"prior; device {accelerator.device}")
    done = state.get("done", [])
    if state:
        restore_weights(networks, state)
    elif start is not None:
        done = take_shared(networks, config, fold, start)
    for stage in _stages(config, reward):
        if stage in done:
            continue
        begun = state if state.get("stage") == stage else {}
        if stage == "unet" and not begun:
            _measure_latents(networks, slices)
        if stage == "controlnet" and not begun:
            torch.manual_seed(config.seed)
            networks.controlnet = build_controlnet(networks.unet, networks.factor).to(
                accelerator.device)
        objective = objective_of(stage, networks, config, reward, fold.info.roles.scars)
        rate = config.reward_learning_rate if stage == "reward" else config.learning_rate
        optimizer = torch.optim.AdamW(objective.parameters(), lr=rate, weight_decay=0.01)
        average = EMAModel(objective.parameters(), decay=config.ema_decay)
        blend = config.reward_blend if stage == "reward" else 1.0
        origin = [p.clone() for p in average.shadow_params] if blend < 1 else []
        origin = begun.get("origin", origin)
        model, optimizer = accelerator.prepare(objective, optimizer)
        if begun:
            optimizer.load_state_dict(begun["optimizer"])
            average.load_state_dict(begun["average"])
        average.to(accelerator.device)
        draws = Draws(slices, stage, networks.snr(), accelerator.process_index)
        first, before, clock = begun.get("step", 0), record.minutes.get(stage, 0.0), monotonic()
        bar = tqdm(_loader(draws, first, accelerator.device), desc=f"Fitting {stage}",
                   initial=first, total=len(draws), unit="step",
                   disable=not accelerator.is_main_process)
        for step, draw in enumerate(bar, first + 1):
            _set_rate(optimizer, rate, step / len(draws))
            loss = model(*(batch.to(accelerator.device) for batch in draw))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(objective.parameters(), MAX_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
            average.step(objective.parameters())
            value = _finite(float(loss.detach()), stage, step)
            record.minutes[stage] = before + (monotonic() - clock) / 60
            record.add(value)
            bar.set_postfix(loss=f"{value:.4f}")
            last = step == len(draws)
            if accelerator.is_main_process and (step % ROW_EVERY == 0 or last):
                record.row(stage, step)
            if accelerator.is_main_process and step % config.save_every == 0 and not last:
                write_checkpoint(folder, state_of(identity, networks, record, done, stage, step,
                                                optimizer, average, origin))
                _picture(folder, networks, config, slices, record, stage, average, objective)
            if progress is not None:
                progress(stage, step, value)
        leave(objective, average, origin, blend)
        networks.train_only()
        done = [*done, stage]
        if accelerator.is_main_process:
            write_checkpoint(folder, state_of(identity, networks, record, done))
            draw_picture(folder / "progress.png", networks, config, slices, record.rows, stage)
        accelerator.free_memory()
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return {}
    return _finish(folder, fold, config, networks, record, identity)


@torch.no_grad()
def leave(objective: nn.Module, average: EMAModel, origin: list[torch.Tensor],
          blend: float) -> None:
    """Give the objective's parameters the weights that its stage leaves: the average over the
    steps, or `blend` of the way there from those it began with."""
    average.copy_to(objective.parameters())
    if blend < 1:
        for weight, before in zip(objective.parameters(), origin, strict=True):
            weight.lerp_(before.to(weight.device), 1 - blend)


def check(fold: Fold, config: FitConfig, folder: Path, reward: Segmenter | None,
          resume: bool, start: Path | None = None) -> None:
    """Raise `UserError` for what `fit` would refuse in its first minute; writes nothing."""
    refuse_existing(folder, resume)
    read_state(folder, identity_of(fold, config, reward, start))
    build_text(config)
    if start is not None:
        take_shared(build(config), config, fold, start)


def accelerator_on(device: torch.device) -> Accelerator:
    """What a fit on this device trains with: its process, and bfloat16 where it has that. (float16
    would need a scale of the gradients, which a resumed fit would have to know.)"""
    precision = "bf16" if half_precision(device) == torch.bfloat16 else "no"
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def _stages(config: FitConfig, reward: Segmenter | None) -> list[str]:
    return [s for s in STAGES if getattr(config, f"{s}_steps") > 0
            and (s != "reward" or reward is not None)]


def _loader(draws: Draws, first: int, device: torch.device) -> DataLoader:
    workers = min(LOADER_WORKERS, (os.cpu_count() or 2) // 2) if device.type == "cuda" else 0
    return DataLoader(draws, batch_size=None, sampler=range(first, len(draws)),
                      num_workers=workers)


def _set_rate(optimizer, rate: float, share: float) -> None:
    if share < WARM_UP:
        factor = share / WARM_UP
    else:
        turn = math.pi * (share - WARM_UP) / (1 - WARM_UP)
        factor = FLOOR + (1 - FLOOR) * (1 + math.cos(turn)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate * factor


def _finite(loss: float, stage: str, step: int) -> float:
    if not math.isfinite(loss):
        raise UserError(f"The loss of stage {stage} is {loss} at step {step}; lower learning_rate "
                        "and fit anew.")
    return loss


@torch.no_grad()
def _measure_latents(networks: Networks, slices: SliceSet) -> None:
    channels = networks.unet.config.in_channels
    networks.set_latent_scale([0.0] * channels, [1.0] * channels)
    latents = torch.cat([networks.encode(torch.from_numpy(item.condition.source)[None, None]
                                         .to(networks.device)).float() for item in slices.real])
    networks.set_latent_scale(latents.mean((0, 2, 3)).tolist(), latents.std((0, 2, 3)).tolist())


def _picture(folder: Path, networks: Networks, config: FitConfig, slices: SliceSet,
             record: Progress, stage: str, average: EMAModel, objective: nn.Module) -> None:
    """progress.png in the middle of a stage, by the averaged weights."""
    average.store(objective.parameters())
    average.copy_to(objective.parameters())
    networks.train_only()
    draw_picture(folder / "progress.png", networks, config, slices, record.rows, stage)
    average.restore(objective.parameters())
    networks.train_only(*objective.trained)


def _finish(folder: Path, fold: Fold, config: FitConfig, networks: Networks, record: Progress,
            identity: dict) -> dict:
    networks.save(folder)
    result = {"format": 1, "hash": _hash(folder, config), **identity, "val": list(fold.val),
              "dataset": fold.dataset, "plans_name": fold.plans_name,
              "configuration": fold.configuration, "fold": fold.fold, "prior": config.prior,
              "version": __version__,
              "minutes": {k: round(v, 2) for k, v in record.minutes.items()}}
    record.log(f"fitted, generator {result['hash']}")
    write_json(folder / RECORD, result)
    shutil.rmtree(folder / "state", ignore_errors=True)
    return result


def _hash(folder: Path, config: FitConfig) -> str:
    digest = sha256(config_hash(config).encode())
    for path in sorted(folder.glob("*/*.safetensors")):
        digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
