"""A conversion writes a whole, faithful nnU-Net raw dataset or leaves no trace."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.raw import Region, make_splits, swap_in
from nnunet_lgesynth.dataset.roles import read_info

ROOT = Path(__file__).parents[1]
DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)      # turned in plane
ORIGIN, SPACING = (-20.0, 35.5, 7.0), (1.8, 1.1, 10.0)
SHAPE = (3, 60, 48)                                             # (Z, Y, X)
CENTRE = (34.0, 20.0)                                           # (row, column) of the LV


def emidec():
    """The converter's module, installed or not."""
    spec = importlib.util.spec_from_file_location(
        "emidec", ROOT / "dataset_conversion" / "Dataset115_EMIDEC.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONVERT = emidec().convert


def draw(k: int):
    """Image and labels (Z, Y, X) of patient k: an LV that is round in mm; slice 1 has a scar."""
    rows, columns = np.indices(SHAPE[1:])
    y, x = (rows - CENTRE[0]) * SPACING[1], (columns - CENTRE[1]) * SPACING[0]
    radius = np.hypot(y, x)
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, radius < 20] = 2
    labels[1, (radius < 20) & (y > 5)] = 3
    labels[1, (radius < 17) & (radius > 14) & (y > 10)] = 4
    labels[:, radius < 11] = 1
    image = 50 + 40.0 * labels + np.random.default_rng(k).normal(0, 2, SHAPE)
    return image.astype(np.float32), labels


def save(array, path: Path, spacing=SPACING):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def load(path: Path):
    image = sitk.ReadImage(str(path))
    return image, sitk.GetArrayFromImage(image)


def contours(source: Path, name: str) -> Path:
    return source / name / "Contours" / f"{name}.nii.gz"


@pytest.fixture
def source(tmp_path):
    """EMIDEC's layout: 4 pathological, 3 normal patients and one without contours."""
    names = [f"Case_P{k:03d}" for k in range(4)] + [f"Case_N{k:03d}" for k in range(4, 7)]
    for k, name in enumerate([*names, "Case_100"]):
        image, labels = draw(k)
        save(image, tmp_path / "src" / name / "Images" / f"{name}.nii.gz")
        if name != "Case_100":
            if "N" in name:
                labels = np.minimum(labels, 2)
            save(labels, contours(tmp_path / "src", name))
    return tmp_path / "src"


def test_everything_nnunet_needs_is_written(source, tmp_path):
    target = CONVERT(source, tmp_path / "raw", 115)
    assert target == tmp_path / "raw" / "Dataset115_EMIDEC"
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "LGE"} and len(dataset["labels"]) == 5
    assert dataset["numTraining"] == 7 == len(list((target / "labelsTr").iterdir()))
    assert [p.name for p in (target / "imagesTs").iterdir()] == ["Case_100_0000.nii.gz"]
    assert read_info(target).roles.no_reflow == 4
    splits = json.loads((target / "splits_final.json").read_text())
    assert "Case_100" not in {i for s in splits for part in s.values() for i in part}
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == ["Dataset115_EMIDEC"]


def test_two_stacks_of_one_heart_are_told_where_both_are_there(source, tmp_path):
    for name in ("Case_P059", "Case_P072"):
        image, labels = draw(9)
        save(image, source / name / "Images" / f"{name}.nii.gz")
        save(labels, contours(source, name))
    target = CONVERT(source, tmp_path / "raw", 115)
    assert read_info(target).same_as == {"Case_P072": "Case_P059"}
    contours(source, "Case_P059").unlink()
    assert read_info(CONVERT(source, tmp_path / "raw", 115, overwrite=True)).same_as == {}


def test_geometry_and_values_are_copied(source, tmp_path):
    target = CONVERT(source, tmp_path / "raw", 115)
    for written, drawn in (("imagesTr/Case_P001_0000", draw(1)[0]),
                           ("labelsTr/Case_P001", draw(1)[1]),
                           ("imagesTs/Case_100_0000", draw(7)[0])):
        image, array = load(target / f"{written}.nii.gz")
        assert np.array_equal(array, drawn)
        assert np.allclose(image.GetSpacing(), SPACING)
        assert np.allclose(image.GetOrigin(), ORIGIN)
        assert np.allclose(image.GetDirection(), DIRECTION)


def test_region_centres_the_heart_and_keeps_each_slice(source, tmp_path):
    target = CONVERT(source, tmp_path / "raw", 116, Region(40, 1.5))
    assert target.name == "Dataset116_EMIDECROI"
    image, array = load(target / "imagesTr" / "Case_P001_0000.nii.gz")
    labels, values = load(target / "labelsTr" / "Case_P001.nii.gz")
    assert array.shape == values.shape == (3, 40, 40)
    assert np.allclose(image.GetSpacing(), (1.5, 1.5, 10.0))
    assert np.allclose(image.GetDirection(), DIRECTION)
    for name in ("Origin", "Spacing", "Direction"):
        assert getattr(image, f"Get{name}")() == getattr(labels, f"Get{name}")()
    rows, columns = np.nonzero(values[0])
    assert abs(rows.mean() - 19.5) < 0.6 and abs(columns.mean() - 19.5) < 0.6
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1                   # round in mm again
    # what only the middle slice shows stays there, in its true amount
    assert set(np.unique(values[[0, 2]])) == {0, 1, 2}
    for value in (3, 4):
        true = (draw(1)[1] == value).sum() * SPACING[0] * SPACING[1]
        assert (values == value).sum() * 1.5 ** 2 == pytest.approx(true, rel=0.1)


