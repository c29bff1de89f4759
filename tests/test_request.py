"""What a person asks for comes out in the files' own geometry and intensities, or not at all."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_inpaint import tiny_config
from tiny_nnunet import tiny_plans, write_tiny_model
from tiny_raw import NAME, NORMAL, arrays

from nnunet_lgesynth import cli_samples
from nnunet_lgesynth.anatomy.measure import measure
from nnunet_lgesynth.anatomy.priors import PRIORS, Asked
from nnunet_lgesynth.cli import main
from nnunet_lgesynth.dataset.raw_case import RawCase, Stored
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.judge.qc import dice
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.pool.generator import fit_generator
from nnunet_lgesynth.pool.request import read_raw_subject, write_samples
from nnunet_lgesynth.pool.synthesize import prepare


@pytest.fixture
def fold(phantom_fold):
    assert NORMAL in phantom_fold.train + phantom_fold.val
    return phantom_fold


def ask(out, *more, case=NORMAL):
    return main(["synthesize", "-d", "115", "-f", "0", "--generator", "paint", "--case", case,
                 "-o", str(out), *more])


def write_judge(folder, fold):
    """An untrained nnU-Net of this dataset."""
    written = write_tiny_model(folder, plans=fold.plans)
    (written.parent / "dataset.json").write_text(json.dumps(fold.dataset_json))
    return written


MID_SEPTUM = ("--segments", "8", "9", "--burden", "0.04", "--transmurality", "0.75",
              "--no-reflow", "0.2")


def test_the_scar_that_was_asked_for_is_in_the_files(fold, world, tmp_path, capsys):
    assert ask(tmp_path / "out", *MID_SEPTUM) == 0
    record, = json.loads((tmp_path / "out" / "samples.json").read_text())
    name = record["name"]
    assert sorted(record["files"]) == [f"images/{name}_0000.nii.gz", f"labels/{name}.nii.gz",
                                       f"sheets/{name}.png"]
    raw = world / "nnUNet_raw" / NAME
    source, before = arrays(raw / "imagesTr" / f"{NORMAL}_0000.nii.gz")
    result, after = arrays(tmp_path / "out" / record["files"][0])
    for told in ("Spacing", "Origin", "Direction", "Size", "PixelIDTypeAsString"):
        assert getattr(result, f"Get{told}")() == getattr(source, f"Get{told}")()
    _, old = arrays(raw / "labelsTr" / f"{NORMAL}.nii.gz")
    _, new = arrays(tmp_path / "out" / record["files"][1])
    mask = np.where(new != old, new - 2, 0)                 # 3 infarct, 4 no-reflow
    anatomy = read_raw_subject(fold, NORMAL).anatomy
    found = measure(mask, anatomy)
    assert found.segments == (8, 9) and found.burden == pytest.approx(0.04, abs=1e-3)
    assert found.transmurality == pytest.approx(0.75, abs=0.05)
    assert found.no_reflow == pytest.approx(0.2, abs=0.05)
    assert record["realised"]["burden"] == found.burden
    assert record["errors"]["segment_jaccard"] == 1
    assert record["errors"]["mask_burden_error"] < 0.001
    changed = before != after
    assert 0.9 * (mask > 0).sum() < changed.sum() < 6 * (mask > 0).sum()
    scar, wall = after[mask == 1].astype(float), before[old == 2].astype(float)
    assert np.median(scar) > np.median(wall) + 2 * wall.std()
    assert "mid anteroseptal and mid inferoseptal wall with no reflow core" in record["caption"]
    assert (tmp_path / "out" / record["files"][2]).stat().st_size > 10_000
    assert f"{name}: accepted" in capsys.readouterr().out


def test_what_a_sample_lacks_is_told(fold, tmp_path, capsys):
    """A thin lesion has little room for a core."""
    assert ask(tmp_path / "out", "--segments", "8", "--burden", "0.01", "--transmurality", "0.25",
               "--no-reflow", "0.8") == 0
    record, = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["errors"]["no_reflow_error"] > 0.05
    assert any("has room for a no-reflow core of" in note for note in record["notes"])
    assert "has room for a no-reflow core of" in capsys.readouterr().out
    assert record["caption_asked"].startswith("subendocardial enhancement of 1 percent burden and "
                                              "25 percent depth in the mid anteroseptal wall")


def test_sample_k_is_the_same_alone_and_among_others(fold, tmp_path, capsys):
    assert ask(tmp_path / "one", "-n", "1", "--prior", "sector") == 0
    assert ask(tmp_path / "three", "-n", "3", "--prior", "sector", "--json") == 0
    records = json.loads(capsys.readouterr().out.split("\n", 2)[2])
    assert len(records) == 3 and len({json.dumps(r["spec"]) for r in records}) == 3
    assert records[0] == json.loads((tmp_path / "one" / "samples.json").read_text())[0]
    for file in records[0]["files"][:2]:
        assert np.array_equal(arrays(tmp_path / "one" / file)[1],
                              arrays(tmp_path / "three" / file)[1])
    assert ask(tmp_path / "other", "--prior", "sector", "--seed", "1") == 0
    assert json.loads((tmp_path / "other" / "samples.json").read_text())[0]["spec"] != \
        records[0]["spec"]


def test_without_a_case_hearts_are_chosen(fold, tmp_path):
    assert main(["synthesize", "-d", "115", "-f", "0", "--generator", "paint", "-n", "3",
                 "-o", str(tmp_path / "out")]) == 0
    records = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert len(records) == 3 and {r["case"] for r in records} <= set(fold.train)


def test_a_real_scar_stays_as_it_is(fold, world, tmp_path):
    """In a scarred heart the scar-free slices alone are painted."""
    scarred = next(c for c in fold.train + fold.val if "P" in c[5:]
                   and read_raw_subject(fold, c).anatomy.paintable.any())
    assert ask(tmp_path / "out", "--burden", "0.02", "--prior", "sector", case=scarred) == 0
    record, = json.loads((tmp_path / "out" / "samples.json").read_text())
    _, old = arrays(world / "nnUNet_raw" / NAME / "labelsTr" / f"{scarred}.nii.gz")
    _, new = arrays(tmp_path / "out" / record["files"][1])
    changed = (new != old).any(axis=(1, 2))
    assert changed.any() and not (changed & np.isin(old, (3, 4)).any(axis=(1, 2))).any()


def test_raw_and_preprocessed_heart_measure_alike(fold):
    """The seam: the same wall, coordinates and intensities on both grids."""
    raw, stored = read_raw_subject(fold, NORMAL), Subject.of(fold, fold.read(NORMAL))
    assert raw.case.spacing[1:] != stored.case.spacing[1:]
    volumes = [h.anatomy.myocardium.sum() * np.prod(h.case.spacing) for h in (raw, stored)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.05)
    zeros = [np.arctan2(*h.anatomy.reference.zero) for h in (raw, stored)]
    assert abs(np.angle(np.exp(1j * (zeros[0] - zeros[1])))) < np.deg2rad(6)
    for low, high in ((0.2, 0.5), (0.5, 0.8)):
        levels = [np.median(h.intensities.apply(h.lge)[(h.anatomy.depth > low)
                                                       & (h.anatomy.depth < high)])
                  for h in (raw, stored)]
        assert levels[0] == pytest.approx(levels[1], abs=0.05)


def test_the_way_through_nnunets_preprocessing_and_back(fold):
    raw, stored = read_raw_subject(fold, NORMAL), fold.read(NORMAL)
    there = Stored.of(fold, raw.case, raw.case.image)
    assert np.allclose(there.image, stored.image, atol=1e-4)
    assert there.slices([2, 4]).shape == (2, 1, *stored.image.shape[2:])
    assert there.point(raw.anatomy.lv_centre) == pytest.approx(
        Subject.of(fold, stored).anatomy.lv_centre, abs=0.5)
    back = there.back(stored.labels[0])
    for label in (1, 2):
        assert dice(back == label, raw.labels == label) > 0.9


def test_a_judge_sees_the_raw_heart_as_nnunet_would(fold, tmp_path):
    judge = Segmenter.load_fold(write_judge(tmp_path, fold), "cpu")
    raw, stored = read_raw_subject(fold, NORMAL), Subject.of(fold, fold.read(NORMAL))
    slices = [1, 2]
    before, after = raw.judged(judge, slices, raw.case.image[:, slices])
    expected, _ = stored.judged(judge, slices, stored.case.image[:, slices])
    assert np.array_equal(before, after) and before.shape == (2, *raw.lge.shape[1:])
    there = Stored.of(fold, raw.case, raw.case.image)
    assert (before == there.back(expected)).mean() > 0.98


def test_a_3d_training_s_samples_are_asked_for_in_raw_slices(fold, tmp_path):
    """They are judged slice by slice of the file, and kept or refused as whole lesions."""
    plans = tiny_plans(configuration="3d_fullres", patch=(4, 32, 32), dataset=NAME,
                       spacing=(6.0, *fold.plans["configurations"]["2d"]["spacing"]))
    both = {**fold.plans["configurations"], **plans["configurations"]}
    stacks = replace(fold, plans={**fold.plans, "configurations": both},
                     configuration="3d_fullres")
    raw = read_raw_subject(stacks, NORMAL)
    there, expected = (Stored.of(f, raw.case, raw.case.image) for f in (stacks, fold))
    assert np.array_equal(there.image, expected.image)
    judge = Segmenter.load_fold(write_judge(tmp_path, fold), "cpu")
    prior, _ = prepare(fold, "fitted")
    for k, given in enumerate((judge, None)):
        record, = write_samples(stacks, Painter(), given, prior, Asked((8, 9)), [NORMAL], 1, 0,
                                tmp_path / str(k))
        assert len({json.dumps(v) for v in record["verdicts"].values()}) == 1
        assert record["slices_accepted"] == (0 if given else record["slices_asked"])


def test_verdicts_are_told_and_a_refused_slice_stays_as_it_was(fold, tmp_path):
    """An untrained nnU-Net finds nothing where it should."""
    judge = Segmenter.load_fold(write_judge(tmp_path, fold), "cpu")
    prior, _ = prepare(fold, "fitted")
    record, = write_samples(fold, Painter(), judge, prior, Asked((8, 9)), [NORMAL], 1, 0,
                            tmp_path / "out")
    assert not record["accepted"] and record["slices_accepted"] < record["slices_asked"]
    assert any(not v["checks"]["dice_request"]["passed"] for v in record["verdicts"].values())
    assert any(re.search(r"was refused \(.*dice_request", note) for note in record["notes"])
    raw = RawCase.read(fold.folder.parents[2] / "nnUNet_raw" / NAME, NORMAL)
    _, after = arrays(tmp_path / "out" / record["files"][0])
    touched = np.flatnonzero((raw.case.image[0] != after).any(axis=(1, 2)))
    assert {str(z + 1) for z in touched} == {z for z, v in record["verdicts"].items()
                                             if v["accepted"]}


def test_the_fitted_inpainter_paints_raw_hearts(fold, world, tmp_path, monkeypatch,
                                                   without_pictures):
    """From `fit` to files: images change inside the feather alone, and only in accepted slices."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    write_judge(tmp_path, fold)
    config = tiny_config(crop_pixels=64, vae_steps=1, unet_steps=1, controlnet_steps=1,
                         reward_steps=0)
    fit_generator(NAME, "2d", 0, "nnUNetPlans", config, None, "cpu")
    assert main(["synthesize", "-d", "115", "-f", "0", "-device", "cpu", "--case", NORMAL, "-o",
                 str(tmp_path / "out"), *MID_SEPTUM]) == 0
    record, = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["generator"] == "lgesynth" and record["slices_asked"] == len(record["verdicts"])
    assert all("dice_request" in v["checks"] for v in record["verdicts"].values())
    _, before = arrays(world / "nnUNet_raw" / NAME / "imagesTr" / f"{NORMAL}_0000.nii.gz")
    _, after = arrays(tmp_path / "out" / record["files"][0])
    changed = np.flatnonzero((before != after).any(axis=(1, 2)))
    accepted = [int(z) - 1 for z, v in record["verdicts"].items() if v["accepted"]]
    assert changed.tolist() == accepted


