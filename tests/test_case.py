"""A fold opens by nnU-Net's names, and its cases read and write in nnU-Net's own format."""

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import (
    infer_dataset_class,
    nnUNetDatasetNumpy,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_nnunet import REGIONS, REGIONS_ORDER, tiny_dataset_json, tiny_plans
from tiny_training import write_tiny_training

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.dataset.roles import DatasetInfo, Frame, Roles, write_info

NAME = "Dataset117_TinyHeart"
IDENTIFIERS = ("Case.1_N", "Case.2_P", "Case.3_P", "Case.4_N")
ROLES = Roles(1, 2, 3, 4)
IN_3D = {"configuration": "3d_fullres", "patch": (4, 32, 32), "spacing": (7.0, 1.4, 1.4)}


def preprocess(base, heart, *, regions=False, transpose=(0, 1, 2), **options):
    """A raw dataset of four hearts, preprocessed by nnU-Net itself; returns its case folder.
    `options` are those of `tiny_plans`."""
    raw, preprocessed = base / "raw" / NAME, base / "preprocessed" / NAME
    plans = tiny_plans(**{"dataset": NAME, "spacing": (1.4, 1.4), **options})
    (configuration, settings), = plans["configurations"].items()
    plans["transpose_forward"] = list(transpose)
    plans["transpose_backward"] = np.argsort(transpose).tolist()
    dataset_json = tiny_dataset_json(regions=regions)
    folder = preprocessed / settings["data_identifier"]
    folder.mkdir(parents=True)
    for sub in ("imagesTr", "labelsTr"):
        (raw / sub).mkdir(parents=True)
    manager = PlansManager(plans)
    for k, name in enumerate(IDENTIFIERS):
        h = heart((1, 2, 0.7) if "P" in name else None, core=True, size=72, slices=3, seed=k)
        files = raw / "imagesTr" / f"{name}_0000.nii.gz", raw / "labelsTr" / f"{name}.nii.gz"
        for array, path in zip((h.image * 100 + 20, h.labels), files):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(h.spacing[::-1])
            sitk.WriteImage(image, str(path))
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / name), [str(files[0])], str(files[1]), manager,
            manager.get_configuration(configuration), dataset_json)
    write_info(raw, DatasetInfo(ROLES, Frame("apex_to_base", (-1.0, 0.0), (0.0, -1.0))))
    for path, value in (("nnUNetPlans", plans), ("dataset", dataset_json), ("splits_final", [
            {"train": list(IDENTIFIERS[2:]), "val": list(IDENTIFIERS[:2])},
            {"train": list(IDENTIFIERS[:2]), "val": list(IDENTIFIERS[2:])}])):
        (preprocessed / f"{path}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture
def world(tmp_path, monkeypatch, heart):
    """nnU-Net's folders with one preprocessed dataset; `world.make(...)` fills them."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    return SimpleNamespace(base=tmp_path, make=lambda **k: preprocess(tmp_path, heart, **k))


def test_fold_opens_by_number_and_name(world):
    folder = world.make()
    for dataset in (117, "117", NAME):
        fold = Fold.open(dataset, "2d", 1)
        assert fold.dataset == NAME and fold.folder == folder
        assert fold.train == IDENTIFIERS[:2] and fold.val == IDENTIFIERS[2:]
        assert fold.info.roles == ROLES and fold.patch_size == (32, 32)
        assert fold.plans_name == "nnUNetPlans"
    everything = Fold.open(117, "2d", "all")
    assert everything.train == everything.val == IDENTIFIERS


def test_case_is_what_nnunet_stored(world):
    world.make()
    fold = Fold.open(117, "2d", 0)
    case = fold.read("Case.2_P")
    assert case.image.shape == case.labels.shape == (1, 3, 72, 72)
    assert case.image.dtype == np.float32 and case.spacing == pytest.approx((10, 1.4, 1.4))
    assert abs(case.image.mean()) < 1e-3 and abs(case.image.std() - 1) < 1e-3     # z-scored
    assert set(np.unique(case.labels)) == {0, 1, 2, 3, 4}
    case.image[:] = 0                                     # a copy: the file is untouched
    assert fold.read("Case.2_P").image.any()


@pytest.mark.parametrize("options", [{}, IN_3D])
@pytest.mark.parametrize("regions", [False, True])
def test_written_case_equals_nnunets_own(world, tmp_path, regions, options):
    """Written anew, a case holds the same arrays, properties and foreground locations."""
    folder = world.make(regions=regions, **options)
    fold, pool = Fold.open(117, options.get("configuration", "2d"), 0), tmp_path / "pool"
    pool.mkdir()
    files = fold.write(fold.read("Case.2_P"), pool)
    assert sorted(pool.iterdir()) == sorted(files) and len(files) == 3
    assert infer_dataset_class(str(pool)) is infer_dataset_class(str(folder))
    data, seg, _, properties = fold.cases_folder(pool).load_case("Case.2_P")
    _, _, _, theirs = fold.cases_folder(folder).load_case("Case.2_P")
    original = fold.read("Case.2_P")
    assert np.array_equal(data[:], original.image) and np.array_equal(seg[:], original.labels)
    assert set(properties) == set(theirs)
    ours, theirs = properties["class_locations"], theirs["class_locations"]
    assert list(ours) == list(theirs)
    if regions:
        assert tuple(REGIONS["wall"]) in ours and len(ours) == len(REGIONS_ORDER)
    for key in ours:
        assert np.array_equal(ours[key], theirs[key]), key


def test_locations_follow_changed_labels(world, tmp_path):
    world.make()
    fold = Fold.open(117, "2d", 0)
    case = fold.read("Case.1_N")
    assert len(case.properties["class_locations"][3]) == 0
    labels = case.labels.copy()
    spot = tuple(np.argwhere(labels == 2)[0])
    labels[spot] = 3
    (tmp_path / "pool").mkdir()
    fold.write(Case("new.name", case.image, labels, case.properties, case.spacing),
               tmp_path / "pool")
    *_, properties = fold.cases_folder(tmp_path / "pool").load_case("new.name")
    assert np.array_equal(properties["class_locations"][3], [spot])
    assert len(case.properties["class_locations"][3]) == 0       # the source's are its own


def test_numpy_format_is_read_and_written(world, tmp_path):
    folder = world.make()
    case = Fold.open(117, "2d", 0).read("Case.3_P")
    for path in folder.iterdir():
        path.unlink()
    for name in IDENTIFIERS:
        nnUNetDatasetNumpy.save_case(case.image, case.labels.astype(np.int8), case.properties,
                                     str(folder / name))
    fold = Fold.open(117, "2d", 0)
    (tmp_path / "pool").mkdir()
    files = fold.write(fold.read("Case.3_P"), tmp_path / "pool")
    assert [p.name for p in files] == ["Case.3_P.npz", "Case.3_P.pkl"]
    data, seg, *_ = fold.cases_folder(tmp_path / "pool").load_case("Case.3_P")
    assert np.array_equal(data, case.image) and np.array_equal(seg, case.labels)


def test_frame_follows_a_transposition(world):
    world.make(transpose=(0, 2, 1))
    fold = Fold.open(117, "2d", 0)
    assert fold.info.frame.anterior == (0.0, -1.0) and fold.info.frame.septal == (-1.0, 0.0)
    assert fold.read("Case.2_P").spacing == pytest.approx((10, 1.4, 1.4))


def test_roles_may_travel_with_the_preprocessed_data(world, monkeypatch):
    folder = world.make()
    raw = world.base / "raw" / NAME / "lgesynth.json"
    raw.rename(folder.parent / "lgesynth.json")
    with pytest.raises(UserError, match=r"lgesynth\.json is missing.*lgesynth roles"):
        Fold.open(NAME, "2d", 0)
    monkeypatch.setenv("nnUNet_raw", str(world.base / "elsewhere"))
    assert Fold.open(NAME, "2d", 0).info.roles == ROLES


def test_missing_splits_are_made_as_nnunet_does(world):
    folder = world.make()
    splits = folder.parent / "splits_final.json"
    splits.unlink()
    for k in range(2):                                # six cases, so that five folds exist
        for path in list(folder.glob("Case.1_N*")):
            (folder / path.name.replace("Case.1", f"Case.{k + 5}")).write_bytes(path.read_bytes())
    fold = Fold.open(117, "2d", 3)
    assert len(json.loads(splits.read_text())) == 5
    assert fold.val == tuple(json.loads(splits.read_text())[3]["val"])


@pytest.mark.parametrize("arguments, match", [
    ((118, "2d", 0), "not one dataset 118"), (("Heart", "2d", 0), "Heart"),
    ((117, "3d_fullres", 0), "no configuration.*2d"), ((117, "2d", 2), "Fold 2.*-f"),
    ((117, "2d", -1), "Fold -1"), ((117, "2d", "first"), "Fold first"),
    ((117, "2d", 0, "otherPlans"), "otherPlans.json is missing")])
def test_what_does_not_exist_is_named(world, arguments, match):
    world.make()
    with pytest.raises(UserError, match=match):
        Fold.open(*arguments)


def test_unset_environment_is_named(world, monkeypatch):
    world.make()
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(UserError, match="nnUNet_preprocessed is not set"):
        Fold.open(NAME, "2d", 0)


def test_a_3d_case_is_resampled_between_slices_as_well(world):
    world.make(**IN_3D)
    fold = Fold.open(117, "3d_fullres", 0)
    case = fold.read("Case.2_P")
    assert fold.volumetric and fold.patch_size == (4, 32, 32) and fold.planar == "2d"
    assert case.image.shape == (1, 4, 72, 72) and case.spacing == (7.0, 1.4, 1.4)   # 3 x 10 mm


def test_a_2d_fold_is_its_own_judges(world):
    world.make(configuration="2d_fine")
    fold = Fold.open(117, "2d_fine", 0)
    assert fold.planar == "2d_fine" and not fold.volumetric


def test_cascades_are_refused_with_a_remedy(world):
    folder = world.make(**IN_3D)
    path = folder.parent / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres",
                                                     "previous_stage": "3d_lowres"}
    path.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"'3d_cascade_fullres' is the second stage of a cascade.*"
                                        r"'3d_lowres'.*use -c 3d_fullres"):
        Fold.open(117, "3d_cascade_fullres", 0)


def test_bad_cases_are_named(world):
    folder = world.make()
    fold = Fold.open(117, "2d", 0)
    with pytest.raises(UserError, match=r"'Case\.9'.*Case\.3_P"):
        fold.read("Case.9")
    case = fold.read("Case.1_N")
    case.image[0, 1, 2, 3] = np.nan
    for path in folder.glob("Case.1_N*"):
        path.unlink()
    fold.write(case, folder)
    with pytest.raises(UserError, match=r"Case\.1_N.*NaN"):
        fold.read("Case.1_N")


def test_damaged_files_and_labels_of_another_shape_are_named(world):
    folder = world.make()
    fold = Fold.open(117, "2d", 0)
    case = fold.read("Case.1_N")
    for path in folder.glob("Case.1_N*"):
        path.unlink()
    fold.write(replace(case, labels=case.labels[:, :-1]), folder)
    with pytest.raises(UserError, match=r"Case\.1_N.*image has \(3, 72, 72\).*labels \(2, 72, 72"):
        fold.read("Case.1_N")
    for ending in (".b2nd", ".pkl"):
        (folder / f"Case.2_P{ending}").write_bytes(b"cut")
        with pytest.raises(UserError, match=r"Case\.2_P.*cannot be read.*preprocess"):
            fold.read("Case.2_P")


@pytest.mark.parametrize("roles, match", [
    (Roles(1, 2, 7), r"label values \[7\].*lgesynth roles -d"),
    (Roles(1, 2, 3, rv=9), r"label values \[9\]"), (Roles(1, 2, 3, lge_channel=1), "channel 1")])
def test_roles_that_the_dataset_does_not_have_are_refused(world, roles, match):
    world.make(regions=True)
    write_info(world.base / "raw" / NAME, DatasetInfo(roles))
    with pytest.raises(UserError, match=match):
        Fold.open(117, "2d", 0)


def test_a_patient_in_training_and_validation_is_refused(world):
    path = world.make().parent / "splits_final.json"
    path.write_text(json.dumps([{"train": IDENTIFIERS[:3], "val": IDENTIFIERS[2:]}]))
    with pytest.raises(UserError, match=r"fold 0: 1 cases are in training and val.*Case\.3_P"):
        Fold.open(117, "2d", 0)


@pytest.mark.parametrize("splits", [{}, [], [{"train": ["Case_1"]}], ["Case_1"]])
def test_a_split_of_another_form_is_refused(world, splits):
    (world.make().parent / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match=r"splits_final\.json must be a list of folds"):
        Fold.open(117, "2d", 0)


def test_too_few_cases_for_a_split_are_named(world):
    folder = world.make()
    (folder.parent / "splits_final.json").unlink()
    with pytest.raises(UserError, match=r"holds 4 cases.*-f all"):
        Fold.open(117, "2d", 0)
    assert not (folder.parent / "splits_final.json").exists()
    assert Fold.open(117, "2d", "all").train == IDENTIFIERS


def test_fold_and_case_pickle(world):
    """Worker processes under spawn receive them."""
    world.make()
    fold = Fold.open(117, "2d", 0)
    again = pickle.loads(pickle.dumps(fold))
    assert again == fold
    assert np.array_equal(pickle.loads(pickle.dumps(again.read("Case.2_P"))).labels,
                          fold.read("Case.2_P").labels)


def test_a_subset_keeps_the_share_of_scarred_cases_and_is_part_of_any_larger_one(tmp_path):
    fold = write_tiny_training(tmp_path, cases=11)          # every other case is scarred
    scarred, before = fold.scarred(), set()
    assert len(scarred) == 5 and scarred < set(fold.train)
    for patients in range(2, 10):
        part = fold.subset(patients)
        assert len(part.train) == patients and before < set(part.train) and part.val == fold.val
        assert part.scarred() == scarred & set(part.train)
        assert len(part.scarred()) == pytest.approx(patients * 5 / 9, abs=0.51)
        assert part.split_hash != fold.split_hash or patients == 9
        before = set(part.train)
    assert fold.subset(9) == fold == fold.subset(None)
    for patients in (1, 10):
        with pytest.raises(UserError, match=r"must lie in 2\.\.9"):
            fold.subset(patients)


def test_a_subset_counts_patients_and_takes_all_of_their_stacks(tmp_path):
    fold = write_tiny_training(tmp_path, cases=11)
    scarred = sorted(fold.scarred())
    other = min(set(fold.train) - fold.scarred())
    fold = replace(fold, info=replace(fold.info, same_as={scarred[1]: scarred[0],
                                                          other: scarred[2]}))
    of = fold.info.patient
    for patients in range(2, 8):
        part = fold.subset(patients).train
        assert len(set(map(of, part))) == patients
        assert all((case in part) == (of(case) in part) for case in fold.train)
    assert fold.subset(7) == fold
    with pytest.raises(UserError, match=r"must lie in 2\.\.7"):
        fold.subset(8)
