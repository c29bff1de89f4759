"""What is wrong with one fold of a dataset, and the remedy: the second half of `doctor`.

    labels -> plans -> splits -> hearts -> judge -> generator

Each check is a generator of (status, message) or (status, message, remedy), run by `doctor`; a
`UserError` on the way, "rule; remedy", ends it as an error. Files are only read.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import Roles, read_info

__all__ = ["DATASET_CHECKS", "Target"]


@dataclass(frozen=True)
class Target:
    """The (dataset, plans, configuration, fold) that is asked about."""

    name: str
    configuration: str
    plans: str
    fold: int | str

    def folder(self, variable: str) -> Path:
        if not os.environ.get(variable):
            raise UserError(f"{variable} is not set, so {self.name} cannot be examined there; "
                            f"export {variable}=/path/to/{variable}")
        return Path(os.environ[variable]) / self.name

    @property
    def preprocess(self) -> str:
        return (f"nnUNetv2_plan_and_preprocess -d {self.name[7:10]} -c {self.configuration} "
                "--verify_dataset_integrity")

    @property
    def flags(self) -> str:
        return f"-d {self.name[7:10]} -c {self.configuration} -f {self.fold} -p {self.plans}"


def _labels(target: Target):
    folder = target.folder("nnUNet_raw")
    if not folder.is_dir():
        folder = target.folder("nnUNet_preprocessed")   # clusters often hold this one alone
    described = _read_json(folder / "dataset.json", "convert the dataset again")
    roles = read_info(folder).roles
    values = {int(v) for value in described["labels"].values()
              if value != described["labels"].get("ignore")
              for v in (value if isinstance(value, list) else [value])}
    remedy = f"lgesynth roles -d {target.name[7:10]}"
    unknown = sorted(_role_values(roles) - values)
    if unknown:
        yield ("error", f"lgesynth.json gives roles to label values {unknown}, and dataset.json "
               f"has {sorted(values)}.", remedy)
    elif str(roles.lge_channel) not in described["channel_names"]:
        yield ("error", f"lgesynth.json names channel {roles.lge_channel} as LGE, and "
               f"dataset.json has {described['channel_names']}.", remedy)
    else:
        yield "ok", f"Roles and channel in {folder / 'lgesynth.json'} fit dataset.json."


def _role_values(roles: Roles) -> set[int]:
    return {roles.cavity, *roles.wall} | ({roles.rv} - {None})


def _read_json(path: Path, remedy: str):
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); {remedy}") from error


def _read_plans(target: Target) -> dict:
    """The plans, which have the configuration; `UserError` names what is missing."""
    plans = _read_json(target.folder("nnUNet_preprocessed") / f"{target.plans}.json",
                       target.preprocess)
    if target.configuration not in plans["configurations"]:
        raise UserError(f"{target.plans} has no configuration {target.configuration}, only "
                        f"{sorted(plans['configurations'])}; choose one with -c")
    return plans


def _cases_folder(target: Target) -> Path:
    """The configuration's preprocessed cases; `UserError` names what is wrong on the way."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_lgesynth.dataset.case import refuse_cascade

    plans = _read_plans(target)
    refuse_cascade(plans, target.configuration)
    configuration = PlansManager(plans).get_configuration(target.configuration)
    return target.folder("nnUNet_preprocessed") / configuration.data_identifier


def _planar(target: Target) -> Target:
    """The target whose generator and judge serve this one: the 2D configuration for a 3D one."""
    from nnunet_lgesynth.dataset.case import planar

    return replace(target, configuration=planar(_read_plans(target), target.configuration))


def _plans(target: Target):
    cases = _cases_folder(target)
    if cases.is_dir():
        yield "ok", f"{target.plans} has {target.configuration}, preprocessed in {cases}."
    else:
        yield "error", f"{cases} is missing.", target.preprocess


def _split(target: Target) -> dict[str, list[str]] | None:
    """The fold's train and validation cases; None where nnU-Net has still to draw them."""
    path = target.folder("nnUNet_preprocessed") / "splits_final.json"
    if target.fold == "all" or not path.is_file():
        return None
    splits = _read_json(path, "copy it again from the raw dataset")
    if target.fold >= len(splits):
        raise UserError(f"Fold {target.fold} is not in {path}, which has {len(splits)} folds; "
                        f"choose -f 0 to {len(splits) - 1}")
    return splits[target.fold]


def _splits_to_come(target: Target) -> tuple[str, str, str]:
    base, raw = (target.folder(v) for v in ("nnUNet_preprocessed", "nnUNet_raw"))
    if not base.is_dir():
        return "error", f"{base} is missing.", target.preprocess
    remedy = f"write {base}/splits_final.json with scarred patients in every fold"
    if (raw / "splits_final.json").is_file():
        remedy = f"cp {raw}/splits_final.json {base}/"
    return ("warning", f"{base}/splits_final.json is missing, so nnU-Net will draw one without "
            "regard to scar.", remedy)


