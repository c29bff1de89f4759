"""Write an nnU-Net raw dataset from image and label files: all of it, or nothing.

A converter names its cases and labels and calls `write_raw_dataset`. The dataset is built in a
hidden folder beside its target and renamed as the last step, so a failed or interrupted run
leaves no half dataset behind. Geometry (spacing, origin, direction) is copied; with `Region`,
each stack becomes an LV-centred crop resampled in plane.
"""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import DatasetInfo, write_info
from nnunet_lgesynth.files import write_json

__all__ = ["Region", "SourceCase", "make_splits", "swap_in", "write_image", "write_raw_dataset"]

SPLIT_SEED = 12345   # nnU-Net's own


@dataclass(frozen=True)
class SourceCase:
    """One stack: a file a channel, the labels if there are any, and the stratum of the split.
    `same_as` names an earlier case of the same patient: both are validated on in one fold."""

    identifier: str
    images: tuple[Path, ...]
    labels: Path | None
    stratum: str
    same_as: str | None = None


@dataclass(frozen=True)
class Region:
    """An in-plane crop of `pixels` x `pixels` at `spacing` mm around the LV (else the image)."""

    pixels: int
    spacing: float

    def __post_init__(self):
        if self.pixels < 16 or not 0.2 <= self.spacing <= 10:
            raise UserError(f"--roi needs at least 16 pixels and --spacing 0.2 to 10 mm, not "
                            f"{self.pixels} and {self.spacing}.")


def write_raw_dataset(raw: str | Path, name: str, cases: Sequence[SourceCase], *,
                      channel_names: dict[str, str], labels: dict[str, int], info: DatasetInfo,
                      reference: str, licence: str, values: dict[int, int] | None = None,
                      region: Region | None = None, overwrite: bool = False) -> Path:
    """Write `raw/name` with imagesTr/labelsTr (imagesTs for unlabelled cases), `dataset.json`,
    `lgesynth.json` and a patient-level, stratified `splits_final.json`; returns the folder.

    `values` translates the label files' values to those of `labels`; default: they are the same.
    """
    values = values or {v: v for v in labels.values()}
    target = Path(raw) / name
    _refuse_existing(target, overwrite)
    partial = target.with_name(f".{name}.{uuid.uuid4().hex[:8]}.part")
    try:
        (partial / "imagesTr").mkdir(parents=True)
        (partial / "labelsTr").mkdir()
        for case in tqdm(cases, desc=f"Writing {name}", unit="case"):
            _write_case(partial, case, values, info, region)
        labelled = [c for c in cases if c.labels is not None]
        write_json(partial / "dataset.json", {
            "name": name, "channel_names": channel_names, "labels": labels,
            "numTraining": len(labelled), "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
            "reference": reference, "licence": licence,
            "converted_by": "nnunet-lgesynth"})
        same_as = {c.identifier: c.same_as for c in labelled
                   if c.same_as in {c.identifier for c in labelled}}
        write_json(partial / "splits_final.json", make_splits(
            [c.identifier for c in labelled], [c.stratum for c in labelled], same_as))
        write_info(partial, replace(info, same_as=same_as))
        swap_in(partial, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}); free some space or choose "
                        "another nnUNet_raw. Nothing was changed.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _refuse_existing(target: Path, overwrite: bool) -> None:
    prefix = target.name.split("_")[0] + "_"
    others = [p.name for p in target.parent.glob(prefix + "*") if p.name != target.name]
    if others:
        raise UserError(f"Dataset id {prefix[7:-1]} is taken by {others[0]}; choose another -d.")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; add --overwrite to replace it, or choose another -d.")