def test_a_scar_outside_of_the_generators_crop_is_refused(fold, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Painter, "pixels", 24)
    assert ask(tmp_path / "out", *MID_SEPTUM) == 2
    assert "lies outside of the 34 mm around the LV" in capsys.readouterr().err


@pytest.mark.parametrize("reader", ["SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_a_reader_that_turns_the_stack_is_refused(fold, world, tmp_path, monkeypatch, capsys,
                                                  reader):
    """Labels would be written to the wrong voxels."""
    shutil.copytree(world / "nnUNet_raw" / NAME, tmp_path / "raw" / NAME)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    told = tmp_path / "raw" / NAME / "dataset.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {
        "overwrite_image_reader_writer": reader}))
    image = tmp_path / "raw" / NAME / "imagesTr" / f"{NORMAL}_0000.nii.gz"
    labels = tmp_path / "raw" / NAME / "labelsTr" / f"{NORMAL}.nii.gz"
    for path in (image, labels):
        turned = sitk.ReadImage(str(path))
        turned.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
        sitk.WriteImage(turned, str(path))
    assert ask(tmp_path / "out", *MID_SEPTUM) == 2
    assert "reader turns the stack" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_turned_axes_come_back(fold, world, tmp_path):
    folder = world / "nnUNet_raw" / NAME
    plain, turned = (RawCase.read(folder, NORMAL, axes) for axes in ((0, 1, 2), (0, 2, 1)))
    assert turned.case.spacing == tuple(np.array(plain.case.spacing)[[0, 2, 1]])
    assert np.array_equal(turned.case.image, plain.case.image.transpose(0, 1, 3, 2))
    for raw, place in ((plain, (0, 2, 30, 40)), (turned, (0, 2, 40, 30))):
        image = raw.case.image.copy()
        image[place] += 5.4
        image_file, _ = raw.write(replace(raw.case, image=image), tmp_path / str(raw.axes), "x")
        _, written = arrays(image_file)
        before = plain.case.image[0]
        assert np.argwhere(written != before).tolist() == [[2, 30, 40]]
        assert written[2, 30, 40] == round(before[2, 30, 40] + 5.4)      # an integer file


