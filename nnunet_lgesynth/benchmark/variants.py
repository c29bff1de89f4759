"""What an arm's name says: a trainer, and what it changes for its runs.

    real, paint, lgesynth       the plugin's trainers
    nnUNetTrainer...            any other
    synthetic-only              lgesynth:p=1
    NAME:p=0.25,n=20            injects with probability 0.25, trains on 20 of the fold's patients
    ...+filter                  the same predictions after the volume filter
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nnunet_lgesynth.benchmark.collect import FILTERED
from nnunet_lgesynth.config import UserError

__all__ = ["REFERENCE", "TRAINERS", "Variant", "file_name", "is_tested",
           "reference_of"]

REFERENCE = "real"
TRAINERS = {REFERENCE: "nnUNetTrainerLGEReal", "paint": "nnUNetTrainerLGEPaint",
            "lgesynth": "nnUNetTrainerLGESynth"}
ALIASES = {"synthetic-only": "lgesynth:p=1"}


@dataclass(frozen=True)
class Variant:
    """Trainer, injection probability and number of training patients; None: as they are."""

    trainer: str
    probability: float | None = None
    patients: int | None = None

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
                found[key] = {"p": float, "n": int}[key](value)
            except (KeyError, ValueError):
                raise UserError(f"Arm {arm!r}: {part!r} is neither p=PROBABILITY nor n=PATIENTS; "
                                "write for example lgesynth:p=0.25,n=20.") from None
        if not 0 <= found.get("p", 0) <= 1:
            raise UserError(f"Arm {arm!r}: p must lie in [0, 1].")
        return cls(trainer, found.get("p"), found.get("n"))

    @property
    def suffix(self) -> str:
        """Tells its results from those of other variants of the trainer, in file names."""
        return "".join(f"_{key}{value:g}" for key, value in (("p", self.probability),
                                                             ("n", self.patients))
                       if value is not None)

    @property
    def environment(self) -> dict[str, str]:
        """Of its trainings."""
        return {name: f"{value:g}" for name, value in (
            ("LGESYNTH_PROBABILITY", self.probability), ("LGESYNTH_PATIENTS", self.patients))
            if value is not None}


def reference_of(arm: str) -> str:
    """The arm that `arm` is compared with: `real` with as many patients, filtered where `arm` is.
    Filtered `real` and `real` with fewer patients are compared with `real` itself."""
    name, filtered = arm.removesuffix(FILTERED), arm.endswith(FILTERED)
    if name.partition(":")[0] == REFERENCE:
        return REFERENCE if name == REFERENCE or not filtered else REFERENCE + FILTERED
    patients = Variant.of(name).patients
    return REFERENCE + (f":n={patients}" if patients else "") + FILTERED * filtered


def is_tested(arm: str) -> bool:
    """Whether a verdict is given on the arm: not on `real`, filtered or with fewer patients."""
    return not re.match(rf"{REFERENCE}($|[:+])", arm)


def file_name(arm: str) -> str:
    """The arm's name as a part of file names."""
    return re.sub(r"[^\w.+=-]", "_", arm)
