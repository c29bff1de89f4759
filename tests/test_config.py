"""Settings are checked when made, survive JSON, and are written whole or not at all."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from nnunet_lgesynth.config import (
    FitConfig,
    InjectionConfig,
    NetworkConfig,
    QCConfig,
    UserError,
    config_hash,
    from_dict,
)
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.presets import PRESETS, preset_flags, seeded


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = PRESETS[name]
    again = from_dict(FitConfig, json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and config.preset == name
    assert config_hash(again) == config_hash(config)


def test_hash_tells_configs_apart():
    hashes = {config_hash(c) for c in PRESETS.values()}
    hashes.add(config_hash(dataclasses.replace(PRESETS["demo"], seed=1)))
    assert len(hashes) == len(PRESETS) + 1


def test_a_seed_makes_a_generator_of_its_own():
    config = seeded(PRESETS["roi-cpu"], 3)
    assert (config.seed, config.preset) == (3, "roi-cpu-seed3")
    assert preset_flags(config.preset) == "--preset roi-cpu --seed 3"
    assert seeded(PRESETS["roi-cpu"], 0) == PRESETS["roi-cpu"]
    assert all(preset_flags(name) == f"--preset {name}" for name in PRESETS)
    with pytest.raises(UserError, match="seed must lie in"):
        seeded(PRESETS["roi-cpu"], -1)


@pytest.mark.parametrize("change", [
    {"sampler_steps": 0}, {"sampler_steps": 11}, {"crop_pixels": 50}, {"healthy_share": 1.0},
    {"reward_blend": 0.0}, {"reward_blend": 1.1},
    {"caption_dropout": 1.5}, {"reward_last_steps": 9, "sampler_steps": 8}, {"batch_size": 0},
    {"feather_mm": 0.0}])
def test_contradictory_fit_is_refused(change):
    with pytest.raises(UserError):
        dataclasses.replace(PRESETS["demo"], **change)


@pytest.mark.parametrize("channels", [(16,), (16, 32, 64, 128)])
def test_vae_shrinks_by_two_or_four(channels):
    with pytest.raises(UserError, match="2 or 4"):
        dataclasses.replace(PRESETS["demo"].network, vae_channels=channels)


@pytest.mark.parametrize("cls, values", [
    (QCConfig, {"label": "best"}), (QCConfig, {"min_dice": 0.1, "max_source_dice": 0.2}),
    (InjectionConfig, {"probability": 1.1}), (InjectionConfig, {"pool_cases": 0}),
    (InjectionConfig, {"budget": 0}), (InjectionConfig, {"warm_up": 65}),
    (InjectionConfig, {"refresh_cases": -1}), (InjectionConfig, {"ratio_cap": 0}),
    (InjectionConfig, {"no_reflow_share": 1.1}), (InjectionConfig, {"grace": float("nan")})])
def test_contradictory_qc_and_injection_are_refused(cls, values):
    with pytest.raises(UserError):
        cls(**values)


def test_foreign_json_is_refused():
    values = dataclasses.asdict(PRESETS["demo"])
    with pytest.raises(UserError, match=r"does not know.*colour"):
        from_dict(FitConfig, {**values, "colour": 1})
    with pytest.raises(UserError, match="incomplete"):
        from_dict(NetworkConfig, {"latent_channels": 4})


def test_write_json_replaces_whole_files(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": [1, 2]})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": [1, 2]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_docs_tell_every_setting_of_the_injection_with_its_default():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+)", text, re.MULTILINE))
    defaults = {f.name: f.default for f in dataclasses.fields(InjectionConfig)}
    assert told.keys() == defaults.keys()
    assert all(told[name] == "None" if v is None else type(v)(told[name]) == v
               for name, v in defaults.items())
