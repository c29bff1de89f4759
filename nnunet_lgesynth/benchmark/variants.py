"""What an arm's name says: a trainer, and what it changes for its runs.

    real, paint, lgesynth       the plugin's trainers
    nnUNetTrainer...            any other
    synthetic-only              lgesynth:p=1
    NAME:p=0.25,f=0.5,c=0.7,n=20    injects with probability 0.25, which falls to 0 over the last
                                half of the training, asks for a no-reflow core in 70 % of scars,
                                trains on 20 of the fold's patients
    lgesynth:g=roi-cpu-plain    draws from a generator of this preset, an ablation
    ...+filter                  the same predictions after the volume filter
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

from nnunet_lgesynth.benchmark.records import FILTERED
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.presets import PRESETS

__all__ = ["REFERENCE", "TRAINERS", "Variant", "canonical", "file_name", "further_references",
           "is_tested", "reference_of"]

REFERENCE = "real"
TRAINERS = {REFERENCE: "nnUNetTrainerLGEReal", "paint": "nnUNetTrainerLGEPaint",
            "lgesynth": "nnUNetTrainerLGESynth"}
ALIASES = {"synthetic-only": "lgesynth:p=1"}


# letter in an arm's name -> field, type, variable of its trainings, which g has none of
KEYS = {"p": ("probability", float, "LGESYNTH_PROBABILITY"),
        "f": ("fade", float, "LGESYNTH_FADE"),
        "c": ("no_reflow_share", float, "LGESYNTH_NO_REFLOW_SHARE"),
        "n": ("patients", int, "LGESYNTH_PATIENTS"), "g": ("preset", str, None)}


@dataclass(frozen=True)
class Variant:
    """A trainer, and what its runs change; None: as it is."""

    trainer: str
    probability: float | None = None
    fade: float | None = None
    no_reflow_share: float | None = None
    patients: int | None = None
    preset: str | None = None

    @classmethod
    def of(cls, arm: str) -> Variant:
        """Of an arm's name; `UserError` where it says nothing."""
        name, colon, told = ALIASES.get(arm, arm).partition(":")
        trainer = TRAINERS.get(name, name)
        if not trainer.startswith("nnUNetTrainer"):
            raise UserError(f"Unknown arm {arm!r}: choose among {sorted({*TRAINERS, *ALIASES})} or "
                            "give a trainer's class name, nnUNetTrainer...; filtered arms are "
                            "computed in any case.")
        found: dict[str, float] = {}
        for part in told.split(",") if colon else ():
            key, _, value = part.partition("=")
            try:
                field, kind, _ = KEYS[key]
                if field in found:
                    raise ValueError
                found[field] = kind(value)
            except (KeyError, ValueError):
                raise UserError(f"Arm {arm!r}: {part!r} is neither p=PROBABILITY, f=SHARE, "
                                "c=SHARE, n=PATIENTS nor g=PRESET, each once; write for example "
                                "lgesynth:p=0.25,n=20.") from None
        if (trainer == TRAINERS[REFERENCE] and set(found) - {"patients"}) \
                or not 0 < found.get("probability", 1) <= 1:
            raise UserError(f"Arm {arm!r}: p must lie above 0 and at most at 1, in an arm that "
                            f"injects; without injection it is {REFERENCE}.")
        if (not 0 <= found.get("no_reflow_share", 0) <= 1 or found.get("patients", 2) < 2
                or not 0 < found.get("fade", 1) <= 1):
            raise UserError(f"Arm {arm!r}: c must lie in [0, 1], f above 0 and at most at 1, and "
                            "at least 2 patients are needed.")
        if "preset" in found and (not trainer.startswith(TRAINERS["lgesynth"])
                                  or found["preset"] not in PRESETS):
            raise UserError(f"Arm {arm!r}: g is the preset of the inpainter that an arm draws "
                            f"from, one of {', '.join(sorted(PRESETS))}.")
        return cls(trainer, **found)

    @property
    def _told(self) -> dict[str, str]:
        return {key: str(value) for key, (field, _, _) in KEYS.items()
                if (value := getattr(self, field)) is not None}

    @property
    def name(self) -> str:
        """The arm's name, written one way."""
        base = next((k for k, v in TRAINERS.items() if v == self.trainer), self.trainer)
        told = ",".join(f"{key}={value}" for key, value in self._told.items())
        return base + (f":{told}" if told else "")

    @property
    def suffix(self) -> str:
        """Tells its results from those of other variants of the trainer, in file names."""
        return "".join(f"_{key}{value}" for key, value in self._told.items())

    @property
    def environment(self) -> dict[str, str]:
        """Of its trainings."""
        return {KEYS[key][2]: value for key, value in self._told.items() if KEYS[key][2]}


PAINT = Variant(TRAINERS["paint"])


def reference_of(arm: str) -> str:
    """The arm that `arm` is compared with: `real` with as many patients, filtered where `arm` is.
    Filtered `real` and `real` with fewer patients are compared with `real` itself."""
    name, filtered = arm.removesuffix(FILTERED), arm.endswith(FILTERED)
    if name.partition(":")[0] == REFERENCE:
        return REFERENCE if name == REFERENCE or not filtered else REFERENCE + FILTERED
    patients = Variant.of(name).patients
    return REFERENCE + (f":n={patients}" if patients else "") + FILTERED * filtered


def further_references(arm: str, arms: Iterable[str]) -> list[str]:
    """Those of `arms` that `arm` is compared with beside its reference, which decides nothing: of
    an ablation the arm that is none; the painter told the same, or else `paint` with as many
    patients; and `real` with the next larger number of them."""
    if not is_tested(arm):
        return []
    filtered, arms = arm.endswith(FILTERED), list(arms)
    variant = Variant.of(arm.removesuffix(FILTERED))
    whole = [a for a in arms if variant.preset and a.endswith(FILTERED) == filtered and Variant.of(
        a.removesuffix(FILTERED)) == replace(variant, preset=None)]
    painters = [painter.name + FILTERED * filtered for painter in (
        replace(variant, trainer=PAINT.trainer, preset=None),
        replace(PAINT, patients=variant.patients)) if variant.trainer != PAINT.trainer]
    real = {Variant.of(a.removesuffix(FILTERED)).patients or inf: a for a in arms
            if not is_tested(a) and a.endswith(FILTERED) == filtered}
    more = sorted(patients for patients in real if patients > (variant.patients or inf))
    return [*whole, *[p for p in painters if p in arms][:1],
            *(real[patients] for patients in more[:1])]


def canonical(arm: str) -> str:
    """The arm's name, written one way: `n=20,p=.5` and `p=0.5,n=020` are one arm."""
    return arm if arm in ALIASES else Variant.of(arm).name


def is_tested(arm: str) -> bool:
    """Whether a verdict is given on the arm: not on `real`, filtered or with fewer patients."""
    return not re.match(rf"{REFERENCE}($|[:+])", arm)


def file_name(arm: str) -> str:
    """The arm's name as a part of file names."""
    return re.sub(r"[^\w.+=-]", "_", arm)
