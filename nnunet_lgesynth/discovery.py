"""Where the trainers lie, so that nnU-Net's own lookup finds them; imports nnU-Net only to ask it
for a trainer that is not ours.

nnU-Net searches its built-in trainers and then every folder in `nnUNet_extTrainer`. Installed, our
folder is the package `nnunet_lgesynth.trainers`; in a plain checkout it is `trainers/` beside it.
"""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from nnunet_lgesynth.config import InjectionConfig, UserError

__all__ = ["VARIABLE", "add_to_environment", "find_trainer", "in_environment", "is_ours",
           "list_trainers", "trainers_folder"]

VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> Path:
    """The folder that `nnUNet_extTrainer` must name; `UserError` where the install lacks it."""
    spec = find_spec("nnunet_lgesynth.trainers")
    candidates = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    candidates.append(Path(__file__).resolve().parents[1] / "trainers")
    for folder in candidates:
        if (folder / "nnUNetTrainerLGESynth.py").is_file():
            return folder
    raise UserError(f"The trainers' folder is missing (looked in {candidates[-1]}); install again: "
                    "pip install --force-reinstall --no-deps nnunet-lgesynth")


def list_trainers() -> list[tuple[str, str]]:
    """(class name, what it does in one line) of every trainer, read without importing it."""
    rows = []
    for path in sorted(trainers_folder().glob("nnUNetTrainer*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append((path.stem, text.partition("\n")[0]))
    return rows


def in_environment() -> bool:
    """Whether `nnUNet_extTrainer` names our folder already."""
    folder = trainers_folder().resolve()
    entries = os.environ.get(VARIABLE, "").split(os.pathsep)
    return any(Path(entry).resolve() == folder for entry in entries if entry.strip())


def add_to_environment() -> None:
    """Add our folder to `nnUNet_extTrainer` of this process and its children, after the others."""
    if not in_environment():
        entries = [e for e in os.environ.get(VARIABLE, "").split(os.pathsep) if e.strip()]
        os.environ[VARIABLE] = os.pathsep.join([*entries, str(trainers_folder())])


def is_ours(trainer: type) -> bool:
    """Whether a trainer is of the plugin's kind, without importing that."""
    return isinstance(getattr(trainer, "injection", None), InjectionConfig)


def find_trainer(name: str, ours_only: Sequence[str] = ()) -> type:
    """The trainer's class, by nnU-Net's own lookup.

    Raises `UserError` where there is none, where a file that is searched does not import, and where
    flags are given (`ours_only`, their names) that only the plugin's trainers obey.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with redirect_stdout(io.StringIO()):     # it tells of every file it looks into
            trainer = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise UserError(f"nnU-Net finds no trainer {name!r}; `lgesynth trainers` lists the "
                        f"plugin's, others must lie in a folder that {VARIABLE} names.") from error
    except Exception as error:                   # whatever a searched file raises
        raise UserError(f"nnU-Net cannot look for {name!r}: a file in its trainer folder or in "
                        f"{VARIABLE}={os.environ.get(VARIABLE, '')} does not import ({error!r}); "
                        "mend it or take its folder out.") from error
    if ours_only and not is_ours(trainer):
        raise UserError(f"{', '.join(ours_only)}: {name} has its own numbers, only the plugin's "
                        "trainers obey such flags; drop them, or choose nnUNetTrainerLGEReal.")
    return trainer
