"""Find a generator by name with its judge, and refuse one that must not be used.

"paint" is always there and needs neither a fit nor a judge. "lgesynth" is the newest fitted
inpainter of the fold, or the one LGESYNTH_GENERATOR points to, with the segmenter it was tuned by.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from nnunet_lgesynth.config import FitConfig, InjectionConfig, UserError, as_told
from nnunet_lgesynth.dataset.case import Fold, nnunet_path
from nnunet_lgesynth.generators.fitted import (
    RECORD,
    fit_command,
    generator_folder,
    is_fitted,
    read_fitted,
)
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.judge.segmenter import Segmenter, default_reward_folder
from nnunet_lgesynth.pool.synthesize import prepare

__all__ = ["find_generator", "find_inpainter", "fit_generator", "hash_of", "judge_of", "load_found",
           "load_generator", "load_inpainter", "refuse_leak", "refuse_other_settings",
           "usable_device"]


def load_generator(name: str, fold: Fold, device: torch.device | str, judged: bool = True):
    """(generator, judge or None) for a fold; raises `UserError` where one must be fitted first.

    Without `judged` the judge is neither needed nor loaded. Both know slices alone, so those of a
    3D fold are of the 2D configuration, `Fold.planar`.
    """
    return load_found(find_generator(name, fold, judged), fold, device, judged)


def find_generator(name: str, fold: Fold, judged: bool = True) -> Path | None:
    """The folder of the inpainter of this name, None for the painter; raises `UserError` for what
    can be known to be wrong without reading weights."""
    if name == "paint":
        return None
    if name != "lgesynth":
        raise UserError(f"There is no generator {name!r}; choose 'paint' or 'lgesynth'.")
    folder = find_inpainter(fold)
    config = read_fitted(folder, "train", "reward")
    refuse_leak(config["train"], fold, folder)
    if judged:
        _judge_folder(config, fold)
    return folder


def load_found(folder: Path | None, fold: Fold, device: torch.device | str, judged: bool = True):
    """(generator, judge or None) of what `find_generator` has found."""
    if folder is None:
        return Painter(), None
    device = usable_device(device) if isinstance(device, str) else device
    judge = judge_of(folder, fold, device) if judged else None
    return load_inpainter(folder, fold, device), judge


def hash_of(folder: Path | None) -> str:
    """What names the generator in a pool's manifest."""
    return Painter().hash if folder is None else read_fitted(folder, "hash")["hash"]


def load_inpainter(folder: Path, fold: Fold, device: torch.device | str):
    """The inpainter of a fitted folder; `UserError` where it was fitted on validation cases."""
    from nnunet_lgesynth.generators.inpaint.sample import Inpainter  # diffusers: only here

    refuse_leak(read_fitted(folder, "train")["train"], fold, folder)
    return Inpainter.load(folder, device)


def judge_of(folder: Path, fold: Fold, device: str | torch.device) -> Segmenter:
    """The judge that tuned the generator in `folder`; `UserError` where that generator must not be
    used in this fold: it saw validation cases, its judge did, or that judge is another one now."""
    config = read_fitted(folder, "train", "reward")
    refuse_leak(config["train"], fold, folder)
    judge = Segmenter.load_fold(_judge_folder(config, fold), device)
    judge.check_fold(fold)
    told = config["reward"]
    if told is not None and judge.hash != told["hash"]:
        raise UserError(f"{judge.source} (weights {judge.hash}) is not the judge that {folder} was "
                        f"tuned by (weights {told['hash']}): it was trained anew; delete {folder} "
                        f"and run: {fit_command(folder)}")
    return judge