def _absent(split: dict[str, list[str]], folder: Path) -> list[str]:
    """The split's cases that are not among the preprocessed ones."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    known = infer_dataset_class(str(folder)).get_identifiers(str(folder))
    return sorted({*split["train"], *split["val"]} - set(known))


def _splits(target: Target):
    split = _split(target)
    if split is None and target.fold == "all":
        yield "ok", "Fold all trains on every case and has no validation of its own."
        return
    if split is None:
        yield _splits_to_come(target)
        return
    both = sorted(set(split["train"]) & set(split["val"]))
    if both:
        yield ("error", f"{len(both)} cases of fold {target.fold} are in training and validation "
               f"(first: {both[0]}).", "write splits_final.json anew with separate patients")
    folder = _cases_folder(target)
    if not folder.is_dir():
        return                      # `plans` reports that
    absent = _absent(split, folder)
    if absent:
        yield ("error", f"{len(absent)} cases of fold {target.fold} are not in {folder} (first: "
               f"{absent[0]}).", target.preprocess)
    if not both and not absent:
        yield ("ok", f"Fold {target.fold} has {len(split['train'])} training and "
               f"{len(split['val'])} validation cases, all present.")


def _hearts(target: Target):
    """Whether the training cases hold what the plugin learns from and paints into."""
    from nnunet_lgesynth.config import InjectionConfig
    from nnunet_lgesynth.dataset.case import Fold
    from nnunet_lgesynth.pool.synthesize import prepare

    if not _can_open(target):
        return                      # `plans` or `splits` reports that
    fold = Fold.open(target.name, target.configuration, target.fold, target.plans)
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always")
        prior, hearts = prepare(fold, InjectionConfig().prior)
    for warning in left_out:
        if " left out; " in str(warning.message):
            yield ("warning", f"{warning.message}", "mend the case, or leave it: the plugin passes "
                   "over it and nnU-Net trains on it")
    healthy = sum(not heart.anatomy.scarred.any() for heart in hearts)
    counts = (f"{len(fold.train)} training cases: {len(prior.records)} with a scar to learn from, "
              f"{len(hearts)} to paint into, {healthy} of these free of scar.")
    if healthy:
        yield "ok", counts
    else:
        yield ("warning", f"{counts} Without scar-free ones no healthy wall is repainted, so being "
               "repainted alone tells a scar.", "add scar-free cases if there are any")


def _can_open(target: Target) -> bool:
    """Whether cases and split are there, all of them, so that opening the fold writes nothing."""
    folder = _cases_folder(target)
    if not folder.is_dir() or target.fold == "all":
        return folder.is_dir()
    split = _split(target)
    return split is not None and not _absent(split, folder)


def _judge(target: Target):
    """Whether the fold's real-only nnU-Net is there, loads, and is of these plans and labels."""
    from nnunet_lgesynth.dataset.case import Fold
    from nnunet_lgesynth.judge.segmenter import Segmenter, default_reward_folder

    results, wanted = target.folder("nnUNet_results").parent, _planar(target)
    try:
        folder = default_reward_folder(results, target.name, target.plans, wanted.configuration,
                                       target.fold)
    except UserError:
        yield ("warning", f"No real-only training of {wanted.configuration}, fold {target.fold} is "
               "finished, and lgesynth fit needs one as judge.",
               f"nnUNetv2_train {target.name[7:10]} {wanted.configuration} {target.fold} "
               f"-p {target.plans}")
        return
    judge = Segmenter.load_fold(folder, "cpu")       # what is wrong with it is a `UserError`
    if _can_open(target):
        fold = Fold.open(target.name, target.configuration, target.fold, target.plans)
        judge.check_fold(fold)
    yield "ok", f"The judge is {judge.source}."


def _generator(target: Target):
    from nnunet_lgesynth.dataset.case import Fold
    from nnunet_lgesynth.generators.fitted import RECORD, generator_folder
    from nnunet_lgesynth.pool.generator import judge_of

    wanted = _planar(target)
    pattern = generator_folder("", target.name, "*", target.plans, wanted.configuration,
                               target.fold)
    results = target.folder("nnUNet_results").parent
    fitted = [p.parent for p in sorted(results.glob(str(pattern / RECORD)))]
    if os.environ.get("LGESYNTH_GENERATOR"):
        fitted = [Path(os.environ["LGESYNTH_GENERATOR"])]
    refit = f"lgesynth fit {wanted.flags}"
    if not fitted:
        yield ("warning", f"No generator is fitted for fold {target.fold}; only "
               "nnUNetTrainerLGEPaint injects scars without one.", refit)
    if not _can_open(target):
        return                      # `plans` or `splits` reports that
    fold = Fold.open(target.name, target.configuration, target.fold, target.plans)
    for folder in fitted:
        try:
            judge = judge_of(folder, fold, "cpu")
        except UserError as error:
            yield "error", f"{error}", refit
        else:
            yield ("ok", f"{folder} saw no validation case of fold {target.fold}; its judge is "
                   f"{judge.source}.")


DATASET_CHECKS = {"labels": _labels, "plans": _plans, "splits": _splits, "hearts": _hearts,
                  "judge": _judge, "generator": _generator}
