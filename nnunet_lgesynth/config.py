"""Settings that are saved beside weights and pools; `presets` names those of fits.

Every setting is a frozen dataclass that is checked when it is made, so a contradiction is
reported before any work starts.
Lengths in millimetres, image sizes in pixels, times in diffusion steps of 1000.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from hashlib import sha256

__all__ = ["AuditConfig", "FitConfig", "InjectionConfig", "NetworkConfig", "QCConfig", "UserError",
           "as_told", "config_hash", "from_dict"]


class UserError(ValueError):
    """A mistake the user can mend: rule, value, remedy in one sentence. Exit code 2."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the inpainter's networks.

    The VAE shrinks by 2 ** (len(vae_channels) - 1): 2 to 4, since scars are a few pixels wide.
    Without `vae_channels` a Haar wavelet of one level stands in its place: factor 2, 4 channels.
    """

    vae_channels: tuple[int, ...]
    latent_channels: int
    unet_channels: tuple[int, ...]
    layers_per_block: int
    attention_head_dim: int
    text_width: int
    text_layers: int

    def __post_init__(self):
        if not self.vae_channels and self.latent_channels != 4:
            raise UserError("The Haar wavelet has 4 latent channels, not "
                            f"{self.latent_channels}; set 4 or give vae_channels.")
        if self.vae_factor not in (2, 4):
            raise UserError(f"The VAE must shrink by 2 or 4, not {self.vae_factor}: give 2 or 3 "
                            f"entries in vae_channels instead of {self.vae_channels}.")

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self.vae_channels) - 1) if self.vae_channels else 2


@dataclass(frozen=True)
class FitConfig:
    """One fit of the inpainter: crop, networks, steps and rates of its stages, and the sampler."""

    preset: str
    network: NetworkConfig
    crop_pixels: int
    crop_mm: float = 1.4            # in-plane pixel size of the generator's crop
    batch_size: int = 16
    vae_steps: int = 1000
    unet_steps: int = 2000
    controlnet_steps: int = 2000
    reward_steps: int = 200
    learning_rate: float = 2e-4
    reward_learning_rate: float = 2e-5
    reward_weight: float = 1.0
    reward_min_snr: float = 4.0     # reward on real slices only above this signal to noise power
    reward_last_steps: int = 1      # sampler steps that carry the reward's gradient
    reward_blend: float = 1.0       # share that is kept of the reward's change of the weights
    reward_core: str = "own"        # or "scar": what the judge shall find in a no-reflow core
    prior: str = "fitted"           # of the masks drawn into scar-free slices
    captions: str = "full"          # or "constant", "none"
    outline: str = "edges"          # or "mask": how the control map shows the request
    caption_dropout: float = 0.5
    ema_decay: float = 0.995
    healthy_share: float = 0.5      # of the ControlNet's batches: inpainted wall that stays healthy
    sampler_steps: int = 8
    guidance_scale: float = 2.0
    feather_mm: float = 4.0
    level_cores: bool = True        # a no-reflow core is shifted to the contrast that was asked
    texture_mm: float = 7.0         # sigma; finer structure of a draft is the source's own; 0: none
    text_encoder: str | None = None  # path or hub id; None: small BERT over the caption vocabulary
    save_every: int = 250
    seed: int = 0
    patients: int | None = None     # training patients that it may see; None: all of the fold's

    def __post_init__(self):
        if not 1 <= self.reward_last_steps <= self.sampler_steps <= 10:
            raise UserError("1 <= reward_last_steps <= sampler_steps <= 10 is required, not "
                            f"{self.reward_last_steps} and {self.sampler_steps}.")
        if not 0 < self.reward_blend <= 1:
            raise UserError(f"reward_blend must lie in (0, 1], not {self.reward_blend}; for a "
                            "ControlNet without reward set reward_steps to 0.")
        if min(self.batch_size, self.save_every) < 1 or min(self.crop_mm, self.feather_mm) <= 0:
            raise UserError("batch_size, save_every, crop_mm and feather_mm must be positive.")
        if not self.texture_mm >= 0:
            raise UserError(f"texture_mm must be 0 or more, not {self.texture_mm}.")
        if self.vae_steps and not self.network.vae_channels:
            raise UserError(f"Without vae_channels there is no VAE to train in {self.vae_steps} "
                            "steps; set vae_steps to 0.")
        halvings = len(self.network.unet_channels) - 1
        latent = self.crop_pixels / self.network.vae_factor
        if latent % 2 ** halvings:
            raise UserError(
                f"crop_pixels {self.crop_pixels} does not divide by "
                f"{self.network.vae_factor * 2 ** halvings} (VAE and U-Net halvings); choose a "
                "multiple.")
        if self.reward_core not in ("own", "scar"):
            raise UserError(f"reward_core must be own or scar, not {self.reward_core!r}.")
        if self.captions not in ("full", "constant", "none") or \
                self.outline not in ("edges", "mask"):
            raise UserError("captions must be full, constant or none and outline edges or mask, "
                            f"not {self.captions!r} and {self.outline!r}.")
        if not 0 <= self.healthy_share < 1 or not 0 <= self.caption_dropout <= 1:
            raise UserError("healthy_share must lie in [0, 1) and caption_dropout in [0, 1].")


@dataclass(frozen=True)
class QCConfig:
    """Bounds of the quality control, see `judge.qc`. Dice is on the scar around a no-reflow core.

    In a 3D training a lesion's slices are judged as one stack, and kept or drafted again together.
    """

    min_dice: float = 0.6           # judge's scar on the sample against the request
    max_source_dice: float = 0.2    # judge's scar on the untouched source against the request
    max_new_outside: int = 5        # pixels a slice of scar outside the feather, new to the source,
    max_new_outside_share: float = 0.05      # or this share of a requested scar, where that is more
    max_healthy_pixels: int = 5     # pixels a slice of new scar in a healthy re-inpainting
    min_pixels: int = 6             # smallest requested scar in one slice
    min_contrast_share: float = 0.4  # realised over requested contrast, also of scar over core
    max_level_change: float = 0.25  # of a healthy repainting, normalised units
    drafts_per_slice: int = 3       # a refused slice is drafted again so often
    min_slice_share: float = 0.75   # of a lesion's slices that must pass in the end
    label: str = "intended"         # or "predicted": the judge's scar inside the feather

    def __post_init__(self):
        if self.label not in ("intended", "predicted"):
            raise UserError(f"label must be 'intended' or 'predicted', not {self.label!r}.")
        if self.drafts_per_slice < 1 or not 0 <= self.min_slice_share <= 1:
            raise UserError("drafts_per_slice must be at least 1 and min_slice_share lie in "
                            f"[0, 1], not {self.drafts_per_slice} and {self.min_slice_share}.")
        if not 0 <= self.max_source_dice < self.min_dice <= 1:
            raise UserError("0 <= max_source_dice < min_dice <= 1 is required.")


@dataclass(frozen=True)
class InjectionConfig:
    """How often a training case is answered from the pool, and how the pool grows meanwhile."""

    probability: float = 0.5        # at a full pool; scales with the pool until it is full
    pool_cases: int = 64            # scarred cases that are served, and as many healthy ones
    refresh_cases: int = 4          # cases of each kind by which an epoch may renew a full pool
    budget: float = 0.03            # share of the training's time that synthesis may take
    grace: float = 60.0             # seconds of computing beyond that, for its start
    warm_up: int = 0                # scarred cases that the training waits for before it begins
    ramp_epochs: int = 0            # the probability rises linearly over so many epochs
    fade: float | None = None       # over this last share of the training it falls to 0; None: none
    ratio_cap: float = 2.0          # a synthetic case is served at most so often as a real one
    prior: str = "fitted"
    no_reflow_share: float | None = None     # of scars with such a core; None: as in real ones
    seed: int = 0

    def __post_init__(self):
        if not 0 <= (self.no_reflow_share or 0) <= 1:
            raise UserError(f"no_reflow_share must lie in [0, 1], not {self.no_reflow_share}.")
        if self.fade is not None and not 0 < self.fade <= 1:
            raise UserError(f"fade must lie above 0 and at most at 1, not {self.fade}; leave it "
                            "out for a probability that stays.")
        if not 0 <= self.probability <= 1:
            raise UserError(f"The injection probability must lie in [0, 1], not "
                            f"{self.probability}.")
        if self.pool_cases < 1 or min(self.refresh_cases, self.warm_up, self.ramp_epochs) < 0:
            raise UserError("pool_cases must be at least 1 and refresh_cases, warm_up and "
                            f"ramp_epochs 0 or more, not {self.pool_cases}, {self.refresh_cases}, "
                            f"{self.warm_up} and {self.ramp_epochs}.")
        if self.warm_up > self.pool_cases:
            raise UserError(f"warm_up {self.warm_up} is more than the pool holds; set pool_cases "
                            f"{self.pool_cases} or fewer.")
        if not 0 < self.budget <= 1 or not self.grace >= 0 or not self.ratio_cap > 0:
            raise UserError("budget must lie in (0, 1], grace be 0 or more and ratio_cap positive, "
                            f"not {self.budget}, {self.grace} and {self.ratio_cap}.")


@dataclass(frozen=True)
class AuditConfig:
    """Sizes and bounds of the audit, see `benchmark.memorisation` and `benchmark.audit`.

    Figures are of EMIDEC's ROI, training patients of fold 4: 223 scar slices of 37 patients.
    """

    next_patients: int = 5      # enough that one of them may be a twin of the nearest
    like_size: int = 40         # patients, at most: 1 in 41 honest samples is flagged then
    twin_ratio: float = 0.5     # two patients are one below it: twins have .3, no others below .60
    alarm: float = 0.01         # chance that an honest generator is refused
    requests: int = 16          # that are asked anew
    seeds: int = 8              # of each
    least_spread: float = 0.3   # 0 if every seed paints the same; the rule-based painter has .7
    least_slope: float = 0.3    # 0 if the contrast asked is ignored; the painter has 1.0
    least_inside: float = 0.5   # 0 if the place asked is ignored; the painter has .97

    def __post_init__(self):
        if min(self.next_patients, self.like_size, self.requests, self.seeds - 1) < 1:
            raise UserError("next_patients, like_size and requests must be at least 1 and seeds 2, "
                            f"not {self.next_patients}, {self.like_size}, {self.requests} and "
                            f"{self.seeds}.")
        if not 0 < self.alarm < 1:
            raise UserError(f"alarm must lie between 0 and 1, not {self.alarm}.")


def from_dict(cls, values: dict):
    """Rebuild a config (nested dataclasses, tuples) from its JSON form; unknown keys raise."""
    names = {f.name: f for f in dataclasses.fields(cls)}
    unknown = set(values) - set(names)
    if unknown:
        raise UserError(f"{cls.__name__} does not know {sorted(unknown)}; it was written by "
                        "another version of nnunet-lgesynth.")
    parsed = {}
    for name, value in values.items():
        if name == "network":
            value = from_dict(NetworkConfig, value)
        parsed[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**parsed)
    except TypeError as error:
        raise UserError(f"{cls.__name__} is incomplete ({error}); it was written by another "
                        "version of nnunet-lgesynth.") from error


LATER_FIELDS = ("ensemble", "fade", "half", "no_reflow_share", "patients", "probability")


def config_hash(config) -> str:
    """12 hex digits that name a config; equal configs give equal hashes on every machine."""
    text = json.dumps(as_told(config), sort_keys=True)
    return sha256(text.encode()).hexdigest()[:12]


def as_told(config) -> dict:
    """A config as files hold it. `patients` is left out where it is None: it came later, and what
    was fitted or recorded before stays what it was."""
    return {k: v for k, v in dataclasses.asdict(config).items()
            if v is not None or k not in LATER_FIELDS}
