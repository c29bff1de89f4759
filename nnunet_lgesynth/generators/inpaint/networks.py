"""The inpainter's networks: VAE, U-Net, ControlNet, text encoder, noise schedule.

    x (B, 1, P, P) --VAE--> z (B, C, p, p), p = P / vae_factor, zero mean, unit variance
    z_t = a_t z + s_t e,  a_t^2 + s_t^2 = 1;  the U-Net predicts v = a_t e - s_t z (v-prediction)

The schedule is Stable Diffusion's "scaled linear" one of 1000 steps. The ControlNet reads the
control map at P x P and shrinks it as often as the VAE does. Attention sits at the lower
resolutions only, so that the networks run on a CPU. All weights are stored by `save_pretrained`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from torch import nn

from nnunet_lgesynth.config import FitConfig
from nnunet_lgesynth.generators.condition import CONTROL_CHANNELS
from nnunet_lgesynth.generators.inpaint.text import TextEncoder, build_text

__all__ = ["TRAIN_TIMESTEPS", "Networks", "build", "build_controlnet"]

TRAIN_TIMESTEPS = 1000
MAX_GROUPS = 32
CONTROL_WIDTHS = (16, 32, 64)     # of the ControlNet's condition, one more a halving


@dataclass(eq=False)
class Networks:
    """All networks of one inpainter; images (B, 1, P, P) are normalised, latents (B, C, p, p)."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    text: TextEncoder
    scheduler: DPMSolverMultistepScheduler

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae, "unet": self.unet, "controlnet": self.controlnet,
                "text": self.text}

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def factor(self) -> int:
        """How often a latent pixel repeats along a crop's side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def to(self, device: torch.device | str) -> Networks:
        for module in self.modules.values():
            module.to(device)
        return self

    def train_only(self, *trained: nn.Module) -> None:
        """Let gradients reach `trained` alone; everything else is frozen."""
        for module in self.modules.values():
            module.requires_grad_(False).eval()
        for module in trained:
            module.requires_grad_(True).train()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled mean latents of images."""
        mean = self.vae.encode(images).latent_dist.mean
        return (mean - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of scaled latents, differentiable."""
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + config.shift_factor).sample

    def set_latent_scale(self, shift: float, scale: float) -> None:
        """Store the latents' mean and 1 / standard deviation in the VAE's config."""
        self.vae.register_to_config(shift_factor=shift, scaling_factor=scale)

    def signal(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a_t, s_t), each (B, 1, 1, 1), one per sample."""
        power = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
        power = power[:, None, None, None]
        return power.sqrt(), (1 - power).sqrt()

    def snr(self) -> torch.Tensor:
        """Signal to noise power of each of the 1000 timesteps."""
        power = self.scheduler.alphas_cumprod
        return power / (1 - power)

    def velocity(self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor,
                 control: torch.Tensor | None = None) -> torch.Tensor:
        """Predicted v for noisy latents; control (B, 4, P, P), None for the U-Net alone."""
        extra = {}
        if control is not None:
            down, middle = self.controlnet(latents, timesteps, encoder_hidden_states=text,
                                           controlnet_cond=control, return_dict=False)
            extra = {"down_block_additional_residuals": down,
                     "mid_block_additional_residual": middle}
        return self.unet(latents, timesteps, encoder_hidden_states=text, **extra).sample

    def save(self, folder: Path) -> None:
        """Write vae/, unet/, controlnet/, text_encoder/ and scheduler/ below `folder`."""
        for name in ("vae", "unet", "controlnet"):
            self.modules[name].save_pretrained(folder / name, safe_serialization=True)
        self.text.save(folder / "text_encoder")
        self.scheduler.save_pretrained(folder / "scheduler")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str) -> Networks:
        """Read what `save` wrote; frozen, on `device`."""
        kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel,
                 "controlnet": ControlNetModel}
        loaded = {name: kind.from_pretrained(folder / name, local_files_only=True,
                                             use_safetensors=True, low_cpu_mem_usage=False)
                  for name, kind in kinds.items()}
        networks = cls(**loaded, text=TextEncoder.load(folder / "text_encoder"),
                       scheduler=DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler"))
        networks.train_only()
        return networks.to(device)


def build(config: FitConfig) -> Networks:
    """Untrained networks (the text encoder excepted, where `config` names one), on the CPU."""
    network = config.network
    levels = len(network.vae_channels)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=network.vae_channels,
        layers_per_block=network.layers_per_block, latent_channels=network.latent_channels,
        norm_num_groups=_groups(network.vae_channels), sample_size=config.crop_pixels,
        scaling_factor=1.0, shift_factor=0.0, mid_block_add_attention=False, force_upcast=False)
    lower = len(network.unet_channels) - 1
    unet = UNet2DConditionModel(
        sample_size=config.crop_pixels // network.vae_factor,
        in_channels=network.latent_channels, out_channels=network.latent_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * lower),
        up_block_types=(*("CrossAttnUpBlock2D",) * lower, "UpBlock2D"),
        block_out_channels=network.unet_channels, layers_per_block=network.layers_per_block,
        # diffusers takes the NUMBER of heads under this name
        attention_head_dim=_heads(network.unet_channels, network.attention_head_dim),
        norm_num_groups=_groups(network.unet_channels), cross_attention_dim=network.text_width)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS, beta_start=0.00085, beta_end=0.012,
        beta_schedule="scaled_linear", prediction_type="v_prediction", solver_order=2,
        algorithm_type="dpmsolver++", timestep_spacing="trailing", final_sigmas_type="zero")
    return Networks(vae, unet, build_controlnet(unet, network.vae_factor), build_text(config),
                    scheduler)


def build_controlnet(unet: UNet2DConditionModel, factor: int) -> ControlNetModel:
    """A ControlNet with a copy of the U-Net's encoder; its condition is shrunk `factor` times."""
    return ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=CONTROL_WIDTHS[:int(math.log2(factor)) + 1],
        conditioning_channels=CONTROL_CHANNELS)


def _groups(channels: Sequence[int]) -> int:
    return math.gcd(MAX_GROUPS, *channels)


def _heads(channels: Sequence[int], width: int) -> tuple[int, ...]:
    return tuple(max(1, c // width) for c in channels)
