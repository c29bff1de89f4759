"""Label names of public datasets lead to the right roles; what is unclear is refused by name."""

import json

import pytest

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import (
    DatasetInfo,
    Frame,
    Roles,
    guess_roles,
    read_info,
    set_roles,
    write_info,
)

LGE = {"0": "LGE"}


def labels(*names):
    return {"background": 0, **{name: value for value, name in enumerate(names, 1)}}


KNOWN = {
    "our EMIDEC": (labels("LV cavity", "normal myocardium", "infarct", "no-reflow"),
                   LGE, Roles(1, 2, 3, 4)),
    "nnU-Net's EMIDEC": (labels("cavity", "normal_myocardium", "myocardial_infarction",
                                "no_reflow"), {"0": "cineMRI"}, Roles(1, 2, 3, 4)),
    "ACDC with scar": (labels("RV", "MLV", "LVC", "scar"), LGE, Roles(3, 2, 4, rv=1)),
    "M&Ms with scar": (labels("LV", "MYO", "RV", "lv_scar"), LGE, Roles(1, 2, 4, rv=3)),
    "MyoPS": (labels("LV blood pool", "RV blood pool", "LV normal myocardium",
                     "LV myocardial edema", "LV myocardial scars"),
              {"0": "bSSFP", "1": "T2", "2": "LGE"},
              Roles(1, 3, 5, rv=2, other_wall=(4,), lge_channel=2)),
    "long names": (labels("left ventricle", "left ventricular myocardium",
                          "microvascular obstruction", "enhanced area"), LGE, Roles(1, 2, 4, 3)),
    "regions": ({"background": 0, "whole LV": [1, 2, 3, 4], "myocardium": [2, 3, 4],
                 "scar": [3, 4], "MVO": [4]}, LGE, Roles(1, 2, 3, 4)),
    "regions, contours": ({"background": 0, "LV epicardium": [1, 2, 3], "LV endocardium": 1,
                           "LGE": [3]}, LGE, Roles(1, 2, 3)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_datasets(name):
    names, channels, expected = KNOWN[name]
    assert guess_roles({"labels": names, "channel_names": channels}) == expected


def test_scars_and_wall():
    roles = Roles(1, 2, 3, 4, other_wall=(5,))
    assert roles.scars == (3, 4) and roles.wall == (2, 3, 4, 5)
    assert Roles(1, 2, 3).scars == (3,)


def test_missing_role_names_the_flag():
    with pytest.raises(UserError, match=r"scar.*--scar"):
        guess_roles({"labels": labels("RV", "MLV", "LVC"), "channel_names": LGE})


def test_two_labels_for_one_role_are_not_settled_silently():
    names = {"labels": labels("LV", "myo", "infarct", "fibrosis"), "channel_names": LGE}
    with pytest.raises(UserError, match=r"infarct.*fibrosis.*--scar"):
        guess_roles(names)
    roles = guess_roles(names, {"scar": "infarct"})
    assert roles.scar == 3 and roles.other_wall == (4,)      # still wall, never painted over


def test_told_roles_win():
    names = {"labels": labels("BP", "healthy_myo", "BZ", "core"), "channel_names": LGE}
    assert guess_roles(names, {"scar": "core", "other_wall": 3}) == Roles(1, 2, 4, other_wall=(3,))
    with pytest.raises(UserError, match="no such label"):
        guess_roles(names, {"scar": "Core of it"})


def test_channel_must_be_clear():
    names = {"labels": labels("LV", "myo", "scar"), "channel_names": {"0": "a", "1": "b"}}
    with pytest.raises(UserError, match="--channel"):
        guess_roles(names)
    assert guess_roles(names, channel="B").lge_channel == 1
    assert guess_roles(names, channel=0).lge_channel == 0
    with pytest.raises(UserError, match="no such channel"):
        guess_roles(names, channel=2)


@pytest.mark.parametrize("values", [(1, 2, 2), (0, 1, 2), (1, 2, "3"), (1, 2, -1)])
def test_bad_values_are_refused(values):
    with pytest.raises(UserError, match="label value"):
        Roles(*values)


@pytest.mark.parametrize("values", [{"anterior": (2, 0)}, {"septal": (1, 0, 0)},
                                    {"slices": "up"}])
def test_bad_frames_are_refused(values):
    with pytest.raises(UserError):
        Frame(**values)


def test_info_survives_the_disk(tmp_path):
    info = DatasetInfo(Roles(1, 2, 3, 4, 5, (6,), 1),
                       Frame("base_to_apex", (-1.0, 0.0), (0.0, 1.0)),
                       {"Case_1": (2, 31, 40), "Case_2": (0, 30.5, 41.25)}, {"Case_2": "Case_1"})
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info


def test_a_patient_of_several_stacks_has_the_name_of_the_first():
    info = DatasetInfo(Roles(1, 2, 3), same_as={"Case_2": "Case_1"})
    assert [info.patient(f"Case_{k}") for k in (1, 2, 3)] == ["Case_1", "Case_1", "Case_3"]
    for same_as in ([["Case_2", "Case_1"]], {"Case_2": 1}, {"Case_2": "Case_1", "Case_3": "Case_2"},
                    {"Case_1": "Case_1"}):
        with pytest.raises(UserError, match="same_as must map cases to an earlier case"):
            DatasetInfo(Roles(1, 2, 3), same_as=same_as)


def test_a_file_without_landmarks_has_none(tmp_path):
    path = write_info(tmp_path, DatasetInfo(Roles(1, 2, 3)))
    values = json.loads(path.read_text())
    assert values.pop("landmarks") == values.pop("same_as") == {}
    path.write_text(json.dumps(values))
    assert read_info(tmp_path).landmarks == read_info(tmp_path).same_as == {}


@pytest.mark.parametrize("landmarks, match", [
    ([[2, 31, 40]], "landmarks must map cases to voxels"), (None, "landmarks must map"),
    *(({"Case_1": voxel}, r"landmark of Case_1 must be \(slice, row, column\)") for voxel in (
        [31, 40], [2, 31, 40, 1], "2 31 40", 31, None, [2, "31", 40], [2, None, 40],
        [2, float("nan"), 40], [2, float("inf"), 40], [True, 31, 40]))])
def test_malformed_landmarks_are_refused_in_one_sentence(tmp_path, landmarks, match):
    with pytest.raises(UserError, match=match):
        DatasetInfo(Roles(1, 2, 3), landmarks=landmarks)
    path = write_info(tmp_path, DatasetInfo(Roles(1, 2, 3)))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"landmarks": landmarks}))
    with pytest.raises(UserError, match=match) as refused:
        read_info(tmp_path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text, match", [
    (None, "missing.*lgesynth roles"), ("{", "not readable"), ('{"roles": {}}', "not readable"),
    ('{"roles": {"cavity": 1, "myocardium": 1, "scar": 2}, "frame": {}}', "label value")])