def fit_generator(dataset: str, configuration: str, fold: int | str, plans: str, config: FitConfig,
                  reward: str | Path | None, device: str, resume: bool = False,
                  dry_run: bool = False, start: str | Path | None = None) -> Path:
    """Fit the inpainter on a fold's training cases; returns its folder.

    `reward` is the fold folder of the nnU-Net that judges; default: the stock trainer's, which a
    preset without reward steps does not need. Judge, cases and folder are examined before anything
    is written; `dry_run` ends there.
    """
    if config.patients is not None and reward is None and config.reward_steps > 0:
        raise UserError("The nnU-Net that judges a fit on part of the patients must not have seen "
                        "the others; give with --reward the fold folder of a training with "
                        f"--patients {config.patients}.")
    opened = Fold.open(dataset, configuration, fold, plans).subset(config.patients)
    if opened.volumetric:
        raise UserError(f"Configuration {configuration!r} is 3D and the inpainter paints slices; "
                        f"fit it with -c {opened.planar}, 3D trainings use it, too.")
    results = nnunet_path("nnUNet_results")
    folder = generator_folder(results, opened.dataset, config.preset, plans, configuration, fold)
    target = usable_device(device)
    judge = None
    if reward or config.reward_steps > 0:
        reward = Path(reward) if reward else default_reward_folder(
            results, opened.dataset, plans, configuration, fold)
        judge = Segmenter.load_fold(reward, "cpu")  # `fit` takes it to the process's own device
        judge.check_fold(opened)
    prepare(opened, InjectionConfig().prior)      # refuses cases that hold nothing to learn from
    _require_writable(folder)
    from nnunet_lgesynth.generators.inpaint.train import check, fit  # diffusers: here

    start = None if start is None else Path(start)
    check(opened, config, folder, judge, resume, start)
    if not dry_run:
        fit(opened, config, folder, target, judge, resume, start)
    return folder


def _require_writable(folder: Path) -> None:
    """Try to write where `folder` is or will be."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{there} is not writable ({error.strerror}), so {folder} cannot be made; "
                        "correct its permissions or point nnUNet_results elsewhere.") from error


def usable_device(name: str) -> torch.device:
    """The device of a `-device` argument, refused where this machine does not have it."""
    missing = (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available())
    if missing:
        raise UserError(f"-device {name}: this machine has none that PyTorch can use; "
                        "add -device cpu.")
    return torch.device(name)


def find_inpainter(fold: Fold) -> Path:
    """The fitted inpainter's folder for this fold."""
    told = os.environ.get("LGESYNTH_GENERATOR")
    remedy = _fit_command(fold)
    if told:
        if not is_fitted(Path(told)):
            raise UserError(f"LGESYNTH_GENERATOR={told} holds no fitted generator ({RECORD}); "
                            f"run: {remedy}")
        return Path(told)
    pattern = generator_folder(nnunet_path("nnUNet_results"), fold.dataset, "*", fold.plans_name,
                               fold.planar, fold.fold)
    fitted = sorted(pattern.parent.parent.glob(f"{pattern.parent.name}/{pattern.name}/{RECORD}"),
                    key=lambda p: p.stat().st_mtime)
    if not fitted:
        raise UserError(f"No generator is fitted for {fold.dataset}, {fold.planar}, fold "
                        f"{fold.fold}; run: {remedy}")
    return fitted[-1].parent


def _fit_command(fold: Fold) -> str:
    return (f"lgesynth fit -d {fold.dataset} -c {fold.planar} -f {fold.fold} "
            f"-p {fold.plans_name}")


def refuse_other_settings(fitted: dict, preset: FitConfig, folder: Path) -> None:
    """Raise `UserError` where a generator's config is not the preset's, under whose name its
    results would be recorded."""
    told = json.loads(json.dumps(as_told(preset)))
    changed = [f"{name} {fitted.get(name)}, not {told.get(name)}"
               for name in sorted({*told, *fitted}) if fitted.get(name) != told.get(name)]
    if changed:
        raise UserError(f"{folder} was fitted with {'; '.join(changed)}, as the preset "
                        f"{preset.preset} has it; move the folder away and run: "
                        f"{fit_command(folder)}")


def _judge_folder(config: dict, fold: Fold) -> Path:
    """Fold folder of the nnU-Net that tuned the inpainter; the default one where there was none, or
    where the results were moved since."""
    told = config["reward"]
    if told and Path(told["checkpoint"]).is_file():
        return Path(told["checkpoint"]).parent
    return default_reward_folder(nnunet_path("nnUNet_results"), fold.dataset, fold.plans_name,
                                 fold.planar, fold.fold)


def refuse_leak(train: Sequence[str], fold: Fold, folder: Path) -> None:
    """Refuse the generator in `folder`, fitted on the cases `train`, if they are validated on."""
    seen = sorted(set(train) & set(fold.val) - set(fold.train))
    if seen:
        raise UserError(f"By {folder / RECORD} the generator was fitted on {len(seen)} validation "
                        f"cases of fold {fold.fold} (first: {seen[0]}), so results would be too "
                        f"good; move its folder away and fit one with -f {fold.fold}.")
