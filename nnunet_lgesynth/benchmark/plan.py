"""What a benchmark still has to run: one `Job` a training or fit, a command with its variables.

    OUT/seed_<s>/nnUNet_results/<dataset>/<trainer>__<plans>__<configuration>/fold_<k>

Each seed, and each variant of an arm (`seed_0_p0.25`), has its own `nnUNet_results`, since nnU-Net
has no seed and would overwrite. Generators stay in the user's `nnUNet_results`: one per fold,
shared by the seeds. Stages run in order: 0 trainings that need no generator, 1 the fits, 2
trainings that need one.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_lgesynth.benchmark.collect import ENSEMBLE, Records, Training, read_rows
from nnunet_lgesynth.benchmark.leakage import refuse_leaky_training
from nnunet_lgesynth.benchmark.settings import (
    DEFAULT_PLANS,
    Settings,
    budget_argv,
    injects,
    needs_generator,
    warm_up_argv,
)
from nnunet_lgesynth.benchmark.variants import REFERENCE, Variant, file_name
from nnunet_lgesynth.config import FitConfig, UserError
from nnunet_lgesynth.dataset.case import Fold, nnunet_path
from nnunet_lgesynth.discovery import add_to_environment, find_trainer
from nnunet_lgesynth.generators.fitted import RECORD, generator_folder, is_fitted, read_fitted
from nnunet_lgesynth.pool.generator import judge_of, refuse_leak, refuse_other_settings
from nnunet_lgesynth.presets import preset_flags

__all__ = ["Generator", "Job", "check_generators", "check_trainers", "commands", "ensembles",
           "generators", "is_done", "plan", "training_job", "trainings"]

STOCK = "nnUNetTrainer"


@dataclass(frozen=True)
class Job:
    """One command: `argv`, the variables it needs beside nnU-Net's own, its stage, and what it
    trains, if anything."""

    name: str
    stage: int
    argv: tuple[str, ...]
    env: dict[str, str]
    training: Training | None = None

    def line(self) -> str:
        """The job for a shell, variables in front."""
        prefix = [f"{k}={shlex.quote(v)}" for k, v in self.env.items()]
        return " ".join([*prefix, shlex.join(self.argv)])

    def staged_line(self) -> str:
        """The same, its end told to the reader: all of a stage must have ended before the next."""
        return f"{self.line()}  # stage {self.stage}"


def plan(settings: Settings, folds: dict[int, Fold], external: Sequence[str] = ()) -> list[Job]:
    """The missing jobs in the order they can run.

    `folds` maps each fold to its cases; `external` are the cases of the external test set. What is
    recorded in the output folder is not missing, see `collect.Records`.
    """
    records = Records.below(settings.out, settings.dataset)
    unmade = {(t.arm, t.fold, t.seed) for members, together in ensembles(settings)
              if external and not records.holds(together, external, "ensemble") for t in members}
    jobs = []
    for training in trainings(settings):
        fold = folds[training.fold]
        recorded = (records.holds(training, fold.val)
                    and (not external or records.holds(training, external, "external"))
                    and (training.arm, training.fold, training.seed) not in unmade)
        if (training.folder / "checkpoint_final.pth").is_file():
            refuse_leaky_training(training, fold.subset(training.recipe.patients))
        if not recorded and not is_done(training.folder, fold):
            jobs.append(training_job(settings, training))
    for generator in dict.fromkeys(_generator(settings, j.training.fold, j.training.arm)
                                   for j in jobs if j.stage == 2):
        if is_fitted(generator.folder):
            _refuse_lost_judge(settings, generator)
            judge_of(generator.folder, folds[generator.fold], "cpu")
        else:
            jobs += _fit_jobs(settings, generator, folds[generator.fold], {j.name for j in jobs})
    return sorted(jobs, key=lambda job: job.stage)


def trainings(settings: Settings) -> list[Training]:
    """Every training of the benchmark, done or not."""
    return [_training(settings, arm, fold, seed) for fold in settings.folds
            for seed in range(settings.seeds) for arm in settings.arms]


def ensembles(settings: Settings) -> list[tuple[list[Training], Training]]:
    """(an arm's and seed's trainings on all folds, what stands for them together)."""
    groups: dict[tuple[str, int], list[Training]] = {}
    for training in trainings(settings) if settings.ensemble else ():
        groups.setdefault((training.arm, training.seed), []).append(training)
    return [(members, replace(members[0], fold=ENSEMBLE, recipe=replace(
        members[0].recipe, ensemble=tuple(sorted(settings.folds)))))
        for members in groups.values()]


def commands(settings: Settings, folds: dict[int, Fold]) -> list[str]:
    """Every training and fit of the benchmark, a line each for a shell, as if none were begun."""
    jobs = [training_job(settings, t, resume=False) for t in trainings(settings)]
    for generator in generators(settings):
        jobs += _fit_jobs(settings, generator, folds[generator.fold], {j.name for j in jobs},
                          resume=False)
    return [job.line() for job in sorted(jobs, key=lambda job: job.stage)]


def training_job(settings: Settings, training: Training, resume: bool = True) -> Job:
    """The command of one training; it goes on from a checkpoint where there is one and that is
    asked."""
    trainer, variant = training.recipe.trainer, Variant.of(training.arm)
    argv = [sys.executable, "-m", "nnunet_lgesynth", "train", settings.dataset,
            settings.configuration, str(training.fold), "-tr", trainer, "-device", settings.device,
            *_plans(settings), *budget_argv(settings),
            *(warm_up_argv(settings.waits(variant)) if injects(trainer) else [])]
    if resume and (training.folder / "checkpoint_final.pth").is_file():
        argv.append("--val")
    elif resume and (training.folder / "checkpoint_latest.pth").is_file():
        argv.append("--c")
    env = {"nnUNet_results": str(_results(settings, training.seed, variant)),
           "LGESYNTH_SEED": str(training.seed), **variant.environment}
    if needs_generator(trainer):
        env["LGESYNTH_GENERATOR"] = str(_generator(settings, training.fold, training.arm).folder)
    name = f"{file_name(training.arm)}_fold_{training.fold}_seed_{training.seed}"
    return Job(name, 2 if needs_generator(trainer) else 0, tuple(argv), env, training)


def is_done(folder: Path, fold: Fold) -> bool:
    """Whether a fold is trained and has a prediction and a score for every validation case."""
    try:
        summary = json.loads((folder / "validation" / "summary.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    ending = fold.dataset_json["file_ending"]
    return ((folder / "checkpoint_final.pth").is_file()
            and len(summary.get("metric_per_case", [])) >= len(fold.val)
            and all((folder / "validation" / f"{case}{ending}").is_file() for case in fold.val))


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
    return list(dict.fromkeys(_generator(settings, fold, arm) for arm in settings.arms
                              if needs_generator(Variant.of(arm).trainer)
                              for fold in settings.folds))


def _generator(settings: Settings, fold: int, arm: str) -> Generator:
    config = settings.generator(arm)
    return Generator(fold, Variant.of(arm).patients, config, generator_folder(
        nnunet_path("nnUNet_results"), settings.dataset, config.preset, settings.plans,
        settings.planar, fold))


def check_trainers(settings: Settings) -> None:
    """Refuse an arm whose trainer nnU-Net does not find, or that would not obey the budget."""
    add_to_environment()
    budget = [f"--{name}" for name in ("epochs", "iterations") if getattr(settings, name)]
    for variant in map(Variant.of, settings.arms):
        find_trainer(variant.trainer, [*budget, *variant.environment])


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


def _training(settings: Settings, arm: str, fold: int, seed: int) -> Training:
    recipe = settings.recipe(arm)
    folder = (_results(settings, seed, Variant.of(arm)) / settings.dataset
              / f"{recipe.trainer}__{settings.plans}__{settings.configuration}" / f"fold_{fold}")
    return Training(arm, fold, seed, folder, recipe, settings.device)


def _stock_fold(settings: Settings, fold: int) -> Path:
    return (nnunet_path("nnUNet_results") / settings.dataset
            / f"{STOCK}__{settings.plans}__{settings.planar}" / f"fold_{fold}")


def _refuse_lost_judge(settings: Settings, generator: Generator) -> None:
    """A fitted generator works only with the judge that tuned it."""
    reward = read_fitted(generator.folder).get("reward")
    places = [_stock_fold(settings, generator.fold) / "checkpoint_final.pth"]
    if reward is not None:
        places.append(Path(reward["checkpoint"]))
    if not any(path.is_file() for path in places):
        raise UserError(f"{generator.folder} cannot be used: the judge that tuned it, "
                        f"{places[-1]}, is gone; delete that folder, and the benchmark trains a "
                        "judge and fits anew.")


def _fit_jobs(settings: Settings, generator: Generator, opened: Fold, planned: set[str],
              resume: bool = True) -> list[Job]:
    """The fit, and before it the real-only training that judges where neither is there yet. Beside
    3D arms that one is none of them, so it is not recorded. A fit on few patients is judged by a
    training on the same."""
    fold, patients = generator.fold, generator.patients
    stock = _stock_fold(settings, fold)
    reward, jobs = stock, []
    flat = replace(settings, configuration=settings.planar)
    if flat != settings:
        Fold.open(settings.dataset, flat.configuration, fold, settings.plans)   # is it there?
    if patients or not (stock / "checkpoint_final.pth").is_file():
        real = _training(flat, REFERENCE + (f":n={patients}" if patients else ""), fold, 0)
        reward, job = real.folder, training_job(flat, real, resume)
        if flat != settings:
            job = replace(job, name=job.name.replace(REFERENCE, "judge", 1), training=None)
        if job.name not in planned and not (resume and is_done(real.folder, opened)):
            jobs.append(job)
    argv = [sys.executable, "-m", "nnunet_lgesynth", "fit", "-d", settings.dataset, "-c",
            settings.planar, "-f", str(fold), *preset_flags(generator.config.preset).split(),
            "--reward", str(reward), "-device", settings.device, *_plans(settings)]
    if resume and generator.folder.is_dir():
        argv.append("--resume")
    env = {"nnUNet_results": str(nnunet_path("nnUNet_results"))}
    return [*jobs, Job(f"fit_{generator.name}", 1, tuple(argv), env)]


def _results(settings: Settings, seed: int, variant: Variant) -> Path:
    return settings.out / f"seed_{seed}{variant.suffix}" / "nnUNet_results"


def _plans(settings: Settings) -> list[str]:
    return [] if settings.plans == DEFAULT_PLANS else ["-p", settings.plans]
