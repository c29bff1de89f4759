"""`lgesynth anatomy` draws what the coordinates are, and says where they come from."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_raw import NAME, NORMAL, arrays

from nnunet_lgesynth.cli import main
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.dataset.roles import read_info, write_info
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.pool.request import read_raw_subject


def test_anatomy_is_drawn(phantom_fold, tmp_path, capsys):
    out = tmp_path / "x.png"
    assert main(["anatomy", "-d", "115", "--case", NORMAL, "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert out.stat().st_size > 10_000 and told["anterior_rv_insertion_from"] == "image"
    assert told["order"] == "apex_to_base" and told["order_from"] == "dataset"
    assert told["segments"] == list(range(1, 17)) and told["uncertainty_degrees"] > 0


def test_a_landmark_goes_before_the_image(phantom_fold, world, tmp_path, capsys):
    folder = world / "nnUNet_raw" / NAME
    info = read_info(folder)
    shutil.copy(folder / "lgesynth.json", tmp_path / "kept.json")
    row, column = read_raw_subject(phantom_fold, NORMAL).anatomy.lv_centre
    try:
        mark = {NORMAL: (3, float(row) - 20, float(column))}
        write_info(folder, replace(info, landmarks=mark))
        assert main(["anatomy", "-d", "115", "--case", NORMAL, "-o", str(tmp_path / "x.png")]) == 0
        said = capsys.readouterr().out
        assert "landmarks" in said
        anatomy = read_raw_subject(Fold.open(115, "2d", 0), NORMAL).anatomy
        stored = Fold.open(115, "2d", 0)
        same = Subject.of(stored, stored.read(NORMAL)).anatomy
        for found in (anatomy, same):
            assert found.reference.source == "landmarks"
            assert found.reference.zero == pytest.approx((-1, 0), abs=0.1)
    finally:
        shutil.copy(tmp_path / "kept.json", folder / "lgesynth.json")


def relabelled(world, monkeypatch, tmp_path, change):
    """A copy of the raw dataset with one case's labels (Z, Y, X) changed in place."""
    folder = tmp_path / "raw" / NAME
    shutil.copytree(world / "nnUNet_raw" / NAME, folder)
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    path = folder / "labelsTr" / f"{NORMAL}.nii.gz"
    image, labels = arrays(path)
    change(labels)
    written = sitk.GetImageFromArray(labels)
    written.CopyInformation(image)
    sitk.WriteImage(written, str(path))


def test_labels_without_a_cavity_are_named(phantom_fold, world, monkeypatch, tmp_path, capsys):
    relabelled(world, monkeypatch, tmp_path, lambda labels: labels.__setitem__(labels == 1, 2))
    for command in (["anatomy", "-d", "115", "--case", NORMAL, "-o", str(tmp_path / "x.png")],
                    ["synthesize", "-d", "115", "-f", "0", "--generator", "paint", "--case",
                     NORMAL, "-o", str(tmp_path / "out")]):
        assert main(command) == 2
        assert "no slice" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("shift, code, words", [
    (1, 0, "the image cuts the wall in slice"), (0, 2, "the image cuts the cavity in slice")])
def test_a_heart_cut_by_the_image_is_told(phantom_fold, world, monkeypatch, tmp_path, capsys,
                                          shift, code, words):
    def cut(labels):                 # the wall's, or the cavity's, first column lies at the border
        part = labels > 0 if shift else labels == 1
        first = np.flatnonzero(part.any(axis=(0, 1)))[0] if shift else np.max(
            [np.flatnonzero(p.any(axis=0))[0] for p in part])
        labels[:, :, :-first] = labels[:, :, first:].copy()
        labels[:, :, -first:] = 0

    relabelled(world, monkeypatch, tmp_path, cut)
    assert main(["anatomy", "-d", "115", "--case", NORMAL, "-o", str(tmp_path / "x.png")]) == code
    said = capsys.readouterr()
    assert words in (said.err if code else said.out)


@pytest.mark.parametrize("more, message", [
    (("--case", "Nobody", "-o", "x.png"), "There is no case 'Nobody'"),
    (("--case", NORMAL, "-o", "x.gif"), "must end in .png"),
    (("--case", NORMAL, "-o", "/proc/x.png"), "cannot be written"),
    (("--case", NORMAL, "-o", "x.png", "-d", "999"), "There is not one dataset 999")])
def test_anatomy_names_what_is_wrong(phantom_fold, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    assert main(["anatomy", "-d", "115", *more]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []
