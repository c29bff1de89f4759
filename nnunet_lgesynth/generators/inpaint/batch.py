"""Batches of the inpainter: conditions as tensors, and the draw behind batch k of each stage.

A `Batch` is what the sampler reads; its `timesteps` and its `canvas` (the slice as the reward's
segmenter sees it) are there in training only. Batch k of a stage depends on (seed, stage, k,
process) alone, so that an interrupted fit goes on with the very batches it would have seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunet_lgesynth.anatomy.caption import NO_ENHANCEMENT
from nnunet_lgesynth.config import FitConfig
from nnunet_lgesynth.generators.condition import Condition, Crop, control_map
from nnunet_lgesynth.generators.inpaint.data import Item, SliceSet, as_healthy, augment, canvas
from nnunet_lgesynth.generators.inpaint.networks import TRAIN_TIMESTEPS
from nnunet_lgesynth.generators.inpaint.text import NULL_CAPTION

__all__ = ["STAGES", "Batch", "Canvas", "Draws", "collate", "healthy_twin"]

CONSTANT_CAPTION = "enhancement"
STAGES = ("vae", "unet", "controlnet", "reward")


@dataclass(frozen=True, eq=False)
class Canvas:
    """Slices in a segmenter's window, and how a draft gets there."""

    image: torch.Tensor           # (B, C, H, W), nnU-Net's intensities
    weight: torch.Tensor          # (B, 1, H, W), the feather
    target: torch.Tensor          # (B, H, W) int64, label values as asked
    level: torch.Tensor           # (B, 1, 1, 1): value = normalised * scale + level
    scale: torch.Tensor
    crops: tuple[Crop, ...]
    lge: int                      # channel the draft is pasted into


@dataclass(frozen=True, eq=False)
class Batch:
    """B conditions on their crops."""

    image: torch.Tensor           # (B, 1, P, P), normalised source
    control: torch.Tensor         # (B, 4, P, P), see `control_map`
    region: torch.Tensor          # (B, 1, P, P), 1 where repainted
    captions: tuple[str, ...]
    noise: torch.Tensor           # (B, N, C, p, p); the sampler takes one before each step
    timesteps: torch.Tensor       # (B,) int64
    canvas: Canvas | None = None

    def to(self, device: torch.device | str) -> Batch:
        return _moved(self, device)

    @property
    def unguided(self) -> tuple[str, ...]:
        """The captions of the null condition."""
        return (NULL_CAPTION,) * len(self.captions)


def collate(conditions: Sequence[Condition], config: FitConfig, noise: torch.Tensor,
            timesteps: torch.Tensor | None = None, kept: Sequence[bool] | None = None) -> Batch:
    """Conditions as one batch on the CPU; only `kept` captions are told, by default all."""
    def stack(arrays):
        return torch.from_numpy(np.stack(arrays).astype(np.float32))

    told = [_told(c, config) for c in conditions]
    texts = told if kept is None else [t if k else NULL_CAPTION for t, k in zip(told, kept)]
    if timesteps is None:
        timesteps = torch.zeros(len(conditions), dtype=torch.long)
    return Batch(stack([c.source[None] for c in conditions]),
                 stack([control_map(c, config.outline) for c in conditions]),
                 stack([c.region[None] for c in conditions]), tuple(texts), noise, timesteps)


def _told(condition: Condition, config: FitConfig) -> str:
    return {"full": condition.caption, "constant": CONSTANT_CAPTION,
            "none": NULL_CAPTION}[config.captions]


def healthy_twin(batch: Batch, config: FitConfig) -> Batch:
    """The same regions with the same noise, to be painted as healthy wall."""
    control = batch.control.clone()
    control[:, [0, 3]] = 0                        # outline and contrasts, see `control_map`
    caption = NO_ENHANCEMENT if config.captions == "full" else None
    captions = tuple(t if caption is None or t == NULL_CAPTION else caption
                     for t in batch.captions)
    return dataclasses.replace(batch, control=control, captions=captions)