def test_unusable_info_is_refused(tmp_path, text, match):
    if text is not None:
        (tmp_path / "lgesynth.json").write_text(text)
    with pytest.raises(UserError, match=match):
        read_info(tmp_path)


def test_a_damaged_file_is_written_anew_as_its_message_says(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / "Dataset042_Heart"
    folder.mkdir()
    (folder / "lgesynth.json").write_text("{")
    for text, match in (("{", "dataset.json is not readable"), ("[]", "lacks"), ("{}", "lacks"),
                        ('{"labels": ["LV"], "channel_names": {}}', "labels must map names"),
                        ('{"labels": {}, "channel_names": ["LGE"]}', "channel_names must map")):
        (folder / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=match):
            set_roles("42")
    (folder / "dataset.json").write_text(json.dumps(
        {"labels": labels("LV", "myo", "scar"), "channel_names": LGE}))
    assert set_roles("42")[1] == read_info(folder).roles == Roles(1, 2, 3)


def test_set_roles_writes_into_the_raw_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / "Dataset042_Heart"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(
        {"labels": labels("LV", "myo", "scar"), "channel_names": LGE}))
    frame = Frame("apex_to_base", (0.0, 1.0), (1.0, 0.0))
    landmarks = {"Case_1": (2, 31.5, 40)}
    write_info(folder, DatasetInfo(Roles(3, 2, 1), frame, landmarks))
    path, roles = set_roles("42")
    assert roles == Roles(1, 2, 3) and path.parent == folder
    assert read_info(folder) == DatasetInfo(roles, frame, landmarks)     # what was known is kept
    with pytest.raises(UserError, match="43"):
        set_roles("43")
