"""One case as its files hold it: read by nnU-Net's own reader, written back in the same geometry.

For what a person looks at or hands on. Arrays can be in the files' axis order or in the one that a
plan stores; the slice axis comes first in both. `Stored` is the way of such a case through
nnU-Net's preprocessing and back, for a segmenter that knows nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from skimage.transform import resize

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold, dataset_name, nnunet_path
from nnunet_lgesynth.dataset.raw import write_image
from nnunet_lgesynth.files import read_json

__all__ = ["RawCase", "Stored", "raw_folder"]


def raw_folder(dataset: int | str) -> Path:
    """The raw folder of a dataset, by id or name."""
    folder = nnunet_path("nnUNet_raw") / dataset_name(dataset)
    if not folder.is_dir():
        raise UserError(f"{folder} is missing, so no case can be read; correct nnUNet_raw.")
    return folder


@dataclass(frozen=True)
class RawCase:
    """A case in its files' intensities; axis k of its arrays is axis `axes[k]` of the files."""

    case: Case
    images: tuple[Path, ...]
    labels: Path
    axes: tuple[int, int, int]

    @classmethod
    def read(cls, folder: Path, identifier: str,
             axes: Sequence[int] = (0, 1, 2)) -> RawCase:
        """A labelled training case of a raw dataset folder."""
        dataset_json = read_json(folder / "dataset.json", f"lgesynth doctor -d {folder.name}")
        files = get_filenames_of_train_images_and_targets(str(folder), dict(dataset_json))
        if identifier not in files:
            raise UserError(f"There is no case {identifier!r} in {folder}; cases are named like "
                            f"{str(next(iter(sorted(files)), 'Case_1'))!r}.")
        images, labels = files[identifier]["images"], files[identifier]["label"]
        reader = determine_reader_writer_from_dataset_json(dataset_json, images[0],
                                                           verbose=False)()
        try:
            data, properties = reader.read_images(images)
            segmentation, _ = reader.read_seg(labels)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"{identifier}: its files in {folder} cannot be read "
                            f"({str(error).strip().splitlines()[-1:]}); mend them.") from error
        if data.shape[1:] != segmentation.shape[1:]:
            raise UserError(f"{identifier}: its image has {data.shape[1:]} voxels, its labels "
                            f"{segmentation.shape[1:]}; mend the raw files.")
        moved = [0, *(a + 1 for a in axes)]
        whole = [[0, n] for n in np.array(data.shape[1:])[list(axes)].tolist()]
        case = Case(identifier, np.asarray(data, np.float32).transpose(moved),
                    np.asarray(segmentation, np.int16).transpose(moved),
                    {"spacing": list(properties["spacing"]), "bbox_used_for_cropping": whole},
                    tuple(float(properties["spacing"][a]) for a in axes))
        return cls(case, tuple(map(Path, images)), Path(labels), tuple(axes))

    def require_same_axes(self) -> None:
        """Refuse a case whose nnU-Net reader turns the stack: it could not be written back."""
        files = (*zip(self.images, self.case.image), (self.labels, self.case.labels[0]))
        for path, array in files:
            stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            array = array.transpose(np.argsort(self.axes))
            if stored.size != array.size or not np.array_equal(
                    stored.reshape(array.shape).astype(array.dtype), array):
                raise UserError(
                    f"{self.case.identifier}: nnU-Net's reader turns the stack of {path.name} "
                    "(overwrite_image_reader_writer in dataset.json), so a sample cannot be "
                    "written back in its geometry; use a dataset that is read by SimpleITKIO.")

    def write(self, changed: Case, folder: Path, name: str) -> list[Path]:
        """Write `images/<name>_000c.nii.gz` and `labels/<name>.nii.gz`; returns the files.

        Voxels that `changed` leaves alone are copied from the source files, in their own type.
        """
        files = []
        for channel, path in enumerate(self.images):
            files.append(folder / "images" / f"{name}_{channel:04d}.nii.gz")
            self._write(path, self.case.image[channel], changed.image[channel], files[-1])
        files.append(folder / "labels" / f"{name}.nii.gz")
        self._write(self.labels, self.case.labels[0], changed.labels[0], files[-1])
        return files

    def _write(self, source: Path, before: np.ndarray, after: np.ndarray, target: Path) -> None:
        image = sitk.ReadImage(str(source))
        array = sitk.GetArrayFromImage(image)
        back = np.argsort(self.axes)
        before, after = before.transpose(back), after.transpose(back)
        if np.issubdtype(array.dtype, np.integer):
            limits = np.iinfo(array.dtype)
            after = np.clip(np.round(after), limits.min, limits.max)
        shown = array.reshape(before.shape)         # a 2D file is a stack of one
        shown[before != after] = after[before != after].astype(array.dtype)
        written = sitk.GetImageFromArray(array)
        written.CopyInformation(image)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(written, target)


@dataclass(frozen=True)
class Stored:
    """A raw stack in nnU-Net's preprocessed form, and how to get back from there."""

    image: np.ndarray                     # (C, Z', Y', X')
    corner: tuple[int, int, int]          # of the crop to the nonzero part, in the raw stack
    cropped: tuple[int, int, int]         # its size before resampling
    shape: tuple[int, int, int]           # of the raw stack

    @classmethod
    def of(cls, fold: Fold, case: Case, image: np.ndarray) -> Stored:
        """Preprocess `image` (C, Z, Y, X), a stack on the grid of `case` in stored axis order. Its
        slices stay the raw ones, as in 2D, also where a 3D fold's cases have others.
        """
        plans = PlansManager(fold.plans)
        settings = plans.get_configuration(fold.configuration)
        in_plane = ConfigurationManager({**settings.configuration,
                                         "spacing": settings.spacing[-2:]})
        in_file = image.transpose([0, *(a + 1 for a in plans.transpose_backward)])
        data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            in_file, None, {"spacing": case.properties["spacing"]}, plans,
            in_plane, fold.dataset_json)
        corner = tuple(int(low) for low, _ in properties["bbox_used_for_cropping"])
        return cls(data, corner, properties["shape_after_cropping_and_before_resampling"],
                   image.shape[1:])

    def slices(self, raw: Sequence[int]) -> np.ndarray:
        """The preprocessed slices (n, C, Y', X') of these raw ones."""
        return np.ascontiguousarray(self.image[:, [z - self.corner[0] for z in raw]].swapaxes(0, 1))

    def point(self, raw: Sequence[float]) -> tuple[float, ...]:
        """(row, column) in the preprocessed slice of one in the raw slice."""
        return tuple((p - low + 0.5) * now / before - 0.5 for p, low, now, before in zip(
            raw, self.corner[1:], self.image.shape[2:], self.cropped[1:]))

    def back(self, maps: np.ndarray) -> np.ndarray:
        """Label maps (n, Y', X') on the raw grid (n, Y, X), by the nearest voxel."""
        result = np.zeros((len(maps), *self.shape[1:]), maps.dtype)
        rows, columns = (slice(low, low + n) for low, n in zip(self.corner[1:], self.cropped[1:]))
        for target, labels in zip(result, maps):
            target[rows, columns] = resize(labels, self.cropped[1:], order=0, mode="edge",
                                           preserve_range=True, anti_aliasing=False)
        return result
