"""What an interrupted fit leaves for the one that goes on, and a fitted one for others to take.

The state is all that a fit needs to continue with the very next step; its identity must be the same
in both. A fit may also take VAE, U-Net and text encoder from a fitted folder of like networks, and
its ControlNet, if that is the one it would fit itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_lgesynth.config import FitConfig, UserError, as_told
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.fitted import is_fitted, read_fitted
from nnunet_lgesynth.generators.inpaint.networks import Networks
from nnunet_lgesynth.generators.inpaint.progress import Progress, read_checkpoint
from nnunet_lgesynth.judge.segmenter import Segmenter

__all__ = ["identity_of", "read_state", "refuse_existing", "restore_weights", "state_of",
           "take_shared"]

SHARED = ("network", "crop_pixels", "crop_mm", "text_encoder", "seed")    # of VAE and U-Net
LATER = ("preset", "reward_steps", "reward_learning_rate", "reward_weight", "reward_min_snr",
         "reward_last_steps", "reward_blend", "reward_core", "sampler_steps", "guidance_scale",
         "level_cores", "texture_mm", "save_every")   # that no ControlNet without reward depends on


def refuse_existing(folder: Path, resume: bool) -> None:
    """Raise `UserError` where a fit into `folder` would overwrite one."""
    if not resume and is_fitted(folder):
        raise UserError(f"{folder} is fitted already; use it as it is, or delete it to fit anew.")
    if not resume and (folder / "state").is_dir():
        raise UserError(f"{folder} holds an interrupted fit; go on with --resume, or delete it.")


def identity_of(fold: Fold, config: FitConfig, reward: Segmenter | None,
                start: Path | None) -> dict:
    """What an interrupted fit must share with the one that goes on."""
    return {"config": as_told(config), "train": list(fold.train),
            "start": None if start is None else read_fitted(start, "hash")["hash"],
            "reward": None if reward is None else
            {"checkpoint": str(reward.source), "hash": reward.hash}}


def state_of(identity: dict, networks: Networks, record: Progress, done: list[str],
             stage: str | None = None, step: int = 0, optimizer=None, average=None,
             origin: list | None = None) -> dict:
    """What `write_checkpoint` stores; without a stage, between two of them."""
    return {"identity": json.dumps(identity), "done": done, "stage": stage, "step": step,
            "weights": {name: m.state_dict() for name, m in networks.modules.items()},
            "latents": (networks.vae.config.latents_mean, networks.vae.config.latents_std),
            "rows": record.rows, "minutes": record.minutes,
            "optimizer": optimizer and optimizer.state_dict(),
            "average": average and average.state_dict(), "origin": origin}


def read_finished(folder: Path, identity: dict) -> dict:
    """config.json of a finished fit; `UserError` where that fit was another one."""
    record = read_fitted(folder, "config", "hash", "train", "reward")
    changed = [k for k in ("config", "train", "reward")
               if record.get(k) != json.loads(json.dumps(identity[k]))]
    if changed:
        raise UserError(f"The finished fit in {folder} had another {' and '.join(changed)}; use it "
                        "as it is, or delete it to fit anew.")
    return record


def read_state(folder: Path, identity: dict) -> dict:
    """The folder's state, {} where there is none; `UserError` where it is of another identity."""
    state = read_checkpoint(folder) or {}
    if state and json.loads(state["identity"]) != json.loads(json.dumps(identity)):
        theirs = json.loads(state["identity"])
        changed = [k for k in identity if theirs.get(k) != json.loads(json.dumps(identity[k]))]
        raise UserError(f"The interrupted fit in {folder} had another {' and '.join(changed)}; "
                        "resume it with the same, or delete the folder.")
    return state


def restore_weights(networks: Networks, state: dict) -> None:
    """Put the state's weights and latent scale into `networks`."""
    for name, module in networks.modules.items():
        module.load_state_dict(state["weights"][name])
    networks.set_latent_scale(*state["latents"])


def take_shared(networks: Networks, config: FitConfig, fold: Fold, start: Path) -> list[str]:
    """Take over VAE, U-Net and text encoder of another fit, which must have been built alike, and
    its ControlNet, if it was fitted alike and met no reward; returns the stages this saves."""
    record = read_fitted(start, "config", "hash", "minutes", "train")
    mine = json.loads(json.dumps(as_told(config)))
    theirs = record["config"]
    unseen = sorted(set(record["train"]) - set(fold.train))
    if unseen:
        raise UserError(f"{start} cannot be started from: it was fitted on {unseen[0]}, which is "
                        f"no training case of fold {fold.fold}; start from a fit of that fold.")
    other = [f"{n} {theirs.get(n)}, not {mine[n]}" for n in SHARED if theirs.get(n) != mine[n]]
    if other:
        raise UserError(f"{start} cannot be started from: it has {'; '.join(other)}. Start from a "
                        "fit of a preset with the same networks.")
    loaded = Networks.load(start, "cpu")
    plain = "reward" not in record["minutes"] and set(record["train"]) == set(fold.train) and \
        all(theirs.get(n) == mine[n] for n in mine if n not in LATER)
    for name in ("vae", "unet", "text", *["controlnet"] * plain):
        networks.modules[name].load_state_dict(loaded.modules[name].state_dict())
    networks.set_latent_scale(loaded.vae.config.latents_mean, loaded.vae.config.latents_std)
    return ["vae", "unet", *["controlnet"] * plain]
