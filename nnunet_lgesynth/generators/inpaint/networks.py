"""The inpainter's networks: VAE, U-Net, ControlNet, text encoder, noise schedule.

    x (B, 1, P, P) --VAE--> z (B, C, p, p), p = P / vae_factor, each channel of zero mean and unit
                            variance; a Haar wavelet, which loses nothing, may stand for the VAE
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
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ConfigMixin,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import register_to_config
from torch import nn

from nnunet_lgesynth.config import FitConfig
from nnunet_lgesynth.generators.condition import CONTROL_CHANNELS
from nnunet_lgesynth.generators.inpaint.text import TextEncoder, build_text

__all__ = ["TRAIN_TIMESTEPS", "HaarWavelet", "Networks", "build", "build_controlnet"]

TRAIN_TIMESTEPS = 1000
MAX_GROUPS = 32
CONTROL_WIDTHS = (16, 32, 64)     # of the ControlNet's condition, one more a halving


class HaarWavelet(nn.Module, ConfigMixin):
    """One level of the orthonormal Haar transform: (B, 1, P, P) <-> (B, 4, P / 2, P / 2), exactly.

    Plain sums, so that autocast leaves them in float32; without weights.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, latents_mean: list | None = None, latents_std: list | None = None):
        super().__init__()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        a, b, c, d = F.pixel_unshuffle(images, 2).unbind(1)
        return torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], 1) / 2

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        a, b, c, d = latents.unbind(1)          # the transform is its own inverse
        return F.pixel_shuffle(torch.stack([a + b + c + d, a - b + c - d, a + b - c - d,
                                            a - b - c + d], 1) / 2, 2)


@dataclass(eq=False)
class Networks:
    """All networks of one inpainter; images (B, 1, P, P) are normalised, latents (B, C, p, p)."""

    vae: AutoencoderKL | HaarWavelet
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
        return 2 if isinstance(self.vae, HaarWavelet) else \
            2 ** (len(self.vae.config.block_out_channels) - 1)

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
        plain = self.vae.encode(images)
        plain = plain if isinstance(self.vae, HaarWavelet) else plain.latent_dist.mean
        mean, std = self._latent_scale(plain)
        return (plain - mean) / std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of scaled latents, differentiable."""
        mean, std = self._latent_scale(latents)
        images = self.vae.decode(latents * std + mean)
        return images if isinstance(self.vae, HaarWavelet) else images.sample

    def set_latent_scale(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Store the latents' mean and standard deviation, one a channel, in the VAE's config."""
        self.vae.register_to_config(latents_mean=list(mean), latents_std=list(std))

    def _latent_scale(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.vae.config
        return tuple(latents.new_tensor(values)[:, None, None]
                     for values in (config.latents_mean, config.latents_std))

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
            if name == "vae" and isinstance(self.vae, HaarWavelet):
                self.vae.save_config(folder / name)
            else:
                self.modules[name].save_pretrained(folder / name, safe_serialization=True)
        self.text.save(folder / "text_encoder")
        self.scheduler.save_pretrained(folder / "scheduler")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str) -> Networks:
        """Read what `save` wrote; frozen, on `device`."""
        kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel,
                 "controlnet": ControlNetModel}
        loaded = {}
        if HaarWavelet.load_config(folder / "vae")["_class_name"] == HaarWavelet.__name__:
            kinds.pop("vae")
            loaded["vae"] = HaarWavelet.from_config(HaarWavelet.load_config(folder / "vae"))
        loaded |= {name: kind.from_pretrained(folder / name, local_files_only=True,
                                              use_safetensors=True, low_cpu_mem_usage=False)
                   for name, kind in kinds.items()}
        networks = cls(**loaded, text=TextEncoder.load(folder / "text_encoder"),
                       scheduler=DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler"))
        networks.train_only()
        return networks.to(device)


def build(config: FitConfig) -> Networks:
    """Untrained networks (the text encoder excepted, where `config` names one), on the CPU."""
    network = config.network
    vae = _build_vae(config) if network.vae_channels else HaarWavelet()
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
        algorithm_type="sde-dpmsolver++", timestep_spacing="trailing", final_sigmas_type="zero")
    networks = Networks(vae, unet, build_controlnet(unet, network.vae_factor), build_text(config),
                        scheduler)
    networks.set_latent_scale(*([value] * network.latent_channels for value in (0.0, 1.0)))
    return networks


def _build_vae(config: FitConfig) -> AutoencoderKL:
    network, levels = config.network, len(config.network.vae_channels)
    return AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=network.vae_channels,
        layers_per_block=network.layers_per_block, latent_channels=network.latent_channels,
        norm_num_groups=_groups(network.vae_channels), sample_size=config.crop_pixels,
        mid_block_add_attention=False, force_upcast=False)


def build_controlnet(unet: UNet2DConditionModel, factor: int) -> ControlNetModel:
    """A ControlNet with a copy of the U-Net's encoder; its condition is shrunk `factor` times."""
    return ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=CONTROL_WIDTHS[:int(math.log2(factor)) + 1],
        conditioning_channels=CONTROL_CHANNELS)


def _groups(channels: Sequence[int]) -> int:
    return math.gcd(MAX_GROUPS, *channels)


def _heads(channels: Sequence[int], width: int) -> tuple[int, ...]:
    return tuple(max(1, c // width) for c in channels)