def test_region_does_not_shift_labels_against_the_image(source, tmp_path):
    target = CONVERT(source, tmp_path / "raw", 116, Region(40, 1.5))
    _, array = load(target / "imagesTr" / "Case_N005_0000.nii.gz")
    _, values = load(target / "labelsTr" / "Case_N005.nii.gz")
    bright = array > 50 + 40 * 1.5               # wall, as the image shows it
    wall = values == 2
    for axis in (1, 2):
        shift = np.nonzero(bright)[axis].mean() - np.nonzero(wall)[axis].mean()
        assert abs(shift) < 0.2
    same_point = sitk.ReadImage(str(target / "labelsTr" / "Case_N005.nii.gz"))
    index = same_point.TransformPhysicalPointToIndex(sitk.ReadImage(
        str(contours(source, "Case_N005"))).TransformIndexToPhysicalPoint((20, 34, 0)))
    assert abs(index[0] - 19.5) <= 1 and abs(index[1] - 19.5) <= 1


def test_unlabelled_cases_are_cropped_at_the_image_centre(source, tmp_path):
    target = CONVERT(source, tmp_path / "raw", 116, Region(40, 1.5))
    image, _ = load(target / "imagesTs" / "Case_100_0000.nii.gz")
    whole = sitk.ReadImage(str(source / "Case_100" / "Images" / "Case_100.nii.gz"))
    middle = [(n - 1) / 2 for n in whole.GetSize()]
    at = whole.TransformContinuousIndexToPhysicalPoint(middle)
    assert np.allclose(image.TransformPhysicalPointToContinuousIndex(at), (19.5, 19.5, 1))


# Each damages one patient and returns what the message must say.
def nan(source):
    image, _ = draw(0)
    image[1, 5, 5] = np.nan
    save(image, source / "Case_P000" / "Images" / "Case_P000.nii.gz")
    return "Case_P000.*NaN"


def constant(source):
    save(np.ones(SHAPE, np.float32), source / "Case_P000" / "Images" / "Case_P000.nii.gz")
    return "Case_P000.*constant"


def geometry(source):
    save(draw(0)[1], contours(source, "Case_P000"), spacing=(1.8, 1.2, 10.0))
    return "Case_P000.*spacing"


def strange_label(source):
    labels = draw(0)[1]
    labels[0, 0, 0] = 7
    save(labels, contours(source, "Case_P000"))
    return "Case_P000.*labels.*7"


def fractional_label(source):
    save(draw(0)[1].astype(np.float32) * 0.9, contours(source, "Case_P000"))
    return "Case_P000.*labels.*0.9"


def no_cavity(source):
    save(np.where(draw(0)[1] == 1, 2, draw(0)[1]), contours(source, "Case_P000"))
    return "Case_P000.*no LV cavity"


def empty_mask(source):
    save(np.zeros(SHAPE, np.uint8), contours(source, "Case_P000"))
    return "Case_P000.*no LV cavity"


def cut_file(source):
    path = source / "Case_P000" / "Images" / "Case_P000.nii.gz"
    path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
    return "Case_P000.*cannot be read"


def no_image(source):
    shutil.rmtree(source / "Case_P000" / "Images")
    return "Case_P000.*Images"


def two_images(source):
    save(draw(0)[0], source / "Case_P000" / "Images" / "other.nii.gz")
    return "2 NIfTI"


def no_cases(source):
    shutil.rmtree(source)
    source.mkdir()
    return "no Case_"


@pytest.mark.parametrize("damage", [
    nan, constant, geometry, strange_label, fractional_label, no_cavity, empty_mask, cut_file,
    no_image, two_images, no_cases], ids=lambda f: f.__name__)
def test_bad_input_is_named_and_leaves_nothing(source, tmp_path, damage):
    match = damage(source)
    with pytest.raises(UserError, match=match):
        CONVERT(source, tmp_path / "raw", 115)
    assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").iterdir())


