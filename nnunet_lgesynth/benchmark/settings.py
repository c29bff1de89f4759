"""What a benchmark is told: its settings, and what follows from them for each arm."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nnunet_lgesynth.benchmark.records import Recipe
from nnunet_lgesynth.benchmark.variants import REFERENCE, TRAINERS, Variant
from nnunet_lgesynth.config import FitConfig, InjectionConfig, UserError, config_hash
from nnunet_lgesynth.discovery import add_to_environment, find_trainer, is_ours, list_trainers
from nnunet_lgesynth.presets import PRESETS, limited

__all__ = ["ADDABLE", "DEFAULT_PLANS", "Settings", "budget_argv", "injects", "needs_generator",
           "painter_of", "warm_up_argv"]

ADDABLE = ("images", "labels")          # may be given later, see `Settings.fixed`
DEFAULT_PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Settings:
    """One benchmark; `dataset` is nnU-Net's full name, `out` its folder, seeds count from 0."""

    dataset: str
    configuration: str
    arms: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: int
    out: Path
    plans: str = DEFAULT_PLANS
    preset: str = "gpu-2d"
    device: str = "cuda"
    epochs: int | None = None
    iterations: int | None = None
    images: Path | None = None      # external test set
    labels: Path | None = None
    warm_up: int | None = None      # scarred cases that an injecting training waits for
    ensemble: bool = False          # predict the external set with all folds together, too
    planar: str = "2d"              # configuration of generators and judges, see `Fold.planar`
    half: bool | None = None        # on a CPU, too

    def __post_init__(self):
        if not self.arms:
            raise UserError("Unknown arm: none is given; name at least one with --arms.")
        for name, given in (("arms", self.arms), ("folds", self.folds)):
            if len({Variant.of(v) if name == "arms" else v for v in given}) != len(given):
                raise UserError(f"--{name} {' '.join(map(str, given))} names one twice; drop it.")
        if self.seeds < 1 or not self.folds:
            raise UserError(f"At least one seed and one fold are needed, not {self.seeds} and "
                            f"{len(self.folds)}.")
        for name in ("epochs", "iterations"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, not {value}.")
        if self.warm_up is not None:
            InjectionConfig(warm_up=self.warm_up)          # refuses what the trainers would
        if self.preset not in PRESETS:
            raise UserError(f"There is no preset {self.preset!r}; choose among {sorted(PRESETS)}.")
        if len(set(map(self.recipe, self.arms))) != len(self.arms):
            raise UserError(f"--arms {' '.join(self.arms)} names one twice, since --preset is "
                            f"{self.preset}; drop it.")
        if (self.images is None) != (self.labels is None):
            raise UserError("--images and --labels belong together: give both or neither.")
        if self.ensemble and (self.images is None or len(self.folds) < 2):
            raise UserError("--ensemble needs --images and --labels, and at least two --folds.")

    def generator(self, arm: str) -> FitConfig | None:
        """The settings of the generator that an arm draws from, None where it needs none."""
        variant = Variant.of(arm)
        return limited(PRESETS[variant.preset or self.preset], variant.patients) \
            if needs_generator(variant.trainer) else None

    def waits(self, variant: Variant) -> int | None:
        """`warm_up` of a variant: with p = 1 the pool is full from the start, so all is synthetic.
        """
        return InjectionConfig().pool_cases if variant.probability == 1 else self.warm_up

    def recipe(self, arm: str) -> Recipe:
        variant, generator = Variant.of(arm), self.generator(arm)
        return Recipe(self.dataset, self.configuration, self.plans, variant.trainer, self.epochs,
                      self.iterations, generator and generator.preset,
                      generator and config_hash(generator),
                      self.waits(variant) if injects(variant.trainer) else None,
                      probability=variant.probability, patients=variant.patients, fade=variant.fade,
                      no_reflow_share=variant.no_reflow_share, half=self.half)

    def fixed(self) -> dict:
        """The settings that must stay the same for every run into one output folder; those of
        ADDABLE may be given later."""
        names = ("dataset", "configuration", "plans", "epochs", "iterations", "preset", "warm_up",
                 "half")
        return {**{name: getattr(self, name) for name in names},
                **{name: None if (path := getattr(self, name)) is None else str(path)
                   for name in ADDABLE}}

    def split_name(self, split: str) -> str:
        """A split with the folds that it is of, as number rows name it."""
        folds = "+".join(map(str, self.folds))
        return f"{split}, fold{'s' * (len(self.folds) > 1)} {folds}"

    def context(self, split: str) -> dict:
        """What every number row of a split says of where it comes from, see `compare`."""
        return {"benchmark": "arms", "dataset": self.dataset, "split": self.split_name(split),
                "command": self.command()}

    def command(self) -> str:
        """The `lgesynth benchmark` command that these settings are."""
        argv = ["lgesynth", "benchmark", "-d", self.dataset, "-c", self.configuration, "-p",
                self.plans, "--arms", *self.arms, "--folds", *map(str, self.folds), "--seeds",
                str(self.seeds), "--preset", self.preset, "-device", self.device,
                *budget_argv(self), *warm_up_argv(self.warm_up), "-o", self.out.name]
        if self.images is not None:
            argv += ["--images", self.images.name, "--labels", self.labels.name,
                     *["--ensemble"] * self.ensemble]
        return shlex.join(argv)


@cache
def painter_of(trainer: str) -> str | None:
    """Who paints the scars of a trainer, its class attribute `generator`: None, "paint" or
    "lgesynth"; None of one that is not of the plugin's kind. `UserError` where nnU-Net finds no
    such trainer."""
    for arm, own in TRAINERS.items():
        if trainer.startswith(own) and trainer in dict(list_trainers()):     # spares importing it
            return None if arm == REFERENCE else arm
    add_to_environment()
    found = find_trainer(trainer)
    return found.generator if is_ours(found) else None


def needs_generator(trainer: str) -> bool:
    """Whether a trainer draws from a fitted inpainter (nnUNetTrainerLGESynth and its kin)."""
    return painter_of(trainer) == "lgesynth"


def injects(trainer: str) -> bool:
    """Whether a trainer must have injected something."""
    return painter_of(trainer) is not None


def budget_argv(settings: Settings) -> list[str]:
    """Flags of every training."""
    flags = {"--epochs": settings.epochs, "--iterations": settings.iterations}
    return [text for flag, value in flags.items() if value is not None
            for text in (flag, str(value))] + ["--half"] * bool(settings.half)


def warm_up_argv(cases: int | None) -> list[str]:
    """Flags of a training that waits for so many scarred cases."""
    return [] if cases is None else ["--warm-up", str(cases)]
