"""MyoPS converts from its published layout, and in three channels only LGE is ever painted."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from test_raw import DIRECTION, ORIGIN, load, save
from tiny_nnunet import tiny_plans
from tiny_raw import preprocess
from tiny_training import enter_nnunet

from nnunet_lgesynth.anatomy.scar import paint_mask
from nnunet_lgesynth.cli import main
from nnunet_lgesynth.config import QCConfig
from nnunet_lgesynth.dataset.roles import Frame, Roles, guess_roles, read_info
from nnunet_lgesynth.generators.condition import feather
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.synthesize import paint_case, prepare, synthesize

TRAINING = [f"myops_training_{n}" for n in (101, 102, 103, 104)]
TEST = ["myops_test_201", "myops_test_202"]
CHANNELS = ("C0", "DE", "T2")
STORED = np.array([0, 200, 500, 600, 1220, 2221])     # the release's value of each of our labels
SHAPE = (4, 40, 40)                                   # (Z, Y, X)
SPACING = (1.5, 1.5, 12.0)
ROLES = Roles(cavity=2, myocardium=1, scar=5, rv=3, other_wall=(4,), lge_channel=1)


def draw_labels() -> np.ndarray:
    """A ring with the RV beside it; slices 1 and 2 hold oedema with a scar in its middle."""
    rows, columns = np.indices(SHAPE[1:]) - np.array([20, 23])[:, None, None]
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    labels = np.zeros(SHAPE, np.int16)
    labels[:, np.hypot(rows, columns + 11) < 9] = 3
    labels[:, radius < 13] = 1
    labels[1:3, (radius < 13) & (np.abs(angle) < 0.9)] = 4
    labels[1:3, (radius < 12) & (np.abs(angle) < 0.6)] = 5
    labels[:, radius < 7] = 2
    return labels


def stored_labels() -> np.ndarray:
    return STORED[draw_labels()].astype(np.int16)


def draw(number: int, channel: int) -> np.ndarray:
    """What a channel shows of patient `number`: LGE the scar, T2 oedema and scar."""
    levels = np.array([[30, 60, 160, 170, 60, 60], [40, 30, 120, 120, 35, 160],
                       [50, 60, 110, 110, 150, 150]])[channel]
    noise = np.random.default_rng([number, channel]).normal(0, 5, SHAPE)
    return (levels[draw_labels()] + noise).astype(np.int16)


def label_file(source: Path, name: str = TRAINING[0]) -> Path:
    return source / "train25_myops_gd" / f"{name}_gd.nii.gz"


def write_release(source: Path, train="train25", labels="train25_myops_gd", test="test20",
                  ending=".nii.gz") -> Path:
    for name in (*TRAINING, *TEST):
        folder = source / (train if name in TRAINING else test)
        for channel, what in enumerate(CHANNELS):
            save(draw(int(name[-3:]), channel), folder / f"{name}_{what}{ending}", SPACING)
    for name in TRAINING:
        save(stored_labels(), source / labels / f"{name}_gd{ending}", SPACING)
    for name in TEST:                                 # comes with the release, is no image
        path = source / "MyoPS2020_EvaluateByYourself" / f"{name}_gdencrypt.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"encrypted")
    return source


@pytest.fixture
def raw(tmp_path, monkeypatch):
    enter_nnunet(monkeypatch, tmp_path)
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def source(tmp_path):
    return write_release(tmp_path / "src")


def convert(source: Path, *more: str) -> int:
    return main(["convert", "myops", "-i", str(source), "-d", "117", *more])


def refused(capsys, source: Path) -> str:
    capsys.readouterr()
    assert convert(source) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lgesynth")]
    assert len(said) == 1 and said[0].startswith("lgesynth: error: ")
    return said[0]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_everything_nnunet_needs_is_written(source, raw, capsys):
    assert convert(source) == 0 and "Dataset117_MyoPS" in capsys.readouterr().out
    target = raw / "Dataset117_MyoPS"
    assert names(raw) == [target.name]
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "bSSFP", "1": "LGE", "2": "T2"}
    assert sorted(dataset["labels"].values()) == [0, 1, 2, 3, 4, 5]
    assert dataset["numTraining"] == 4
    assert names(target / "labelsTr") == [f"{n}.nii.gz" for n in TRAINING]
    for part, cases in (("imagesTr", TRAINING), ("imagesTs", TEST)):
        assert names(target / part) == sorted(f"{n}_000{c}.nii.gz" for n in cases for c in range(3))
    splits = json.loads((target / "splits_final.json").read_text())
    assert sorted(i for s in splits for i in s["val"]) == TRAINING
    assert all(set(s["train"]) == set(TRAINING) - set(s["val"]) for s in splits)
    info = read_info(target)
    assert info.roles == guess_roles(dataset) == ROLES and info.frame == Frame()


def test_values_are_translated_images_and_geometry_copied(source, raw):
    save(stored_labels().astype(np.float32), label_file(source), SPACING)   # as some tools store
    assert convert(source) == 0
    for name in (*TRAINING, TEST[0]):
        folder = raw / "Dataset117_MyoPS" / ("imagesTr" if name in TRAINING else "imagesTs")
        files = {folder / f"{name}_000{c}.nii.gz": draw(int(name[-3:]), c) for c in range(3)}
        if name in TRAINING:
            files[raw / "Dataset117_MyoPS" / "labelsTr" / f"{name}.nii.gz"] = draw_labels()
        for path, drawn in files.items():
            image, array = load(path)
            assert np.array_equal(array, drawn)
            assert np.allclose(image.GetSpacing(), SPACING)
            assert np.allclose(image.GetOrigin(), ORIGIN)
            assert np.allclose(image.GetDirection(), DIRECTION)
            if path.parent.name == "labelsTr":
                assert array.dtype == np.uint8


def test_a_patient_without_labels_becomes_a_test_case(source, raw):
    label_file(source).unlink()
    assert convert(source) == 0
    target = raw / "Dataset117_MyoPS"
    assert names(target / "labelsTr") == [f"{n}.nii.gz" for n in TRAINING[1:]]
    assert f"{TRAINING[0]}_0000.nii.gz" in names(target / "imagesTs")


def test_region_crops_all_channels_alike_around_the_translated_heart(source, raw):
    assert convert(source, "--roi", "32", "--spacing", "1.25") == 0
    target = raw / "Dataset117_MyoPSROI"
    labels, values = load(target / "labelsTr" / f"{TRAINING[1]}.nii.gz")
    assert values.shape == (4, 32, 32) and set(np.unique(values)) == {0, 1, 2, 3, 4, 5}
    for channel in range(3):
        image, array = load(target / "imagesTr" / f"{TRAINING[1]}_000{channel}.nii.gz")
        assert array.shape == values.shape
        for part in ("Origin", "Spacing", "Direction"):
            assert getattr(image, f"Get{part}")() == getattr(labels, f"Get{part}")()
    rows, columns = np.nonzero(np.isin(values[0], (1, 2)))
    assert abs(rows.mean() - 15.5) < 0.6 and abs(columns.mean() - 15.5) < 0.6
    for value in (4, 5):
        true = (draw_labels() == value).sum() * SPACING[0] ** 2
        assert (values == value).sum() * 1.25 ** 2 == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("layout", [
    {"labels": "train25"}, {"ending": ".nii"}, {"train": ".", "labels": ".", "test": "."},
    {"train": "train25/train25", "labels": "gd/gd", "test": "test20/test20"}])
def test_other_layouts_of_the_same_files_convert_alike(tmp_path, raw, layout):
    assert convert(write_release(tmp_path / "other", **layout)) == 0
    target = raw / "Dataset117_MyoPS"
    assert len(names(target / "imagesTr")) == 12 and len(names(target / "imagesTs")) == 6
    assert np.array_equal(load(target / "labelsTr" / f"{TRAINING[3]}.nii.gz")[1], draw_labels())


# Each damages the release and returns what the message must hold.
def no_t2(source):
    (source / "train25" / f"{TRAINING[0]}_T2.nii.gz").unlink()
    return TRAINING[0], "has no T2 file", "only C0, DE, gd"


def labels_alone(source):
    shutil.rmtree(source / "train25")
    return TRAINING[0], "no C0 and no DE and no T2", "add it"


def no_labels(source):
    shutil.rmtree(source / "train25_myops_gd")
    return str(source), "holds no labels", "train25_myops_gd beside train25"


def no_cases(source):
    shutil.rmtree(source)
    source.mkdir()
    return str(source), "holds no myops_", "with -i"


def two_files(source):
    save(draw(101, 1), source / "train25" / f"{TRAINING[0]}_DE.nii", SPACING)
    return TRAINING[0], "two DE files", f"{TRAINING[0]}_DE.nii.gz", "remove one"


def strange_label(source):
    labels = stored_labels()
    labels[0, 0, 0] = 2222
    save(labels, label_file(source), SPACING)
    return TRAINING[0], "labels 2222", "[0, 200, 500, 600, 1220, 2221]"


def translated_label(source):
    save(draw_labels(), label_file(source), SPACING)
    return TRAINING[0], "labels 1, 2, 3, 4, 5;", "[0, 200, 500, 600, 1220, 2221]"


def no_cavity(source):
    labels = stored_labels()
    save(np.where(labels == 500, 200, labels), label_file(source), SPACING)
    return TRAINING[0], "no LV cavity", "[0, 200, 600, 1220, 2221]"


def channel_geometry(source):
    save(draw(101, 2), source / "train25" / f"{TRAINING[0]}_T2.nii.gz", (1.4, 1.5, 12.0))
    return TRAINING[0], "_T2.nii.gz", "spacing", "must agree"


@pytest.mark.parametrize("damage", [
    no_t2, labels_alone, no_labels, no_cases, two_files, strange_label, translated_label,
    no_cavity, channel_geometry], ids=lambda f: f.__name__)
def test_bad_input_is_named_and_leaves_nothing(source, raw, capsys, damage):
    parts = damage(source)
    said = refused(capsys, source)
    assert all(part in said for part in parts), said
    assert names(raw) == []


def test_a_failed_overwrite_keeps_the_old_dataset(source, raw, capsys):
    assert convert(source) == 0
    (raw / "Dataset117_MyoPS" / "mine.txt").write_text("keep")
    assert "exists; add --overwrite" in refused(capsys, source)
    strange_label(source)
    assert convert(source, "--overwrite") == 2
    assert names(raw) == ["Dataset117_MyoPS"]
    assert (raw / "Dataset117_MyoPS" / "mine.txt").read_text() == "keep"


@pytest.fixture
def fold(source, raw):
    """The converted release, preprocessed by nnU-Net itself."""
    assert convert(source) == 0
    target = raw / "Dataset117_MyoPS"
    return preprocess(target, tiny_plans(channels=3, dataset=target.name, spacing=SPACING[:2]))


def check_only_lge_changed(heart, sample, mask):
    before, after = heart.case.image, sample.case.image
    assert after.shape == (3, *SHAPE) and sample.slices
    for other in (0, 2):
        assert before[other].tobytes() == after[other].tobytes()
    changed = before[1] != after[1]
    inside = np.stack([feather(m > 0, heart.case.spacing[1:], Painter.feather_mm) > 0
                       for m in mask])
    assert changed.any() and not (changed & ~inside).any()
    assert np.flatnonzero(changed.any(axis=(1, 2))).tolist() == list(sample.slices)


def test_only_the_lge_channel_of_three_is_painted(fold):
    """From files to sample: converted, preprocessed by nnU-Net, painted with scar and healthy."""
    prior, hearts = prepare(fold, "sector")
    by_name = {h.case.identifier: h for h in hearts}
    assert set(by_name) == set(fold.train)
    assert {h.anatomy.reference.source for h in hearts} == {"rv"}
    stream = synthesize(fold, Painter(), prior, hearts, None, QCConfig(), np.random.default_rng(0))
    samples = [s for s in islice(stream, 12) if s.slices]
    assert samples and {s.kind for s in samples} == {"scar"}      # no MyoPS heart is scar-free
    for sample in samples:
        heart = by_name[sample.source]
        mask = paint_mask(heart.anatomy, sample.spec)
        check_only_lge_changed(heart, sample, mask)
        assert (sample.case.labels[0] == np.where(
            np.isin(np.arange(4), sample.slices)[:, None, None] & (mask > 0), ROLES.scar,
            heart.labels)).all()
    healthy = paint_case(fold, Painter(), heart, sample.spec, mask, None, QCConfig(), 1,
                         healthy=True)
    check_only_lge_changed(heart, healthy, mask)
