"""What a benchmark's folder stands for: one run at a time, settings that stay, and what was stated
before each run into it. Kept in `benchmark.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import TextIO

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_lgesynth.benchmark.external import external_info
from nnunet_lgesynth.benchmark.power import smallest_effects
from nnunet_lgesynth.benchmark.records import Records, read_rows
from nnunet_lgesynth.benchmark.settings import ADDABLE, Settings
from nnunet_lgesynth.benchmark.variants import Variant, is_tested, reference_of
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import make_folder, write_json

__all__ = ["FILE", "claim", "claimed", "made_of", "state"]

FILE = "benchmark.json"


def claim(settings: Settings, folds: dict[int, Fold]) -> None:
    """Write the settings, splits and plans, or refuse a folder that holds a benchmark with other
    ones."""
    path = settings.out / FILE
    data = {k: v for f in folds.values() for k, v in made_of(f).items()}
    fixed = {**settings.fixed(), **data}
    whole = _read(path)
    before = whole.get("settings", {})
    if before:          # what an older version did not know was at its default
        before = {**{f.name: f.default for f in dataclasses.fields(Settings) if f.name in fixed},
                  **before}
    fixed = {k: v for k, v in fixed.items() if k not in ADDABLE or v is not None}
    changed = [f"{k} {before[k]} -> {v}" for k, v in fixed.items()
               if before.get(k, v) != v and not (k in ADDABLE and before[k] is None)]
    if changed and _holds_results(settings):
        raise UserError(f"{settings.out} holds a benchmark with other settings "
                        f"({', '.join(changed)}); choose another output folder with -o.")
    trainings = Records.below(settings.out, settings.dataset).trainings
    for row in read_rows(trainings):                       # put there by hand
        now = {**data, **_made_of_row(row, folds)}
        for what, told in row.get("made_of", {}).items():
            if now.get(what, told) != told:
                raise UserError(f"{trainings} holds a training with other data ({what} {told} -> "
                                f"{now[what]}); choose another output folder with -o.")
    make_folder(settings.out)
    write_json(path, {**whole, "settings": {**before, **fixed}})


def claimed(out: Path) -> dict:
    """The settings that a folder was claimed with."""
    return _read(out / FILE)["settings"]


def _statements(settings: Settings, folds: dict[int, Fold], test: Sequence[str],
                arms: Sequence[str]) -> dict[str, str]:
    """{split: what was asked for, and what the split's patients can show}, from their truth and the
    number of arms alone."""
    fold = next(iter(folds.values()))
    ending = fold.dataset_json["file_ending"]
    external = external_info(settings.labels, fold) if test else fold.info
    patients = {"validation": [(f.info.patient(case),
                                f.folder.parent / "gt_segmentations" / f"{case}{ending}")
                               for f in folds.values() for case in f.val],
                "external": [(external.patient(case), settings.labels / f"{case}{ending}")
                             for case in test]}
    found = {split: smallest_effects(truths, fold.info.roles, arms)
             for split, truths in patients.items() if truths}
    if settings.ensemble:
        found["ensemble"] = found["external"]
    asked = (f"{', '.join(arms)}, fold {' '.join(map(str, settings.folds))}, "
             f"{settings.seeds} seed{'s' * (settings.seeds > 1)}")
    return {split: f"{asked}: {sentence}" for split, sentence in found.items()}


def state(settings: Settings, folds: dict[int, Fold], test: Sequence[str], arms: Sequence[str],
          ended: int, stream: TextIO) -> dict[str, list[str]]:
    """Tell on `stream` and write the statements before anything is trained here, with the number
    of trainings that had `ended` by then. What was stated before earlier runs stays: {split: [a
    sentence a run that was asked for something else]}."""
    path = settings.out / FILE
    whole = _read(path)
    stated = whole.get("before", {})
    for split, said in _statements(settings, folds, test, arms).items():
        earlier = stated.setdefault(split, [])
        if not any(f", {said}" in line for line in earlier[-1:]):
            earlier.append(f"{date.today().isoformat()}, {said}" + (
                f" Of these trainings {ended} had ended before this was stated." if ended else ""))
        print(f"{split}, {said}", file=stream, flush=True)
    for arm in settings.arms:
        if is_tested(arm) and reference_of(arm) not in arms:
            print(f"Arm {arm} is compared with nothing: add {reference_of(arm)} to --arms.",
                  file=stream, flush=True)
    write_json(path, {**whole, "before": stated})
    return stated


def made_of(fold: Fold, patients: int | None = None) -> dict[str, str]:
    """A fold's split, who the `patients` are that a training keeps of it, what nnU-Net made of the
    dataset, and what its labels mean: of these two trainings must have the same."""
    manager = PlansManager(fold.plans)
    told = {**{k: v for k, v in fold.plans.items() if k != "configurations"},
            "configuration": manager.get_configuration(fold.configuration).configuration}
    digest = sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    roles = {k: v for k, v in dataclasses.asdict(fold.info.roles).items() if v is not None}
    meaning = " ".join(f"{name}={value}" for name, value in sorted(roles.items()))
    kept = {} if patients is None else {
        f"split of fold {fold.fold}, n={patients}": fold.subset(patients).split_hash}
    return {f"split of fold {fold.fold}": fold.split_hash, **kept,
            f"plans of {fold.configuration}": digest[:12], "meaning of labels": meaning}


def _made_of_row(row: dict, folds: dict[int, Fold]) -> dict[str, str]:
    """`made_of` of a recorded training as it would be now."""
    try:
        patients = Variant.of(row.get("arm", "")).patients
        return made_of(folds[row["fold"]], patients) if patients else {}
    except (UserError, KeyError):          # another version's arm, a fold that is not asked for
        return {}


def _holds_results(settings: Settings) -> bool:
    """Whether anything was trained or recorded that other settings would mix with."""
    records = Records.below(settings.out, settings.dataset)
    return (any(path.is_file() for path in (records.cases, records.trainings))
            or any(any(settings.out.glob(f"seed_*/nnUNet_results/*/*/fold_*/{name}"))
                   for name in ("checkpoint_*.pth", "lgesynth.jsonl")))


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        whole = json.loads(path.read_text())
        # one sentence a split where an earlier version wrote it
        stated = {split: [said] if isinstance(said, str) else said
                  for split, said in whole.get("before", {}).items()}
        return {**whole, "settings": dict(whole["settings"]), "before": stated}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); delete it, the rows beside it stay."
                        ) from error