def swap_in(partial: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`, which stays whole if that fails."""
    old = target.with_name(partial.name + ".old")
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(partial, target)
    finally:
        if old.exists() and not target.exists():
            os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)


def _write_case(folder: Path, case: SourceCase, values: dict[int, int], info: DatasetInfo,
                region: Region | None) -> None:
    images = [_read(path, case.identifier) for path in case.images]
    for path, image in zip(case.images, images):
        _check_image(image, path, case.identifier)
        _check_geometry(image, images[0], f"{case.identifier}: {path}")
    labels = None
    if case.labels is not None:
        labels = _read(case.labels, case.identifier)
        _check_geometry(labels, images[0], f"{case.identifier}: {case.labels}")
        labels = _checked_labels(labels, values, info, case)
    if region is not None:
        images, labels = _crop(images, labels, info, region)
    split = "Tr" if labels is not None else "Ts"
    (folder / f"images{split}").mkdir(exist_ok=True)
    for channel, image in enumerate(images):
        write_image(image, folder / f"images{split}" / f"{case.identifier}_{channel:04d}.nii.gz")
    if labels is not None:
        write_image(labels, folder / "labelsTr" / f"{case.identifier}.nii.gz")


def write_image(image: sitk.Image, path: Path) -> None:
    """Write and read back: ITK cuts a NIfTI file short without a word when the disk is full."""
    try:
        sitk.WriteImage(image, str(path))
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise OSError(f"{path.name} could not be written: is the disk full?") from error
    if not np.array_equal(stored, sitk.GetArrayViewFromImage(image)):
        raise OSError(f"{path.name} was cut short: is the disk full?")


def _read(path: Path, identifier: str) -> sitk.Image:
    try:
        finite = _is_finite(path)
        image = sitk.ReadImage(str(path))
    except (RuntimeError, EOFError, OSError, ValueError, zlib.error, ImageFileError) as error:
        raise UserError(f"{identifier}: {path} cannot be read as an image; is the file "
                        "complete?") from error
    if not finite:
        raise UserError(f"{identifier}: {path} holds NaN or infinite values; mend or drop it.")
    if image.GetDimension() != 3:
        raise UserError(f"{identifier}: {path} has {image.GetDimension()} dimensions, 3 are "
                        "needed (slices stacked along the last axis).")
    return image


def _is_finite(path: Path) -> bool:
    """Read by nibabel: ITK turns NaN, and what a cut file lacks, into zeros without a word."""
    return bool(np.isfinite(np.asanyarray(nibabel.load(path).dataobj)).all())


def _check_image(image: sitk.Image, path: Path, identifier: str) -> None:
    values = sitk.GetArrayViewFromImage(image)
    if values.min() == values.max():
        raise UserError(f"{identifier}: {path} is constant ({values.min()}); mend or drop it.")


def _check_geometry(image: sitk.Image, first: sitk.Image, what: str) -> None:
    for name in ("Size", "Spacing", "Origin", "Direction"):
        a, b = (getattr(i, f"Get{name}")() for i in (first, image))
        if not np.allclose(a, b, atol=1e-3):
            raise UserError(f"{what} has {name.lower()} {b}, its image {a}; they must agree: "
                            "export both from the same series.")


def _checked_labels(labels: sitk.Image, values: dict[int, int], info: DatasetInfo,
                    case: SourceCase) -> sitk.Image:
    """The labels translated by `values`, as uint8, if they are known ones and show a heart."""
    what = f"{case.identifier}: {case.labels}"
    found = np.unique(sitk.GetArrayViewFromImage(labels))
    strange = [f"{v:g}" for v in found.tolist() if not any(abs(v - a) < 1e-3 for a in values)]
    if strange:
        raise UserError(f"{what} holds labels {', '.join(strange[:5])}; allowed are "
                        f"{sorted(values)}: relabel it, or remove the file.")
    stored = [round(v) for v in found.tolist()]
    present = {values[v] for v in stored}
    if info.roles.cavity not in present or not present & set(info.roles.wall):
        raise UserError(f"{what} has no LV cavity or no myocardium (labels {stored}); "
                        "mend it, or remove the file to convert the case without labels.")
    whole = sitk.Cast(sitk.Round(sitk.Cast(labels, sitk.sitkFloat32)), sitk.sitkInt32)
    return sitk.Cast(sitk.ChangeLabel(whole, values), sitk.sitkUInt8)


def _crop(images: list[sitk.Image], labels: sitk.Image | None, info: DatasetInfo,
          region: Region) -> tuple[list[sitk.Image], sitk.Image | None]:
    image = images[0]
    centre = (np.array(image.GetSize()) - 1) / 2      # (x, y, z) in voxels
    if labels is not None:
        heart = np.isin(sitk.GetArrayViewFromImage(labels),
                        [info.roles.cavity, *info.roles.wall])
        centre[:2] = [axis.mean() for axis in np.nonzero(heart)[::-1]][:2]
    spacing = np.array([region.spacing, region.spacing, image.GetSpacing()[2]])
    size = [region.pixels, region.pixels, image.GetSize()[2]]
    first = centre - (np.array(size) - 1) / 2 * spacing / np.array(image.GetSpacing())
    first[2] = 0
    grid = (size, sitk.Transform(), sitk.sitkLinear,
            image.TransformContinuousIndexToPhysicalPoint(first.tolist()), spacing.tolist(),
            image.GetDirection())
    cropped = [sitk.Resample(i, *grid, 0.0, sitk.sitkFloat32) for i in images]
    return cropped, None if labels is None else _resample_labels(labels, grid, cropped[0])


def _resample_labels(labels: sitk.Image, grid: tuple, like: sitk.Image) -> sitk.Image:
    """The label with the largest linearly interpolated share of each pixel.

    ITK's label interpolators weigh neighbouring slices too, which loses what one slice shows.
    """
    values = np.unique(sitk.GetArrayViewFromImage(labels))
    shares = [sitk.GetArrayFromImage(sitk.Resample(
        sitk.Cast(labels == int(v), sitk.sitkFloat32), *grid, float(v == 0), sitk.sitkFloat32))
        for v in values]
    result = sitk.GetImageFromArray(values[np.argmax(shares, axis=0)])
    result.CopyInformation(like)
    return result


def make_splits(identifiers: Sequence[str], strata: Iterable[str],
                same: Mapping[str, str] | None = None) -> list[dict]:
    """nnU-Net's `splits_final.json`: up to 5 folds, one patient in one validation set, strata
    (pathological / normal) spread evenly; the same for the same input on every machine.

    `same` maps a case to another one of its patient, whose validation set it joins; all other
    cases stay where they would be without.
    """
    order = sorted(zip(identifiers, strata))
    names = np.array([i for i, _ in order])
    groups = [s for _, s in order]
    if len(set(identifiers)) != len(names) or len(names) < 2:
        raise UserError(f"At least 2 labelled cases with different names are needed for a "
                        f"split, got {len(names)}; add the missing label files to the source.")
    counts = [groups.count(g) for g in set(groups)]
    if min(counts) < 2:      # a stratum of one cannot be spread
        groups, counts = ["all"] * len(names), [len(names)]
    folds = StratifiedKFold(min(5, *counts) if len(counts) > 1 else min(5, len(names)),
                            shuffle=True, random_state=SPLIT_SEED)
    held = {name: k for k, (_, b) in enumerate(folds.split(names, groups)) for name in names[b]}
    held |= {case: held[other] for case, other in (same or {}).items() if other in held}
    splits = [{"train": [str(n) for n in names if held[n] != k],
               "val": [str(n) for n in names if held[n] == k]}
              for k in range(folds.get_n_splits())]
    if not all(s["train"] and s["val"] for s in splits):
        raise UserError("A fold is left without cases once those of one patient are kept together; "
                        "add labelled cases to the source.")
    return splits
