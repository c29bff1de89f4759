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

from nnunet_lgesynth.benchmark.fits import (
    Generator,
    generator_of,
    generators,
    refuse_lost_judge,
    refuse_other_generator,
    stock_fold,
)
from nnunet_lgesynth.benchmark.leakage import refuse_leaky_training
from nnunet_lgesynth.benchmark.records import ENSEMBLE, Records, Training
from nnunet_lgesynth.benchmark.settings import (
    DEFAULT_PLANS,
    Settings,
    budget_argv,
    injects,
    needs_generator,
    warm_up_argv,
)
from nnunet_lgesynth.benchmark.variants import REFERENCE, Variant, file_name
from nnunet_lgesynth.dataset.case import Fold, fold_folder, nnunet_path
from nnunet_lgesynth.discovery import add_to_environment, find_trainer
from nnunet_lgesynth.generators.fitted import is_fitted
from nnunet_lgesynth.pool.generator import judge_of
from nnunet_lgesynth.presets import preset_flags

__all__ = ["Job", "check_trainers", "commands", "ensembles", "is_done", "plan", "training_job",
           "trainings"]


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
    recorded in the output folder is not missing, see `records.Records`.
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
        elif not recorded:
            refuse_other_generator(settings, training)
        if not recorded and not is_done(training.folder, fold):
            jobs.append(training_job(settings, training))
    for generator in dict.fromkeys(generator_of(settings, j.training.fold, j.training.arm)
                                   for j in jobs if j.stage == 2):
        if is_fitted(generator.folder):
            refuse_lost_judge(settings, generator)
            judge_of(generator.folder, folds[generator.fold], "cpu")
        else:
            jobs += _fit_jobs(settings, generator, folds[generator.fold], {j.name for j in jobs},
                              records)
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
        jobs += _fit_jobs(settings, generator, folds[generator.fold], {j.name for j in jobs})
    return [job.line() for job in sorted(jobs, key=lambda job: job.stage)]


def training_job(settings: Settings, training: Training, resume: bool = True) -> Job:
    """The command of one training. With `resume` it goes on where it was interrupted, however
    often a cluster runs it, from the start where there is no checkpoint."""
    trainer, variant = training.recipe.trainer, Variant.of(training.arm)
    argv = [sys.executable, "-m", "nnunet_lgesynth", "train", settings.dataset,
            settings.configuration, str(training.fold), "-tr", trainer, "-device", settings.device,
            *_plans(settings), *budget_argv(settings),
            *(warm_up_argv(settings.waits(variant)) if injects(trainer) else [])]
    if resume:
        ended = (training.folder / "checkpoint_final.pth").is_file()
        argv.append("--val" if ended else "--c")
    env = {"nnUNet_results": str(_results(settings, training.seed, variant)),
           "LGESYNTH_SEED": str(training.seed), **variant.environment}
    if needs_generator(trainer):
        env["LGESYNTH_GENERATOR"] = str(generator_of(settings, training.fold, training.arm).folder)
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


def check_trainers(settings: Settings) -> None:
    """Refuse an arm whose trainer nnU-Net does not find, or that would not obey the budget."""
    add_to_environment()
    budget = [f"--{name}" for name in ("epochs", "iterations", "half") if getattr(settings, name)]
    for variant in map(Variant.of, settings.arms):
        find_trainer(variant.trainer, [*budget, *variant.environment])


def _training(settings: Settings, arm: str, fold: int, seed: int) -> Training:
    recipe = settings.recipe(arm)
    folder = fold_folder(_results(settings, seed, Variant.of(arm)), settings.dataset,
                         recipe.trainer, settings.plans, settings.configuration, fold)
    return Training(arm, fold, seed, folder, recipe, settings.device)


def _fit_jobs(settings: Settings, generator: Generator, opened: Fold, planned: set[str],
              records: Records | None = None) -> list[Job]:
    """The fit, and before it the real-only training that judges where neither is there yet. Beside
    3D arms that one is none of them, and what the `records` hold was trained elsewhere: neither is
    recorded. A fit on few patients is judged by a training on the same. Without `records` they are
    told as if nothing were begun."""
    fold, patients, resume = generator.fold, generator.patients, records is not None
    stock = stock_fold(settings, fold)
    reward, jobs = stock, []
    flat = replace(settings, configuration=settings.planar)
    if flat != settings:
        Fold.open(settings.dataset, flat.configuration, fold, settings.plans)   # is it there?
    if patients or not (stock / "checkpoint_final.pth").is_file():
        real = _training(flat, REFERENCE + (f":n={patients}" if patients else ""), fold, 0)
        reward, job = real.folder, training_job(flat, real, resume)
        if flat != settings:
            job = replace(job, name=job.name.replace(REFERENCE, "judge", 1), training=None)
        elif resume and records.holds(real, opened.val):
            job = replace(job, training=None)
        if job.name not in planned and not (resume and is_done(real.folder, opened)):
            jobs.append(job)
    argv = [sys.executable, "-m", "nnunet_lgesynth", "fit", "-d", settings.dataset, "-c",
            settings.planar, "-f", str(fold), *preset_flags(generator.config.preset).split(),
            "--reward", str(reward), "-device", settings.device, *_plans(settings)]
    if resume:
        argv.append("--resume")
    env = {"nnUNet_results": str(nnunet_path("nnUNet_results"))}
    return [*jobs, Job(f"fit_{generator.name}", 1, tuple(argv), env)]


def _results(settings: Settings, seed: int, variant: Variant) -> Path:
    return settings.out / f"seed_{seed}{variant.suffix}" / "nnUNet_results"


def _plans(settings: Settings) -> list[str]:
    return [] if settings.plans == DEFAULT_PLANS else ["-p", settings.plans]
