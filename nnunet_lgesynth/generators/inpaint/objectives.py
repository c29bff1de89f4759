"""What the first three stages minimise: each objective is a module whose parameters are trained and
whose forward gives the scalar loss of one batch. (The reward's objective is in `tune`.)

    VAE         mean |decode(encode(x)) - x| + KL_WEIGHT * KL a latent value
    diffusion   mean (v_predicted - v)^2, v = a_t e - s_t z; with a ControlNet the repainted region
                counts 1 + REGION_WEIGHT times
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nnunet_lgesynth.generators.inpaint.batch import Batch
from nnunet_lgesynth.generators.inpaint.networks import Networks

__all__ = ["DiffusionObjective", "VaeObjective", "diffusion_loss"]

KL_WEIGHT = 1e-4
REGION_WEIGHT = 4.0


class VaeObjective(nn.Module):
    """L1 reconstruction and a light KL term."""

    def __init__(self, networks: Networks):
        super().__init__()
        self.trained = nn.ModuleList([networks.vae])

    def forward(self, batch: Batch) -> torch.Tensor:
        vae = self.trained[0]
        posterior = vae.encode(batch.image).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * batch.noise[:, 0]).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return (decoded - batch.image).abs().mean() + KL_WEIGHT * divergence


class DiffusionObjective(nn.Module):
    """v-prediction, by the U-Net and its text encoder or by the ControlNet alone."""

    def __init__(self, networks: Networks, control: bool):
        super().__init__()
        self.networks, self.control = networks, control
        parts = [networks.controlnet] if control else [networks.unet, networks.text.learnable]
        self.trained = nn.ModuleList(parts)

    def forward(self, batch: Batch) -> torch.Tensor:
        return diffusion_loss(self.networks, batch, self.control)


def diffusion_loss(networks: Networks, batch: Batch, control: bool) -> torch.Tensor:
    """Mean squared error of v; with control, the repainted region counts 1 + REGION_WEIGHT."""
    with torch.no_grad():
        clean = networks.encode(batch.image).float()
    signal, sigma = networks.signal(batch.timesteps)
    noisy = signal * clean + sigma * batch.noise[:, 0]
    target = signal * batch.noise[:, 0] - sigma * clean
    text = networks.text.encode(batch.captions)
    v = networks.velocity(noisy, batch.timesteps, text, batch.control if control else None)
    error = (v.float() - target).square()
    if not control:
        return error.mean()
    weight = 1 + REGION_WEIGHT * F.max_pool2d(batch.region, networks.factor)
    return (weight * error).mean() / weight.mean()
