"""One fold of a preprocessed nnU-Net dataset, and its cases; alone in knowing their file formats.

`Fold` gathers what (dataset, plans, configuration, fold) means on disk. A `Case` is nnU-Net's
preprocessed case in memory: image (C, Z, Y, X) float32, labels (1, Z, Y, X), properties. Cases are
opened read-only and copied, never changed in place, since training workers map the same files.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import (
    comp_blosc2_params,
    infer_dataset_class,
    nnUNetDatasetBlosc2,
)
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import DatasetInfo, Frame, read_info
from nnunet_lgesynth.dataset.splits import draw_patients, read_split, split_hash
from nnunet_lgesynth.files import read_json

__all__ = ["Case", "Fold", "check_roles", "dataset_name", "fold_folder", "nnunet_path", "planar",
           "refuse_cascade"]

PLANAR = "2d"                                           # nnU-Net's own name for its slices
FILE_ENDINGS = (".b2nd", ".npz", ".pkl", "_seg.b2nd")   # of nnU-Net's preprocessed cases


@dataclass(frozen=True)
class Case:
    """A preprocessed case; `spacing` is (3,) mm in the stored axis order."""

    identifier: str
    image: np.ndarray        # (C, Z, Y, X)
    labels: np.ndarray       # (1, Z, Y, X)
    properties: dict
    spacing: tuple[float, float, float]


def nnunet_path(name: str) -> Path:
    """The folder of one of nnU-Net's environment variables, e.g. `nnUNet_raw`."""
    value = os.environ.get(name)
    if not value:
        raise UserError(f"{name} is not set; set nnU-Net's environment variables, see: "
                        "lgesynth doctor")
    return Path(value)


def fold_folder(results: Path, dataset: str, trainer: str, plans: str, configuration: str,
                fold: int | str) -> Path:
    """Where nnU-Net leaves a trained fold of a dataset, given by its full name."""
    return results / dataset / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"


def dataset_name(dataset: int | str) -> str:
    """The full name of a dataset that nnU-Net finds in its folders."""
    try:
        return maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"There is not one dataset {dataset} in nnU-Net's folders; convert it "
                        "first, see: lgesynth convert --help, or name it in full with "
                        "-d.") from error