def test_existing_target_needs_overwrite(source, tmp_path):
    target = CONVERT(source, tmp_path / "raw", 115)
    (target / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        CONVERT(source, tmp_path / "raw", 115)
    assert (target / "mine.txt").exists()
    strange_label(source)                        # a failing overwrite keeps the old dataset
    with pytest.raises(UserError):
        CONVERT(source, tmp_path / "raw", 115, overwrite=True)
    assert (target / "mine.txt").exists()
    save(draw(0)[1], contours(source, "Case_P000"))
    CONVERT(source, tmp_path / "raw", 115, overwrite=True)
    assert not (target / "mine.txt").exists() and (target / "dataset.json").is_file()
    assert len(list((tmp_path / "raw").iterdir())) == 1


def test_failed_exchange_puts_the_old_dataset_back(tmp_path):
    target = tmp_path / "Dataset115_EMIDEC"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(OSError):
        swap_in(tmp_path / "vanished.part", target)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert (target / "mine.txt").read_text() == "keep"


def test_id_of_another_dataset_is_refused(source, tmp_path):
    (tmp_path / "raw" / "Dataset115_Other").mkdir(parents=True)
    with pytest.raises(UserError, match="115 is taken by Dataset115_Other"):
        CONVERT(source, tmp_path / "raw", 115, overwrite=True)


def test_unwritable_raw_folder_is_a_user_error(source, tmp_path):
    (tmp_path / "raw").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        CONVERT(source, tmp_path / "raw", 115)
    assert (tmp_path / "raw").read_text() == "a file, not a folder"


def in_subprocess(code: str, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], text=True,
                          capture_output=True, timeout=60,
                          cwd=Path(__file__).parent)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_full_disk_is_noticed_and_leaves_nothing(source, tmp_path):
    result = in_subprocess(
        "import resource, signal, sys\n"
        "from test_raw import CONVERT\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"   # no file gets larger
        "try: CONVERT(*sys.argv[1:], 115)\n"
        "except Exception as error: print(type(error).__name__, error)\n",
        source, tmp_path / "raw")
    assert "UserError" in result.stdout and "full" in result.stdout, result
    assert list((tmp_path / "raw").iterdir()) == []


def test_interrupted_run_leaves_nothing(source, tmp_path):
    result = in_subprocess(
        "import signal, sys\n"
        "from pathlib import Path\n"
        "import SimpleITK as sitk\n"
        "from test_raw import CONVERT\n"
        "raw, write, written = Path(sys.argv[2]), sitk.WriteImage, []\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's & ignores it\n"
        "def press(*what):                 # Ctrl-C in the middle of the second case\n"
        "    write(*what)\n"
        "    written.append(what)\n"
        "    if len(written) == 3: signal.raise_signal(signal.SIGINT)\n"
        "sitk.WriteImage = press\n"
        "try: CONVERT(sys.argv[1], raw, 115)\n"
        "except KeyboardInterrupt: print('interrupted')\n", source, tmp_path / "raw")
    assert result.stdout.strip() == "interrupted", result
    assert list((tmp_path / "raw").iterdir()) == []


def test_splits_are_disjoint_stratified_and_repeatable():
    strata = {f"P{k:02d}": "pathological" for k in range(31)}
    strata.update({f"N{k:02d}": "normal" for k in range(16)})
    splits = make_splits(list(strata), strata.values())
    backwards = make_splits(list(strata)[::-1], list(strata.values())[::-1])
    assert splits == backwards and len(splits) == 5
    assert sorted(i for s in splits for i in s["val"]) == sorted(strata)
    for split in splits:
        assert set(split["train"]).isdisjoint(split["val"])
        assert set(split["train"]) | set(split["val"]) == set(strata)
        normal = sum(strata[i] == "normal" for i in split["val"])
        assert 3 <= normal <= 4


def test_cases_of_one_patient_are_validated_on_together_and_others_stay():
    names = [f"c{k:02d}" for k in range(20)]
    before, after = (make_splits(names, ["p"] * 20, same) for same in (None, {"c07": "c03"}))
    fold, = (k for k, s in enumerate(after) if "c03" in s["val"])
    assert "c07" in after[fold]["val"] and "c03" in before[fold]["val"]
    assert any({"c07"} == set(s["val"]) - set(t["val"]) for s, t in zip(before, after))
    for old, new in zip(before, after):
        assert set(new["val"]) - {"c07"} == set(old["val"]) - {"c07"}
        assert set(new["val"]).isdisjoint(new["train"])
        assert sorted([*new["train"], *new["val"]]) == names
    assert make_splits(names, ["p"] * 20, {"c07": "absent"}) == before
    with pytest.raises(UserError, match="of one patient"):
        make_splits(["a", "b"], ["p", "n"], {"b": "a"})


@pytest.mark.parametrize("names, strata, folds", [
    (["a", "b", "c"], ["p", "p", "n"], 3), (["a", "b"], ["p", "n"], 2),
    ([f"{k}" for k in range(9)], ["p"] * 9, 5)])
def test_small_sets_still_split(names, strata, folds):
    splits = make_splits(names, strata)
    assert len(splits) == folds and all(s["train"] and s["val"] for s in splits)


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"]])
def test_impossible_splits_are_refused(names):
    with pytest.raises(UserError, match="At least 2"):
        make_splits(names, ["p"] * len(names))


@pytest.mark.parametrize("values", [(8, 1.4), (64, 0.0)])
def test_absurd_regions_are_refused(values):
    with pytest.raises(UserError, match="--roi"):
        Region(*values)
