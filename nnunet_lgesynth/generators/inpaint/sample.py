"""Sampling: from a condition and a seed to a draft, in at most 10 steps of SDE-DPM-Solver++.

`denoise` is the one step loop, for drafts and for the reward. What lies outside the region is
known: after each step its latents are set to the source's, at the noise of that step, so that the
inside is drawn to fit its surroundings.
Guidance contrasts the caption against the empty caption, the control map kept in both: place and
contrast are asked through the control map, and contrasting that as well would overshoot the
contrast that was asked.
Fine texture is the source's own (`render`): the model's would tell what was painted from what was
not. The same noise is also painted as healthy wall; what the source has and that twin lacks, below
`texture_mm`, is added to the draft. Scar borders stay, since the twin has none there.
A no-reflow core is a few pixels wide and drawn nearly as bright as the scar around it, which would
teach nnU-Net no no-reflow; with `level_cores` it is shifted to the contrast that was asked.
The noise of a sample comes from its own seed and batches have one size, so it is the same, bit by
bit, alone and among others. Between batch sizes convolutions and linear layers round differently:
in float32, with `roi-cpu`'s networks, by up to 2e-5 of a range of 7.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler
from safetensors import SafetensorError
from scipy import ndimage

from nnunet_lgesynth.anatomy.priors import Prior
from nnunet_lgesynth.anatomy.scar import NO_REFLOW
from nnunet_lgesynth.config import FitConfig, UserError, from_dict
from nnunet_lgesynth.generators.condition import Condition
from nnunet_lgesynth.generators.fitted import fit_command, read_fitted
from nnunet_lgesynth.generators.inpaint.batch import Batch, collate, healthy_twin, latent_shape
from nnunet_lgesynth.generators.inpaint.networks import Networks
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.precision import autocast

__all__ = ["Inpainter", "denoise", "finish", "paint", "render"]

BATCH = (16, 4)     # on accelerators; on a CPU, where a lesion has but a few slices


class Inpainter:
    """The fitted generator: conditions in, drafts out; see `generators.paint.Painter`.

    `half` False keeps float32 where the device has a faster half precision.
    """

    name = "lgesynth"

    def __init__(self, networks: Networks, config: FitConfig, prior: Prior, hash: str,
                 half: bool = True):
        self.networks, self.config, self.prior, self.hash = networks, config, prior, hash
        self.half = half
        self.pixels, self.mm = config.crop_pixels, config.crop_mm
        self.feather_mm = config.feather_mm

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device) -> Inpainter:
        """Read a fitted `LGESynth_<preset>__<plans>__<configuration>/fold_k` folder."""
        folder = Path(folder)
        record = read_fitted(folder, "config", "hash")
        try:
            prior = Prior.from_dict(json.loads((folder / "prior.json").read_text()))
            config = from_dict(FitConfig, record["config"])
            return cls(Networks.load(folder, device), config, prior, record["hash"])
        except UserError:
            raise
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"The inpainter {folder} is damaged ({error}); delete the folder and "
                            f"run: {fit_command(folder)}") from error

    def drafts(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[np.ndarray]:
        """One normalised draft (P, P) float32 a condition; sample k depends on k alone."""
        return finish(self.drafting(conditions, seeds))

    def drafting(self, conditions: Sequence[Condition], seeds: Sequence[int],
                 batch_size: int | None = None) -> Generator[None, None, list[np.ndarray]]:
        """`drafts` in small steps: it pauses after each pass of U-Net and ControlNet, with gradient
        mode and autocast as the caller has them, and returns the drafts in the end."""
        return _painting(self.networks, self.config, conditions, seeds, batch_size, self.half)

    @property
    def batch_size(self) -> int:
        """So many are drafted at once on its device, by default."""
        return BATCH[self.networks.device.type == "cpu"]


def finish(steps: Generator):
    """Run steps without a pause; returns what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def paint(networks: Networks, config: FitConfig, conditions: Sequence[Condition],
          seeds: Sequence[int], *, batch_size: int | None = None,
          half: bool = True) -> list[np.ndarray]:
    """Drafts (P, P) by these networks as they are now, `batch_size` at a time (default: the
    device's `BATCH`). The last batch is filled up: convolutions round differently in batches of
    another size, and a sample shall be the same, bit by bit, however many are asked for."""
    return finish(_painting(networks, config, conditions, seeds, batch_size, half))


def _painting(networks: Networks, config: FitConfig, conditions: Sequence[Condition],
              seeds: Sequence[int], batch_size: int | None = None,
              half: bool = True) -> Generator[None, None, list[np.ndarray]]:
    size = batch_size or BATCH[networks.device.type == "cpu"]
    asked = list(zip(conditions, seeds))
    result: list[np.ndarray] = []
    for first in range(0, len(asked), size):
        part = asked[first:first + size]
        part += part[:1] * (size - len(part))
        noise = torch.stack([
            torch.randn((config.sampler_steps, *latent_shape(config)),
                        generator=torch.Generator().manual_seed(int(seed)))
            for _, seed in part])
        batch = collate([condition for condition, _ in part], config, noise).to(networks.device)
        images = yield from _without_gradients(_rendering(networks, batch, config),
                                               networks.device, half)
        result.extend(images[:, 0].float().cpu().numpy())
    if not config.level_cores:
        return result[:len(asked)]
    return [_levelled(draft, condition) for draft, (condition, _) in zip(result, asked)]


