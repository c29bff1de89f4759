"""Laws of the inpainter's networks: resolutions, schedule, and what is stored."""

import dataclasses

import pytest
import torch
from tiny_inpaint import haar_config, tiny_config

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.generators.inpaint.networks import (
    HaarWavelet,
    Networks,
    build,
    build_controlnet,
)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return build(tiny_config())


@pytest.mark.parametrize("factor", [2, 4])
def test_vae_and_control_shrink_by_the_same_factor(factor):
    networks = build(tiny_config(factor))
    assert networks.factor == factor
    images = torch.randn(2, 1, 32, 32)
    latents = networks.encode(images)
    assert latents.shape == (2, 2, 32 // factor, 32 // factor)
    assert networks.decode(latents).shape == images.shape
    embedded = networks.controlnet.controlnet_cond_embedding(torch.randn(2, 4, 32, 32))
    assert embedded.shape[2:] == latents.shape[2:]
    assert len(networks.controlnet.config.conditioning_embedding_out_channels) == 1 + factor // 2


def test_another_vae_factor_is_refused():
    with pytest.raises(UserError, match="shrink by 2 or 4"):
        tiny_config(vae_factor=2, network=type(tiny_config().network)(
            (8,), 2, (16, 32), 1, 16, 16, 1))


def test_the_haar_wavelet_keeps_everything_and_its_energy():
    wavelet, images = HaarWavelet(), torch.randn(3, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        latents = wavelet.encode(images)
        torch.testing.assert_close(wavelet.decode(latents), images)
    assert latents.shape == (3, 4, 8, 8) and latents.dtype == torch.float32
    torch.testing.assert_close(latents.square().sum(), images.square().sum())
    flat = wavelet.encode(torch.ones(1, 1, 4, 4))
    assert (flat[:, 0] == 2).all() and (flat[:, 1:] == 0).all()


def test_a_wavelet_is_refused_settings_of_a_vae():
    network = haar_config().network
    with pytest.raises(UserError, match="4 latent channels, not 2"):
        dataclasses.replace(network, latent_channels=2)
    with pytest.raises(UserError, match="no VAE to train in 3 steps; set vae_steps to 0"):
        tiny_config(network=network)


def test_a_new_controlnet_changes_nothing_until_it_is_trained(networks):
    networks.controlnet = build_controlnet(networks.unet, networks.factor)
    latents, steps = torch.randn(2, 2, 16, 16), torch.tensor([3, 700])
    text = networks.text.encode(["no enhancement", ""])
    with torch.no_grad():
        alone = networks.velocity(latents, steps, text)
        controlled = networks.velocity(latents, steps, text, torch.randn(2, 4, 32, 32))
    torch.testing.assert_close(controlled, alone)


def test_clean_latents_follow_from_noise_and_v_per_sample(networks):
    clean, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    signal, sigma = networks.signal(torch.tensor([0, 400, 999]))
    noisy, v = signal * clean + sigma * noise, signal * noise - sigma * clean
    torch.testing.assert_close(signal * noisy - sigma * v, clean, rtol=1e-4, atol=1e-4)
    assert (networks.snr().diff() < 0).all() and networks.snr()[-1] > 0


def test_attention_is_at_the_lower_resolutions_only(networks):
    assert not hasattr(networks.unet.down_blocks[0], "attentions")
    assert not hasattr(networks.unet.up_blocks[-1], "attentions")
    assert hasattr(networks.unet.down_blocks[-1], "attentions")


def test_what_is_saved_is_what_is_loaded(networks, tmp_path):
    networks.set_latent_scale([0.25, -1.0], [1.5, 0.5])
    networks.save(tmp_path)
    loaded = Networks.load(tmp_path, "cpu")
    folders = {"vae", "unet", "controlnet", "text_encoder", "scheduler"}
    assert {p.name for p in tmp_path.iterdir()} == folders
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    images = torch.randn(2, 1, 32, 32)
    networks.train_only()
    for name, module in networks.modules.items():
        other = loaded.modules[name].state_dict()
        assert all(torch.equal(v, other[k]) for k, v in module.state_dict().items()), name
        assert not any(p.requires_grad for p in loaded.modules[name].parameters())
    assert torch.equal(networks.encode(images), loaded.encode(images))
    assert loaded.scheduler.config.prediction_type == "v_prediction"