@dataclass(frozen=True)
class Fold:
    """Where one fold's cases are and what they mean."""

    dataset: str                 # e.g. Dataset116_EMIDECROI
    plans: dict
    configuration: str
    fold: int | str
    folder: Path                 # the configuration's preprocessed cases
    train: tuple[str, ...]
    val: tuple[str, ...]
    dataset_json: dict
    info: DatasetInfo            # its frame is in the stored axis order

    @classmethod
    def open(cls, dataset: int | str, configuration: str, fold: int | str,
             plans: str = "nnUNetPlans") -> Fold:
        """Find a fold by nnU-Net's own names; every missing piece is a `UserError`."""
        name = dataset_name(dataset)
        base = nnunet_path("nnUNet_preprocessed") / name
        plan = read_json(base / f"{plans}.json", f"nnUNetv2_plan_and_preprocess -d {dataset}")
        plan_text = f"nnUNetv2_plan_and_preprocess -d {dataset} -c {configuration}"
        if configuration not in plan["configurations"]:
            raise UserError(f"{plans}.json has no configuration {configuration!r}, only "
                            f"{sorted(plan['configurations'])}; choose one with -c.")
        folder = base / PlansManager(plan).get_configuration(configuration).data_identifier
        if not folder.is_dir():
            raise UserError(f"{folder} is missing; run: {plan_text}")
        dataset_json = read_json(base / "dataset.json", plan_text)
        train, val = read_split(base, _identifiers(folder), fold)
        return cls.of_training(plan, configuration, fold, dataset_json, folder, train, val)

    @classmethod
    def of_training(cls, plans: dict, configuration: str, fold: int | str, dataset_json: dict,
                    folder: Path, train: Sequence[str], val: Sequence[str]) -> Fold:
        """The fold of a running training, from what its trainer holds; `UserError` where cases of
        the split are not there any more."""
        refuse_cascade(plans, configuration)
        info = _info(plans["dataset_name"], folder.parent)
        check_roles(info, dataset_json, plans["dataset_name"])
        info = replace(info, frame=_stored_frame(info.frame, plans["transpose_forward"]))
        absent = sorted({*train, *val} - set(_identifiers(Path(folder))))
        if absent:
            raise UserError(f"{plans['dataset_name']} fold {fold}: {len(absent)} of its cases are "
                            f"not in {folder} (first: {absent[0]}); preprocess the dataset again, "
                            f"or take them out of {Path(folder).parent / 'splits_final.json'}.")
        return cls(plans["dataset_name"], plans, configuration, fold, Path(folder),
                   tuple(sorted(train)), tuple(sorted(val)), dataset_json, info)

    def read(self, identifier: str) -> Case:
        """One case, fully in memory."""
        if not (self.folder / f"{identifier}.pkl").is_file():
            raise UserError(f"There is no preprocessed case {identifier!r} in {self.folder}; cases "
                            f"are named like {next(iter(self.train + self.val), 'Case_1')!r}.")
        try:
            data, seg, _, properties = self._files.load_case(identifier)
            image, labels = np.asarray(data[:], np.float32), np.asarray(seg[:], np.int16)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{identifier}: its files in {self.folder} cannot be read ({error}); "
                            "preprocess the dataset again.") from error
        if image.shape[1:] != labels.shape[1:]:
            raise UserError(f"{identifier}: its preprocessed image has {image.shape[1:]} voxels, "
                            f"its labels {labels.shape[1:]}; mend the raw files and preprocess "
                            "again.")
        if not np.isfinite(image).all():
            raise UserError(f"{identifier}: its preprocessed image holds NaN or infinite values; "
                            "mend the raw image and preprocess again.")
        return Case(identifier, image, labels, properties, self._spacing(properties))

    def write(self, case: Case, folder: Path) -> list[Path]:
        """Store a case in `folder` in the format of this fold, with fresh `class_locations`;
        returns its files."""
        image, labels = case.image.astype(np.float32), case.labels
        labels = labels.astype(np.int8 if labels.max() <= 127 else np.int16)
        properties = {**case.properties, "class_locations": self.class_locations(labels)}
        stem = str(folder / case.identifier)
        if isinstance(self._files, nnUNetDatasetBlosc2):
            patch = tuple(self._configuration.patch_size)
            blocks, chunks = comp_blosc2_params(image.shape, patch, image.itemsize)
            blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, patch, labels.itemsize)
            self._files.save_case(image, labels, properties, stem, chunks=chunks, blocks=blocks,
                                  chunks_seg=chunks_seg, blocks_seg=blocks_seg)
        else:
            self._files.save_case(image, labels, properties, stem)
        files = [folder / f"{case.identifier}{ending}" for ending in FILE_ENDINGS]
        return [p for p in files if p.is_file()]

    def insertion(self, case: Case) -> tuple[float, float, float] | None:
        """The case's marked anterior RV insertion as (slice, row, column) voxel of its arrays."""
        marked = self.info.landmarks.get(case.identifier)
        if marked is None:
            return None
        axes, box = self.plans["transpose_forward"], case.properties["bbox_used_for_cropping"]
        place = [(marked[a] - low + 0.5) * case.properties["spacing"][a] / now - 0.5
                 for a, (low, _), now in zip(axes, box, case.spacing)]
        (first, end), slices = box[0], case.image.shape[1]
        if first <= marked[axes[0]] < end:       # by numbers: few slices do not fill the spacing
            within = (marked[axes[0]] - first + 0.5) * slices / (end - first) - 0.5
            place[0] = min(max(within, 0.0), slices - 1.0)
        return tuple(place)

    def class_locations(self, labels: np.ndarray) -> dict:
        """nnU-Net's own sample of foreground voxels for these labels (1, Z, Y, X)."""
        manager = PlansManager(self.plans).get_label_manager(self.dataset_json)
        wanted = list(manager.foreground_regions if manager.has_regions
                      else manager.foreground_labels)
        if manager.has_ignore_label:
            wanted.append([-1, *manager.all_labels])
        return DefaultPreprocessor._sample_foreground_locations(labels, wanted)

    def cases_folder(self, folder: Path):
        """nnU-Net's dataset object for a folder of cases in this fold's format."""
        return type(self._files)(str(folder), [])

    @property
    def plans_name(self) -> str:
        return self.plans["plans_name"]

    @property
    def patch_size(self) -> tuple[int, ...]:
        """(rows, columns), or (slices, rows, columns) where the fold is volumetric."""
        return tuple(self._configuration.patch_size)

    def scarred(self) -> frozenset[str]:
        """The training cases whose labels hold scar."""
        return frozenset(i for i in self.train
                         if np.isin(self.read(i).labels, self.info.roles.scars).any())

    def subset(self, patients: int | None) -> Fold:
        """The fold with so many of its training patients, with and without scar in the share that
        all have; the same on every machine, and a part of any larger subset. None: all."""
        if patients is None:
            return self
        of = {case: self.info.patient(case) for case in self.train}
        everyone = set(of.values())
        if not 2 <= patients <= len(everyone):
            raise UserError(f"The number of training patients must lie in 2..{len(everyone)} for "
                            f"fold {self.fold}, not {patients}.")
        scarred = {of[case] for case in self.train if self._truth_holds_scar(case)}
        chosen = draw_patients(everyone, scarred, patients)
        return replace(self, train=tuple(case for case in self.train if of[case] in chosen))

    def _truth_holds_scar(self, identifier: str) -> bool:
        """By nnU-Net's copy of the label file, which all configurations share."""
        path = (self.folder.parent / "gt_segmentations"
                / f"{identifier}{self.dataset_json['file_ending']}")
        try:
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read; preprocess the dataset again.") from error
        return bool(np.isin(labels, self.info.roles.scars).any())

    @property
    def raw_info(self) -> DatasetInfo:
        """`info` with its frame in the axis order of the raw files and of nnU-Net's predictions."""
        return _info(self.dataset, self.folder.parent)

    @property
    def split_hash(self) -> str:
        """Names the split; see `split_hash`."""
        return split_hash(self.train, self.val)

    @property
    def volumetric(self) -> bool:
        """Whether nnU-Net trains on 3D patches, of stacks that are resampled through-plane, too."""
        return len(self.patch_size) == 3

    @property
    def planar(self) -> str:
        """The configuration whose inpainter and judge serve this fold, see `planar`."""
        return planar(self.plans, self.configuration)

    @property
    def _configuration(self):
        return PlansManager(self.plans).get_configuration(self.configuration)

    @property
    def _files(self):
        return infer_dataset_class(str(self.folder))(str(self.folder), [])

    def _spacing(self, properties: dict) -> tuple[float, float, float]:
        original = [properties["spacing"][a] for a in self.plans["transpose_forward"]]
        stored = self._configuration.spacing if self.volumetric else \
            [original[0], *self._configuration.spacing[-2:]]
        return tuple(float(s) for s in stored)


