"""Laws of a fitted generator's folder: its name says how to fit it, its record is whole."""

import json

import pytest

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.generators.fitted import (
    fit_command,
    generator_folder,
    is_fitted,
    preset_of,
    read_fitted,
)

WHOLE = {"config": {}, "hash": "0", "minutes": {}, "reward": None, "train": ["a"]}


@pytest.fixture
def folder(tmp_path):
    made = generator_folder(tmp_path, "Dataset116_X", "roi-cpu-seed2", "Other__Plans", "2d", 3)
    made.mkdir(parents=True)
    return made


def write(folder, text):
    (folder / "config.json").write_text(text)


def test_generator_folder_differs_by_all_that_matters():
    base = ("results", "Dataset116_X", "demo", "nnUNetPlans", "2d", 0)
    others = [(*base[:i], f"{base[i]}9", *base[i + 1:]) for i in range(6)]
    assert len({generator_folder(*a) for a in [base, *others]}) == 7


def test_a_folder_tells_its_preset_and_the_command_that_fits_it(folder):
    assert preset_of(folder) == "roi-cpu-seed2"
    assert fit_command(folder) == ("lgesynth fit -d 116 -c 2d -f 3 -p Other__Plans "
                                   "--preset roi-cpu --seed 2")
    assert not is_fitted(folder)
    with pytest.raises(UserError, match=r"no fitted generator.*run: lgesynth fit -d 116"):
        read_fitted(folder)


def test_a_whole_record_is_read(folder):
    write(folder, json.dumps(WHOLE))
    assert is_fitted(folder) and read_fitted(folder, *WHOLE) == WHOLE


@pytest.mark.parametrize("text, reason", [
    ("{", "not readable"), ("[]", "not readable"), ("null", "not readable"),
    ("{}", r"lacks \['config', 'train'\]"), ('["train", "config"]', "not readable"),
    (json.dumps({**WHOLE, "train": None}), r"lacks \['train'\]"),
    (json.dumps({**WHOLE, "train": "a"}), r"lacks \['train'\]"),
    (json.dumps({**WHOLE, "config": 1}), r"lacks \['config'\]")])
def test_a_damaged_record_is_refused_with_the_command_that_mends_it(folder, text, reason):
    write(folder, text)
    with pytest.raises(UserError, match=f"{reason}.*delete .*fold_3 and run: lgesynth fit -d 116"):
        read_fitted(folder, "config", "train")


def test_a_folder_that_is_no_fold_is_never_to_be_deleted(folder):
    write(folder, json.dumps(WHOLE))
    (folder / "vae").mkdir()
    write(folder / "vae", "{}")
    for wrong in (folder / "vae", folder.parent, folder / "config.json", folder.parent.parent):
        with pytest.raises(UserError, match="give the fold folder") as refused:
            read_fitted(wrong, "hash")
        assert "delete" not in str(refused.value)
