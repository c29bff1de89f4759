"""The reward: the ControlNet learns to paint what a frozen nnU-Net recognises as what was asked.

    total = L_diffusion + reward_weight * (L_real + L_drawn) / 2

The recipe is ControlNet++'s (arXiv 2404.07987) as LGESynthNet uses it, without its easy input:
    real   scarred slices, noised to a signal to noise power of at least `reward_min_snr`; the
           clean latents follow in one step from the predicted v, each sample with its own a_t, s_t
    drawn  scar-free slices under a mask from the prior (some to stay healthy), through the real
           sampler, with gradient in its last `reward_last_steps` steps. No true scar is visible
           there, so only the control map can tell where it belongs.
Both are decoded with gradient, brought to nnU-Net's intensities and pasted through the feather as
in use. The segmenter's log-probabilities (float32) are scored sample by sample, as the quality
control judges them:
    cross-entropy   inside the feather against the labels as asked, every class alike, infarct and
                    no-reflow each as a class of its own
    1 - soft Dice   of scar and no-reflow together, inside the feather
    leak            expected pixels of scar outside the feather where the labels have none, as a
                    share of `LEAK_PIXELS`
"""

from __future__ import annotations

import torch
from torch import nn

from nnunet_lgesynth.config import FitConfig
from nnunet_lgesynth.generators.condition import paste
from nnunet_lgesynth.generators.inpaint.batch import Batch, Canvas
from nnunet_lgesynth.generators.inpaint.networks import Networks
from nnunet_lgesynth.generators.inpaint.objectives import diffusion_loss
from nnunet_lgesynth.generators.inpaint.sample import denoise
from nnunet_lgesynth.judge.segmenter import Segmenter

__all__ = ["RewardObjective", "label_loss", "pasted"]

LEAK_PIXELS = 20.0            # four times what the quality control tolerates


class RewardObjective(nn.Module):
    """Diffusion loss plus reward; only the ControlNet among its parameters."""

    def __init__(self, networks: Networks, config: FitConfig, segmenter: Segmenter,
                 scars: tuple[int, ...]):
        super().__init__()
        self.trained = nn.ModuleList([networks.controlnet])
        self.networks, self.config, self.segmenter = networks, config, segmenter
        self.scars = scars

    def forward(self, diffusion: Batch, real: Batch, drawn: Batch) -> torch.Tensor:
        """Scalar loss of one draw of the reward stage."""
        rewards = (self.reward(self.one_step(real), real.canvas)
                   + self.reward(self.sampled(drawn), drawn.canvas)) / 2
        return (diffusion_loss(self.networks, diffusion, control=True)
                + self.config.reward_weight * rewards)

    def one_step(self, batch: Batch) -> torch.Tensor:
        """Latents that one prediction from the noised real slice takes for clean."""
        with torch.no_grad():
            clean = self.networks.encode(batch.image).float()
            text = self.networks.text.encode(batch.captions)
        signal, sigma = self.networks.signal(batch.timesteps)
        noisy = signal * clean + sigma * batch.noise
        v = self.networks.velocity(noisy, batch.timesteps, text, batch.control).float()
        return signal * noisy - sigma * v

    def sampled(self, batch: Batch) -> torch.Tensor:
        """Latents from the sampler; its last steps carry the gradient."""
        *_, latents = denoise(self.networks, batch, self.config, self.config.reward_last_steps)
        return latents

    def reward(self, latents: torch.Tensor, canvas: Canvas) -> torch.Tensor:
        """`label_loss` of the segmenter on the pasted drafts."""
        drafts = self.networks.decode(latents)
        # its network may run in bfloat16; in float16 log-probabilities have become NaN
        half = torch.get_autocast_dtype(latents.device.type) == torch.bfloat16
        with torch.autocast(latents.device.type, dtype=torch.bfloat16,
                            enabled=half and torch.is_autocast_enabled(latents.device.type)):
            scores = self.segmenter.log_probabilities(pasted(drafts.float(), canvas))
        return label_loss(scores.float(), canvas, self.segmenter.labels, self.scars)


def pasted(drafts: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """The segmenter's images (B, C, H, W) with normalised drafts (B, 1, P, P) in them."""
    lge = slice(canvas.lge, canvas.lge + 1)
    painted = paste(canvas.image[:, lge], drafts * canvas.scale + canvas.level, canvas.weight,
                    canvas.crops)
    return torch.cat([canvas.image[:, :canvas.lge], painted, canvas.image[:, canvas.lge + 1:]], 1)


def label_loss(log_probabilities: torch.Tensor, canvas: Canvas, labels: tuple[int, ...],
               scars: tuple[int, ...]) -> torch.Tensor:
    """Mean over the samples of what the module's text lists.

    log_probabilities (B, L, H, W) in the order of `labels`; label values that the segmenter lacks
    are left out. `scars` are the labels that mean scar.
    """
    scarred = [i for i, value in enumerate(labels) if value in scars]
    scar = log_probabilities[:, scarred].exp().sum(1)                           # (B, H, W)
    asked = torch.isin(canvas.target, torch.tensor(scars, device=canvas.target.device))
    inside = canvas.weight[:, 0] > 0
    return torch.stack([
        _cross_entropy(scores, target[here], labels, here) + _leak(p, wanted, here)
        + (_lost_dice(p[here], wanted[here].float()) if (wanted & here).any() else 0)
        for scores, p, target, wanted, here in
        zip(log_probabilities, scar, canvas.target, asked, inside)]).mean()


def _cross_entropy(scores: torch.Tensor, target: torch.Tensor, labels: tuple[int, ...],
                   here: torch.Tensor) -> torch.Tensor:
    inner = scores[:, here]                                                     # (L, n)
    terms = [-inner[i, target == value] for i, value in enumerate(labels)]
    return torch.stack([t.mean() for t in terms if len(t)]).mean()


def _lost_dice(scar: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return 1 - 2 * (scar * wanted).sum() / (scar.sum() + wanted.sum())


def _leak(scar: torch.Tensor, wanted: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    return scar[~here & ~wanted].sum() / LEAK_PIXELS