class Draws(Dataset):
    """Batches of one stage by step: `draws[k]` depends on (seed, stage, k, process) alone.

    A stage's draw is a tuple of batches; the reward's is (diffusion, real, drawn).
    """

    def __init__(self, slices: SliceSet, stage: str, snr: torch.Tensor, process: int = 0):
        self.slices, self.stage, self.process = slices, stage, process
        above = int((snr >= slices.config.reward_min_snr).sum())
        self.reward_timesteps = max(above, 1)     # SNR falls with the timestep

    def __len__(self) -> int:
        return getattr(self.slices.config, f"{self.stage}_steps")

    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        config, slices = self.slices.config, self.slices
        rng = np.random.default_rng([config.seed, 2, STAGES.index(self.stage), step, self.process])
        if self.stage in ("vae", "unet"):
            return (self._learn(_choose(slices.real, config.batch_size, rng), rng),)
        diffusion = self._learn(self._repaint(rng), rng)
        if self.stage == "controlnet":
            return (diffusion,)
        half = max(1, config.batch_size // 2)
        real = _choose(slices.scarred, half, rng)
        return (diffusion, self._judge(real, rng, self.reward_timesteps),
                self._judge(self._mixed(slices.asked, half, rng), rng, TRAIN_TIMESTEPS))

    def _repaint(self, rng: np.random.Generator) -> list[Item]:
        """Scarred slices and, `healthy_share` of them, scar-free regions that stay healthy."""
        size, share = self.slices.config.batch_size, self.slices.config.healthy_share
        healthy = round(size * share)
        return [*map(as_healthy, _choose(self.slices.asked, healthy, rng)),
                *_choose(self.slices.scarred, size - healthy, rng)]

    def _mixed(self, items: Sequence[Item], size: int, rng: np.random.Generator) -> list[Item]:
        share = self.slices.config.healthy_share
        return [as_healthy(item) if rng.random() < share else item
                for item in _choose(items, size, rng)]

    def _learn(self, items: Sequence[Item], rng: np.random.Generator) -> Batch:
        """Augmented, with some captions dropped."""
        conditions = [augment(item.condition, rng) for item in items]
        config = self.slices.config
        kept = rng.random(len(items)) >= config.caption_dropout
        return collate(conditions, config, self._noise(len(items), 1, rng),
                       torch.from_numpy(rng.integers(TRAIN_TIMESTEPS, size=len(items))), kept)

    def _judge(self, items: Sequence[Item], rng: np.random.Generator, below: int) -> Batch:
        """As they are, with the canvas that the reward pastes into."""
        batch = collate([item.condition for item in items], self.slices.config,
                        self._noise(len(items), self.slices.config.sampler_steps, rng),
                        torch.from_numpy(rng.integers(below, size=len(items))))
        return dataclasses.replace(batch, canvas=_canvas(items, self.slices))

    def _noise(self, size: int, steps: int, rng: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(
            (size, steps, *latent_shape(self.slices.config)), dtype=np.float32))


def latent_shape(config: FitConfig) -> tuple[int, int, int]:
    """(C, p, p) of one crop's latents."""
    side = config.crop_pixels // config.network.vae_factor
    return config.network.latent_channels, side, side


def _choose(items: Sequence[Item], size: int, rng: np.random.Generator) -> list[Item]:
    return [items[i] for i in rng.integers(len(items), size=size)]


def _canvas(items: Sequence[Item], slices: SliceSet) -> Canvas:
    parts = [canvas(item, slices.fold) for item in items]
    image, weight, target = (torch.from_numpy(np.stack([p[name] for p in parts]))
                             for name in ("image", "weight", "target"))
    level, scale = (torch.tensor([getattr(i.condition.intensities, name) for i in items])
                    [:, None, None, None] for name in ("level", "scale"))
    return Canvas(image, weight[:, None], target, level, scale,
                  tuple(p["crop"] for p in parts), items[0].subject.channel)


def _moved(value, device):
    changes = {}
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if isinstance(part, (torch.Tensor, Canvas)):
            changes[field.name] = part.to(device) if isinstance(part, torch.Tensor) \
                else _moved(part, device)
    return dataclasses.replace(value, **changes)