def planar(plans: dict, configuration: str) -> str:
    """The configuration whose inpainter and judge, which know slices alone, serve this one: itself,
    or nnU-Net's 2d for a 3D one."""
    patch = PlansManager(plans).get_configuration(configuration).patch_size
    return configuration if len(patch) == 2 else PLANAR


def refuse_cascade(plans: dict, configuration: str) -> None:
    """`UserError` for the second stage of a cascade."""
    before = PlansManager(plans).get_configuration(configuration).previous_stage_name
    if before is not None:
        raise UserError(f"Configuration {configuration!r} is the second stage of a cascade, whose "
                        f"cases come with a segmentation by {before!r} that a synthetic one does "
                        "not have; use -c 3d_fullres or -c 2d.")


def _info(dataset: str, preprocessed: Path) -> DatasetInfo:
    raw = os.environ.get("nnUNet_raw")
    if raw and (Path(raw) / dataset).is_dir():
        return read_info(Path(raw) / dataset)
    return read_info(preprocessed)    # clusters often hold the preprocessed folder alone


def label_values(dataset_json: dict, ignore: bool = False) -> set[int]:
    """The values that `dataset.json` labels, of regions too, with or without the ignore label's."""
    return {int(v) for label, value in dataset_json["labels"].items() if ignore or label != "ignore"
            for v in (value if isinstance(value, (list, tuple)) else [value])}


def check_roles(info: DatasetInfo, dataset_json: dict, dataset: str) -> None:
    """Roles and channel must be ones that `dataset.json` has."""
    known, roles = label_values(dataset_json), info.roles
    unknown = sorted({roles.cavity, *roles.wall, *({roles.rv} - {None})} - known)
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    if unknown or str(roles.lge_channel) not in channels:
        what = f"label values {unknown}" if unknown else f"channel {roles.lge_channel}"
        raise UserError(f"lgesynth.json of {dataset} gives a role to {what}, which dataset.json "
                        f"does not have (labels {sorted(known)}, channels {channels}); write it "
                        f"anew with: lgesynth roles -d {dataset}")


def _stored_frame(frame: Frame, transpose: Sequence[int]) -> Frame:
    if list(transpose) == [0, 1, 2]:
        return frame
    if list(transpose) == [0, 2, 1]:
        return replace(frame, anterior=frame.anterior and frame.anterior[::-1],
                       septal=frame.septal and frame.septal[::-1])
    return Frame()                     # slices lie along another axis than the frame describes


def _identifiers(folder: Path) -> list[str]:
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
