"""A tiny inpainter configuration, and slices of a tiny fold, for the tests of the inpainter."""

import dataclasses

import torch

from nnunet_lgesynth.config import FitConfig, NetworkConfig
from nnunet_lgesynth.generators.inpaint.data import SliceSet
from nnunet_lgesynth.generators.inpaint.networks import build
from nnunet_lgesynth.generators.inpaint.sample import Inpainter
from nnunet_lgesynth.generators.subject import measure_prior, read_subjects

__all__ = ["haar_config", "tiny_config", "tiny_inpainter", "tiny_slices"]


def tiny_config(vae_factor: int = 2, **changes) -> FitConfig:
    """Crops of 32 pixels, networks of a few thousand weights, three steps a stage."""
    network = NetworkConfig((8,) * (1 if vae_factor == 2 else 2) + (16,), 2, (16, 32), 1, 16, 16, 1)
    config = FitConfig("tiny", network, crop_pixels=32, batch_size=4, vae_steps=3, unet_steps=3,
                       controlnet_steps=3, reward_steps=2, sampler_steps=3, save_every=2)
    return dataclasses.replace(config, **changes)


def haar_config(**changes) -> FitConfig:
    """The same with a Haar wavelet in the VAE's place."""
    network = dataclasses.replace(tiny_config().network, vae_channels=(), latent_channels=4)
    return tiny_config(network=network, vae_steps=0, **changes)


def tiny_slices(fold, config: FitConfig) -> SliceSet:
    subjects = read_subjects(fold, fold.train)
    return SliceSet.of(fold, config, measure_prior(subjects, fold, "sector"), subjects)


def tiny_inpainter(slices: SliceSet) -> Inpainter:
    """One that was never fitted."""
    torch.manual_seed(0)
    networks = build(slices.config)
    for parameter in networks.controlnet.parameters():   # zero where untrained: make it matter
        parameter.data += 0.02 * torch.randn_like(parameter)
    networks.train_only()
    return Inpainter(networks, slices.config, slices.prior, "0" * 12)
