"""The generators that a benchmark's arms draw from: where each is or will be, what it must be, and
what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_lgesynth.benchmark.records import Training, read_rows
from nnunet_lgesynth.benchmark.settings import Settings, needs_generator
from nnunet_lgesynth.benchmark.variants import Variant
from nnunet_lgesynth.config import FitConfig, UserError
from nnunet_lgesynth.dataset.case import Fold, fold_folder, nnunet_path
from nnunet_lgesynth.generators.fitted import RECORD, generator_folder, is_fitted, read_fitted
from nnunet_lgesynth.pool.attach import POOL_FOLDER
from nnunet_lgesynth.pool.generator import refuse_leak, refuse_other_settings
from nnunet_lgesynth.pool.store import read_manifest

__all__ = ["Generator", "check_generators", "generator_of", "generators", "refuse_lost_judge",
           "refuse_other_generator", "stock_fold"]

STOCK = "nnUNetTrainer"


@dataclass(frozen=True)
class Generator:
    """A generator that arms need, fitted or not: of one fold, on so many `patients` of it, all of
    them where None; its folder in the user's own results."""

    fold: int
    patients: int | None
    config: FitConfig
    folder: Path

    @property
    def name(self) -> str:
        """`roi-cpu-n20_fold_0`."""
        return f"{self.config.preset}_fold_{self.fold}"


def generators(settings: Settings) -> list[Generator]:
    """Every generator that the arms need, fitted or not."""
    return list(dict.fromkeys(generator_of(settings, fold, arm) for arm in settings.arms
                              if needs_generator(Variant.of(arm).trainer)
                              for fold in settings.folds))


def generator_of(settings: Settings, fold: int, arm: str) -> Generator:
    """The generator that an arm which needs one draws from in a fold."""
    config = settings.generator(arm)
    return Generator(fold, Variant.of(arm).patients, config, generator_folder(
        nnunet_path("nnUNet_results"), settings.dataset, config.preset, settings.plans,
        settings.planar, fold))


def check_generators(settings: Settings, folds: dict[int, Fold]) -> None:
    """Refuse a generator that was fitted on validation cases of the fold it is to serve, or with
    other settings than the preset's, under whose name its arm would be recorded."""
    for generator in generators(settings):
        if not is_fitted(generator.folder):
            continue                           # not fitted yet
        fold = folds[generator.fold]
        told = read_fitted(generator.folder, "train", "config", "reward")
        refuse_other_settings(told["config"], generator.config, generator.folder)
        refuse_leak(told["train"], fold, generator.folder)
        _refuse_more_patients(told, generator.folder, fold.subset(generator.patients),
                              all_of_them=not generator.patients)


def _refuse_more_patients(told: dict, folder: Path, fold: Fold, all_of_them: bool) -> None:
    """Refuse a generator that saw, or whose judge saw, patients which its arm does not train on: it
    would know more than the arm, or an external test case that was a training case once."""
    more = set(told["train"]) - set(fold.train)
    remedy = "move its folder away, and the benchmark fits another one"
    if more:
        raise UserError(f"By {folder / RECORD} the generator was fitted on {min(more)}, which is "
                        f"not among the {len(fold.train)} training cases of the arm; {remedy}.")
    if told["reward"] is not None:
        log = Path(told["reward"]["checkpoint"]).parent / "lgesynth.jsonl"
        splits = {r.get("split") for r in read_rows(log)}
        if all_of_them:
            splits |= {fold.split_hash}
            splits -= {None}           # told by no stock nnU-Net, which trains on all of a fold's
        if splits != {fold.split_hash}:
            raise UserError(f"{log} does not show that the judge of {folder} was trained on the "
                            f"{len(fold.train)} training cases of the arm alone; {remedy}.")


def refuse_other_generator(settings: Settings, training: Training) -> None:
    """Refuse a training whose pools tell of other generators, by their hashes, than the one of its
    arm's preset: its scars would be recorded under a wrong name."""
    if not needs_generator(training.recipe.trainer):
        return
    pools = sorted(training.folder.glob(f"{POOL_FOLDER}*"))
    painted = sorted({str(line["generator"]) for pool in pools for line in read_manifest(pool)})
    if not painted:
        return
    folder = generator_of(settings, training.fold, training.arm).folder
    told = (f"The scars of arm {training.arm}, fold {training.fold}, seed {training.seed}, were "
            f"painted by generator {', '.join(painted)}")
    anew = f"remove {training.folder} and run again"
    if len(painted) > 1:
        raise UserError(f"{told}: another one was fitted while it trained; {anew}.")
    if not is_fitted(folder):
        raise UserError(f"{told}, and {folder} holds none; put it back, name the --preset that it "
                        f"was trained with, or {anew}.")
    if painted != [there := read_fitted(folder, "hash")["hash"]]:
        raise UserError(f"{told}, but {folder} holds {there}; name the --preset that it was "
                        f"trained with, or {anew}.")


def refuse_lost_judge(settings: Settings, generator: Generator) -> None:
    """A fitted generator works only with the judge that tuned it."""
    reward = read_fitted(generator.folder).get("reward")
    places = [stock_fold(settings, generator.fold) / "checkpoint_final.pth"]
    if reward is not None:
        places.append(Path(reward["checkpoint"]))
    if not any(path.is_file() for path in places):
        raise UserError(f"{generator.folder} cannot be used: the judge that tuned it, "
                        f"{places[-1]}, is gone; delete that folder, and the benchmark trains a "
                        "judge and fits anew.")


def stock_fold(settings: Settings, fold: int) -> Path:
    """Where nnU-Net's own trainer leaves the real-only network of a fold."""
    return fold_folder(nnunet_path("nnUNet_results"), settings.dataset, STOCK, settings.plans,
                       settings.planar, fold)