def _levelled(draft: np.ndarray, condition: Condition) -> np.ndarray:
    """The draft (P, P) with its core's median at the contrast asked; the shift ends as softly as
    the painter's parts do, and like theirs falls short in a core too thin to hold it."""
    core = condition.request == NO_REFLOW
    if not core.any():
        return draft
    share = ndimage.gaussian_filter(core.astype(np.float32), Painter.border_sigma)
    missing = condition.no_reflow_contrast - float(np.median(draft[core]))
    return (draft + missing * share / max(np.median(share[core]), Painter.least_share)).astype(
        np.float32)


def _without_gradients(steps: Generator, device: torch.device, half: bool) -> Generator:
    """The same steps without gradients and with `autocast`; both are left at each pause, since a
    training may go on in between."""
    while True:
        with torch.no_grad(), autocast(device, half):
            try:
                next(steps)
            except StopIteration as end:
                return end.value
        yield


def render(networks: Networks, batch: Batch, config: FitConfig,
           gradient_steps: int = 0) -> torch.Tensor:
    """Drafts (B, 1, P, P), normalised, with the source's fine texture; see the module's text."""
    return finish(_rendering(networks, batch, config, gradient_steps))


def _rendering(networks: Networks, batch: Batch, config: FitConfig,
               gradient_steps: int = 0) -> Generator[torch.Tensor, None, torch.Tensor]:
    for latents in denoise(networks, batch, config, gradient_steps):
        yield latents
    drafts = networks.decode(latents)
    if config.texture_mm == 0:
        return drafts
    twin, healthy = healthy_twin(batch, config), drafts.detach()
    if twin.captions != batch.captions or not torch.equal(twin.control, batch.control):
        for latents in denoise(networks, twin, config):
            yield latents
        with torch.no_grad():
            healthy = networks.decode(latents)
    missing = (batch.image - healthy).float()
    return drafts + missing - _smooth(missing, config.texture_mm / config.crop_mm)


def denoise(networks: Networks, batch: Batch, config: FitConfig,
            gradient_steps: int = 0) -> Iterator[torch.Tensor]:
    """Yield the latents (B, C, p, p) after each step; the last ones are clean.

    The last `gradient_steps` steps build a graph, if gradients are enabled at all.
    """
    scheduler = DPMSolverMultistepScheduler.from_config(networks.scheduler.config)
    scheduler.set_timesteps(config.sampler_steps, device=networks.device)
    with torch.no_grad():
        known = networks.encode(batch.image)
        region = F.max_pool2d(batch.region, networks.factor)
        latents = _blend(networks, batch.noise[:, 0], known, batch.noise[:, 0], region,
                         scheduler.timesteps[0])
    allowed = torch.is_grad_enabled()
    # the last step adds no noise: it ends at clean latents
    following = [*zip(scheduler.timesteps[1:], batch.noise[:, 1:].unbind(1), strict=True),
                 (None, batch.noise[:, 0])]
    for i, (now, (after, noise)) in enumerate(zip(scheduler.timesteps, following)):
        learns = allowed and i >= config.sampler_steps - gradient_steps
        with torch.set_grad_enabled(learns):
            v = _guided_velocity(networks, batch, latents, now, config.guidance_scale)
            latents = scheduler.step(v.float(), now, latents, variance_noise=noise).prev_sample
            latents = _blend(networks, latents, known, noise, region, after)
        yield latents


def _smooth(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images (B, 1, P, P) under a Gaussian of `sigma` pixels, mirrored at the border."""
    reach = min(math.ceil(3 * sigma), images.shape[-1] - 1)
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    with torch.autocast(images.device.type, enabled=False):
        for side in (kernel[..., None], kernel[..., None, :]):
            pad = [reach * (n > 1) for n in (side.shape[3], side.shape[2]) for _ in range(2)]
            images = F.conv2d(F.pad(images, pad, mode="reflect"), side)
    return images


def _guided_velocity(networks: Networks, batch: Batch, latents: torch.Tensor,
                     timestep: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1:
        steps = timestep.expand(len(latents))
        return networks.velocity(latents, steps, networks.text.encode(batch.captions),
                                 batch.control)
    text = networks.text.encode((*batch.captions, *batch.unguided))
    both = networks.velocity(torch.cat([latents] * 2), timestep.expand(2 * len(latents)), text,
                             torch.cat([batch.control] * 2))
    asked, null = both.chunk(2)
    return null + scale * (asked - null)


def _blend(networks: Networks, latents: torch.Tensor, known: torch.Tensor, noise: torch.Tensor,
           region: torch.Tensor, timestep: torch.Tensor | None) -> torch.Tensor:
    """Latents inside the region, the known ones at this timestep's noise outside of it."""
    if timestep is not None:
        signal, sigma = networks.signal(timestep.reshape(1))
        known = signal * known + sigma * noise
    return torch.where(region > 0, latents, known)
