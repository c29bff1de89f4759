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
    cross-entropy   inside the feather against the labels as asked, every class alike, but for
                    no-reflow. The pixels around the scar are left out, here and below: a real scar
                    fades into them
    1 - soft Dice   inside the feather, of the scar around a no-reflow core, and of no-reflow alone
                    where it was asked for. Its gradient fades where the segmenter never finds
                    no-reflow (few do); a cross-entropy of its own would push hardest just there
                    In the core itself scar is neither asked nor refused: few segmenters know
                    no-reflow, and to be found as scar cores would grow as bright as it, so that
                    who trains on them learns no no-reflow at all (`reward_core` "scar" does that)
    leak            log(1 + n / `LEAK_PIXELS`) of the n expected new pixels of scar outside the
                    feather; what the segmenter finds in the untouched slice is not the draft's
                    fault
    contrast        `CONTRAST_WEIGHT` times the middle level of scar and of no-reflow in the draft
                    against what was asked, absolute: a brighter scar is always found more easily
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nnunet_lgesynth.config import FitConfig
from nnunet_lgesynth.generators.condition import paste
from nnunet_lgesynth.generators.inpaint.batch import Batch, Canvas
from nnunet_lgesynth.generators.inpaint.networks import Networks
from nnunet_lgesynth.generators.inpaint.objectives import diffusion_loss
from nnunet_lgesynth.generators.inpaint.sample import render
from nnunet_lgesynth.judge.segmenter import Segmenter

__all__ = ["RewardObjective", "contrast_loss", "label_loss", "pasted"]

LEAK_PIXELS = 5.0             # as many as the quality control tolerates
CONTRAST_WEIGHT = 2.0
BORDER = 1                    # pixels around the asked scar that are nobody's


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
        rewards = (self.reward(self.networks.decode(self.one_step(real)), real)
                   + self.reward(self.sampled(drawn), drawn)) / 2
        return (diffusion_loss(self.networks, diffusion, control=True)
                + self.config.reward_weight * rewards)

    def one_step(self, batch: Batch) -> torch.Tensor:
        """Latents that one prediction from the noised real slice takes for clean."""
        with torch.no_grad():
            clean = self.networks.encode(batch.image).float()
            text = self.networks.text.encode(batch.captions)
        signal, sigma = self.networks.signal(batch.timesteps)
        noisy = signal * clean + sigma * batch.noise[:, 0]
        v = self.networks.velocity(noisy, batch.timesteps, text, batch.control).float()
        return signal * noisy - sigma * v

    def sampled(self, batch: Batch) -> torch.Tensor:
        """Drafts from the sampler; its last steps carry the gradient."""
        return render(self.networks, batch, self.config, self.config.reward_last_steps)

    def reward(self, drafts: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`label_loss` of the segmenter on the pasted drafts (B, 1, P, P), and `contrast_loss`."""
        drafts, canvas = drafts.float(), batch.canvas
        # its network may run in bfloat16; in float16 log-probabilities have become NaN
        half = torch.get_autocast_dtype(drafts.device.type) == torch.bfloat16
        with torch.autocast(drafts.device.type, dtype=torch.bfloat16,
                            enabled=half and torch.is_autocast_enabled(drafts.device.type)):
            scores = self.segmenter.log_probabilities(pasted(drafts, canvas))
            with torch.no_grad():
                before = self.segmenter.log_probabilities(canvas.image)
        return (label_loss(scores, before, canvas, self.segmenter.labels, self.scars,
                           self.config.reward_core)
                + CONTRAST_WEIGHT * contrast_loss(drafts, batch.control))


def pasted(drafts: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """The segmenter's images (B, C, H, W) with normalised drafts (B, 1, P, P) in them."""
    lge = slice(canvas.lge, canvas.lge + 1)
    painted = paste(canvas.image[:, lge], drafts * canvas.scale + canvas.level, canvas.weight,
                    canvas.crops)
    return torch.cat([canvas.image[:, :canvas.lge], painted, canvas.image[:, canvas.lge + 1:]], 1)


def label_loss(scores: torch.Tensor, before: torch.Tensor, canvas: Canvas,
               labels: tuple[int, ...], scars: tuple[int, ...],
               core: str = "own") -> torch.Tensor:
    """Mean over the samples of what the module's text lists; `core` as `FitConfig.reward_core`.

    Log-probabilities (B, L, H, W) in the order of `labels`, of the drafts and of the untouched
    slices; label values that the segmenter lacks are left out. `scars` mean scar, no-reflow last.
    """
    return torch.stack([_sample_loss(*one, labels, scars, core) for one in
                        zip(scores, before, canvas.target, canvas.weight[:, 0] > 0)]).mean()


def contrast_loss(drafts: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
    """Mean over the samples of |draft - asked contrast|, scar and no-reflow alike.

    The draft's level is its interquartile mean there, which unlike the median has a gradient in
    many pixels, and unlike the mean does not ask the blurred border for more than real scars have.

    drafts (B, 1, P, P) normalised; control (B, 4, P, P), whose last map holds the contrasts.
    """
    losses = []
    for draft, asked in zip(drafts[:, 0], control[:, 3]):
        levels = [_middle(draft[asked == c]) - c for c in asked.unique() if c != 0]
        losses.append(torch.stack(levels).abs().mean() if levels else draft.new_zeros(()))
    return torch.stack(losses).mean()


def _middle(values: torch.Tensor) -> torch.Tensor:
    """Interquartile mean of values (n,)."""
    cut = len(values) // 4
    return values.sort().values[cut:len(values) - cut].mean()


def _sample_loss(scores: torch.Tensor, before: torch.Tensor, target: torch.Tensor,
                 here: torch.Tensor, labels: tuple[int, ...], scars: tuple[int, ...], core: str):
    found = {value: scores[i] for i, value in enumerate(labels)}
    kinds = [value for value in scars if value in found]
    scar, scar_before = (torch.stack([part[labels.index(v)] for v in kinds]).logsumexp(0)
                         for part in (scores, before))
    wanted = torch.isin(target, torch.tensor(scars, device=target.device))
    outside, here = ~here, here & ~_border(wanted)
    cores = (target == kinds[-1]) & (len(kinds) > 1)
    judged = here if core == "scar" else here & ~cores
    parts = [(found[value], target == value) for value in found if value not in scars]
    terms = [-log_p[judged & mask].mean() for log_p, mask in [*parts, (scar, wanted)]
             if (judged & mask).any()]
    loss = torch.stack(terms).mean()
    leak = (scar.exp() - scar_before.exp())[outside].clamp(min=0).sum()
    loss = loss + torch.log1p(leak / LEAK_PIXELS)
    return loss + sum(_lost_dice(log_p[where].exp(), mask[where].float())
                      for log_p, mask, where in ((scar, wanted, judged),
                                                 (found[kinds[-1]], cores, here))
                      if (mask & where).any())


def _border(wanted: torch.Tensor) -> torch.Tensor:
    """The pixels (H, W) that touch the scar from outside."""
    touched = F.max_pool2d(wanted[None].float(), 2 * BORDER + 1, 1, BORDER)[0] > 0
    return touched & ~wanted


def _lost_dice(scar: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return 1 - 2 * (scar * wanted).sum() / (scar.sum() + wanted.sum())