@pytest.mark.parametrize("more, message", [
    (("--segments", "0", "18"), "AHA segments are numbered 1 to 17, not 0, 18"),
    (("--segments", "17"), r"does not cover AHA segment 17 \(apex\)"),
    (("--segments", "8", "--burden", "0.3"), "segments 8, which can hold"),
    (("--burden", "0.3", "0.2"), "the lower one first"),
    (("--burden", "1", "2", "3"), "--burden takes one share or LOW HIGH, not 3 values"),
    (("--burden", "10"), "burden must be a share"),
    (("--prior", "blob"), "There is no prior 'blob'; choose one of .*ellipsoid.*smile"),
    (("--prior", "midwall", "--transmurality", "0.9"), "spares a part of the wall"),
    (("--prior", "midwall", "--no-reflow", "0.2"), "not ischaemic"),
    (("--no-reflow", "1"), "no_reflow must be a share from 0 up to 0.8"),
    (("-n", "0"), "-n must be at least 1"), (("--seed", "-1"), "--seed must be 0 or more"),
    (("--case", "Nobody"), "There is no case 'Nobody'"),
    (("--generator", "gan"), "There is no generator 'gan'"),
    (("--generator", "lgesynth", "-device", "cpu"), "No generator is fitted")])
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(fold, tmp_path, capsys, more,
                                                                message):
    assert ask(tmp_path / "out", *more) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lgesynth")]
    assert len(said) == 1
    assert re.search(message, said[0]), said[0]
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_prior():
    """The list stands apart from the priors so that --help need not import them."""
    assert set(cli_samples.PRIORS) == set(PRIORS)


def test_results_of_another_run_are_not_overwritten(fold, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert ask(tmp_path / "out") == 2 and "not an empty folder" in capsys.readouterr().err
    assert ask(tmp_path / "out" / "mine.txt") == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing(fold, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Painter, "drafts", stop)
    assert ask(tmp_path / "out") == 130 and list(tmp_path.iterdir()) == []
