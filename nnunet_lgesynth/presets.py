"""The settings of fits that have a name, one row a preset, and names for variants of them."""

from __future__ import annotations

import dataclasses
import re

from nnunet_lgesynth.config import FitConfig, NetworkConfig, UserError

__all__ = ["PRESETS", "limited", "named_preset", "preset_flags", "seeded"]

_TINY = NetworkConfig((16, 32), 4, (32, 64), 1, 16, 32, 1)
_SMALL = NetworkConfig((), 4, (48, 96, 96), 1, 32, 64, 2)
_LARGE = NetworkConfig((64, 128), 4, (128, 256, 384), 2, 64, 128, 4)

# measured by `python -m benchmarks.generator`; sizes and steps are chosen on EMIDEC ROI fold 4
PRESETS: dict[str, FitConfig] = {c.preset: c for c in (
    #         name       nets    crop              steps of vae, unet, controlnet, reward
    FitConfig("demo",    _TINY,  crop_pixels=48, crop_mm=1.6, batch_size=8, vae_steps=200,
              unet_steps=250, controlnet_steps=500, reward_steps=20, learning_rate=5e-4,
              sampler_steps=4, guidance_scale=1.0, save_every=100),
    FitConfig("roi-cpu", _SMALL, crop_pixels=64, batch_size=16, vae_steps=0, unet_steps=2000,
              controlnet_steps=1500, reward_steps=200, learning_rate=8e-4,
              reward_learning_rate=5e-5, reward_last_steps=2, reward_blend=0.75, sampler_steps=4,
              guidance_scale=1.0),
    FitConfig("gpu-2d",  _LARGE, crop_pixels=96, batch_size=64, vae_steps=20000, unet_steps=40000,
              controlnet_steps=40000, reward_steps=4000, learning_rate=1e-4, guidance_scale=1.0,
              save_every=1000),
)}

# What the parts of roi-cpu bring: each lacks or changes one of them. Fit roi-cpu-plain first and
# share its networks by `lgesynth fit --preset roi-cpu-... --start FOLDER`; see docs/samples.md
_ABLATIONS = {
    "plain": {"reward_steps": 0},                       # a ControlNet without reward
    "no-caption": {"captions": "none"},
    "constant-caption": {"captions": "constant"},
    "mask": {"outline": "mask"},                        # instead of the edge map
    "random-prior": {"prior": "ellipsoid"},             # instead of the anatomical one
    "no-healthy": {"healthy_share": 0.0},               # no healthy re-inpaintings
    "own-texture": {"texture_mm": 0.0},                 # the model's texture, not the source's
    "all-noise": {"reward_min_snr": 0.0},               # reward on real slices at all noise levels
    "half-reward": {"reward_blend": 0.5},               # less of the reward's change kept
    "whole-reward": {"reward_blend": 1.0},              # all of it
    "drawn-core": {"level_cores": False},               # a core as bright as the networks draw it
    # as until cores were looked at: rewarded like the scar around them, and left as drawn
    "core-as-scar": {"reward_core": "scar", "level_cores": False},
}
PRESETS |= {f"roi-cpu-{name}": dataclasses.replace(
    PRESETS["roi-cpu"], preset=f"roi-cpu-{name}", **changes)
    for name, changes in _ABLATIONS.items()}


def seeded(config: FitConfig, seed: int) -> FitConfig:
    """The preset with another seed, under a name of its own: `roi-cpu-seed1`; 0 is the preset's."""
    if not 0 <= seed < 2 ** 31:
        raise UserError(f"The seed must lie in 0..{2 ** 31 - 1}, not {seed}.")
    if seed == config.seed:
        return config
    return dataclasses.replace(config, seed=seed, preset=f"{config.preset}-seed{seed}")


def limited(config: FitConfig, patients: int | None) -> FitConfig:
    """The preset for so many of the fold's patients, under a name of its own: `roi-cpu-n20`;
    None leaves it as it is."""
    if patients is None:
        return config
    return dataclasses.replace(config, patients=patients, preset=f"{config.preset}-n{patients}")


VARIED = re.compile(r"(?P<name>.+?)(-n(?P<patients>\d+))?(-seed(?P<seed>\d+))?")


def named_preset(preset: str) -> FitConfig | None:
    """The config of this name, also of `<preset>-n<patients>-seed<n>`; None where there is none."""
    told = VARIED.fullmatch(preset)
    if told is None or told["name"] not in PRESETS:
        return None
    patients = told["patients"] and int(told["patients"])
    return seeded(limited(PRESETS[told["name"]], patients), int(told["seed"] or 0))


def preset_flags(preset: str) -> str:
    """The flags of `lgesynth fit` that give a config of this name."""
    told = VARIED.fullmatch(preset)
    return f"--preset {told['name']}" + "".join(
        f" --{flag} {told[flag]}" for flag in ("patients", "seed") if told[flag])
