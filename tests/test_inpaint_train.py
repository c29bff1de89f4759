"""Laws of the fit: only training cases, every stage once, and a kill that leaves no trace."""

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from tiny_fold import write_tiny_fold
from tiny_inpaint import haar_config, tiny_config, tiny_slices
from tiny_nnunet import write_tiny_model

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.generators.condition import CONTROL_CHANNELS, Request, conditions
from nnunet_lgesynth.generators.inpaint.batch import Draws
from nnunet_lgesynth.generators.inpaint.data import as_healthy, augment
from nnunet_lgesynth.generators.inpaint.networks import HaarWavelet, build
from nnunet_lgesynth.generators.inpaint.progress import read_checkpoint, write_checkpoint
from nnunet_lgesynth.generators.inpaint.sample import Inpainter
from nnunet_lgesynth.generators.inpaint.train import fit, objective_of
from nnunet_lgesynth.generators.subject import read_subjects
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.processes import alone

pytestmark = pytest.mark.usefixtures("without_pictures")      # but for that of `fitted`

STEPS = [("vae", 1), ("vae", 2), ("vae", 3), ("unet", 1), ("unet", 2), ("unet", 3),
         ("controlnet", 1), ("controlnet", 2), ("controlnet", 3), ("reward", 1), ("reward", 2)]


class Killed(Exception):
    """Stands for the signal that stops a fit."""


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    return write_tiny_fold(tmp_path_factory.mktemp("fold"))


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    return Segmenter.load_fold(write_tiny_model(tmp_path_factory.mktemp("results")), "cpu")


@pytest.fixture(scope="module")
def fitted(fold, reward, tmp_path_factory):
    folder, steps = tmp_path_factory.mktemp("fit") / "fold_0", []
    fit(fold, tiny_config(), folder, "cpu", reward,
        progress=lambda stage, step, loss: steps.append((stage, step)))
    return folder, steps


def test_a_fit_runs_every_stage_and_leaves_a_generator(fold, fitted, reward):
    folder, steps = fitted
    assert steps == STEPS
    record = json.loads((folder / "config.json").read_text())
    assert record["train"] == list(fold.train) and record["val"] == list(fold.val)
    assert record["reward"]["hash"] == reward.hash and set(record["minutes"]) == {
        "vae", "unet", "controlnet", "reward"}
    rows = json.loads((folder / "metrics.json").read_text())
    assert [(r["stage"], r["step"]) for r in rows] == [s for s in STEPS if s not in STEPS[:-1]
                                                      or s[1] == 3]
    assert all(np.isfinite(r["loss"]) and r["seconds"] > 0 for r in rows)
    for name in ("progress.png", "training_log.txt", "prior.json"):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "state").exists()
    inpainter = Inpainter.load(folder, "cpu")
    assert inpainter.hash == record["hash"] and len(inpainter.hash) == 12
    assert inpainter.prior.name == "fitted" and inpainter.prior.records
    config = inpainter.networks.vae.config
    assert min(config.latents_std) > 0 and set(config.latents_std) != {1.0}


def test_latents_have_zero_mean_and_unit_variance(fold, fitted):
    networks = Inpainter.load(fitted[0], "cpu").networks
    sources = np.stack([i.condition.source for i in tiny_slices(fold, tiny_config()).real])
    with torch.no_grad():
        latents = networks.encode(torch.from_numpy(sources)[:, None])
    assert abs(latents.mean()) < 0.01 and abs(latents.std() - 1) < 0.01


def test_a_killed_fit_goes_on_as_if_it_had_never_stopped(fold, reward, fitted, tmp_path):
    folder, seen = tmp_path / "fold_0", []
    kills = [("vae", 3), ("unet", 1), ("controlnet", 3), None]

    def run(kill, resume):
        def progress(stage, step, loss):
            seen.append((stage, step))
            if (stage, step) == kill:
                raise Killed
        return fit(fold, tiny_config(), folder, "cpu", reward, resume, progress=progress)

    for number, kill in enumerate(kills[:-1]):
        with pytest.raises(Killed):
            run(kill, resume=number > 0)
        assert not (folder / "config.json").exists()
    with pytest.raises(UserError, match="--resume"):
        run(None, resume=False)
    with pytest.raises(UserError, match="another config"):
        fit(fold, tiny_config(seed=1), folder, "cpu", reward, resume=True)
    record = run(None, resume=True)
    # saved every 2 steps and after each stage, so these steps alone are done twice
    again = [("vae", 3), ("unet", 1), ("controlnet", 3)]
    assert sorted(seen) == sorted(STEPS + again)
    assert record["hash"] == json.loads((fitted[0] / "config.json").read_text())["hash"]


def test_a_fit_starts_from_anothers_vae_and_unet(fold, fitted, tmp_path):
    config, seen = tiny_config(captions="none", outline="mask", healthy_share=0.0), []
    record = fit(fold, config, tmp_path / "fold_0", "cpu", start=fitted[0],
                 progress=lambda stage, *_: seen.append(stage))
    assert seen == ["controlnet"] * 3 and set(record["minutes"]) == {"controlnet"}
    mine, theirs = (Inpainter.load(f, "cpu").networks for f in (tmp_path / "fold_0", fitted[0]))
    for name in ("vae", "unet", "text"):
        other = theirs.modules[name].state_dict()
        assert all(torch.equal(v, other[k])
                   for k, v in mine.modules[name].state_dict().items()), name
    assert mine.vae.config.latents_std == theirs.vae.config.latents_std
    assert record["start"] == json.loads((fitted[0] / "config.json").read_text())["hash"]
    with pytest.raises(UserError, match=r"network .*same networks"):
        fit(fold, tiny_config(4), tmp_path / "other", "cpu", start=fitted[0])
    with pytest.raises(UserError, match="seed 0, not 1"):
        fit(fold, tiny_config(seed=1), tmp_path / "other", "cpu", start=fitted[0])
    with pytest.raises(UserError, match=r"config\.json lacks"):
        fit(fold, config, tmp_path / "other", "cpu", start=fitted[0] / "vae")
    with pytest.raises(UserError, match="holds no fitted generator"):
        fit(fold, config, tmp_path / "other", "cpu", start=tmp_path)
    unseen = json.loads((fitted[0] / "config.json").read_text())
    shutil.copytree(fitted[0], tmp_path / "leaky")
    unseen["train"].append(fold.val[0])
    (tmp_path / "leaky" / "config.json").write_text(json.dumps(unseen))
    with pytest.raises(UserError, match=f"fitted on {fold.val[0]}, which is no training case"):
        fit(fold, config, tmp_path / "other", "cpu", start=tmp_path / "leaky")


def test_a_reward_starts_from_the_controlnet_that_would_come_out_the_same(fold, fitted, reward,
                                                                          tmp_path):
    """`fitted` has a reward stage, so its ControlNet is none to start from."""
    def stages(start, name, **changes):
        seen = []
        fit(fold, tiny_config(**changes), tmp_path / name, "cpu", reward, start=start,
            progress=lambda stage, *_: seen.append(stage))
        return list(dict.fromkeys(seen))

    plain = tmp_path / "plain"
    assert stages(fitted[0], "plain", reward_steps=0) == ["controlnet"]
    assert stages(plain, "full") == ["reward"]
    hashes = {json.loads((f / "config.json").read_text())["hash"]
              for f in (tmp_path / "full", fitted[0])}
    assert len(hashes) == 1                              # the same weights, the same config
    assert stages(plain, "texture", texture_mm=0.0) == ["reward"]
    assert stages(plain, "mask", outline="mask") == ["controlnet", "reward"]


def test_the_blend_is_the_way_from_the_plain_controlnet_to_the_tuned_one(fold, fitted, reward,
                                                                         tmp_path):
    """Also of a fit that was killed within the reward."""
    def fit_to(name, start, kill=None, resume=False, **changes):
        def progress(stage, step, loss):
            if (stage, step) == kill:
                raise Killed
        fit(fold, tiny_config(reward_steps=3, **changes), tmp_path / name, "cpu", reward, resume,
            tmp_path / start, progress)

    fit(fold, tiny_config(reward_steps=0), tmp_path / "plain", "cpu", start=fitted[0])
    fit_to("tuned", "plain")
    with pytest.raises(Killed):
        fit_to("blended", "plain", kill=("reward", 3), reward_blend=0.25)
    assert read_checkpoint(tmp_path / "blended")["step"] == 2
    fit_to("blended", "plain", resume=True, reward_blend=0.25)
    plain, tuned, blended = (Inpainter.load(tmp_path / n, "cpu").networks.controlnet.state_dict()
                             for n in ("plain", "tuned", "blended"))
    assert any((plain[k] - tuned[k]).abs().max() > 1e-6 for k in plain)
    for name, weight in blended.items():
        torch.testing.assert_close(weight, 0.75 * plain[name] + 0.25 * tuned[name])


def test_without_vae_a_fit_begins_with_the_unet(fold, tmp_path):
    config, seen = haar_config(), []
    fit(fold, config, tmp_path / "fold_0", "cpu",
        progress=lambda stage, *_: seen.append(stage))
    assert seen == ["unet"] * 3 + ["controlnet"] * 3
    networks = Inpainter.load(tmp_path / "fold_0", "cpu").networks
    assert isinstance(networks.vae, HaarWavelet) and len(set(networks.vae.config.latents_std)) == 4
    sources = torch.from_numpy(np.stack([i.condition.source for i in tiny_slices(
        fold, config).real]))[:, None]
    latents = networks.encode(sources)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(networks.decode(latents), sources)


def test_a_fitted_folder_is_refused_or_returned(fold, fitted, reward):
    before = (fitted[0] / "config.json").read_bytes()
    with pytest.raises(UserError, match="fitted already"):
        fit(fold, tiny_config(), fitted[0], "cpu")
    assert fit(fold, tiny_config(), fitted[0], "cpu", reward, resume=True) == json.loads(before)
    with pytest.raises(UserError, match="had another config;"):
        fit(fold, tiny_config(reward_blend=0.5), fitted[0], "cpu", reward, resume=True)
    with pytest.raises(UserError, match="had another reward;"):
        fit(fold, tiny_config(), fitted[0], "cpu", resume=True)
    assert (fitted[0] / "config.json").read_bytes() == before


def test_one_fit_at_a_time_writes_into_a_folder(fold, tmp_path):
    with alone(tmp_path / "fold_0", "fit"), pytest.raises(UserError, match="Another fit is"):
        fit(fold, tiny_config(), tmp_path / "fold_0", "cpu")
    assert [p.name for p in (tmp_path / "fold_0").iterdir()] == ["fit.lock"]


def test_a_folder_that_cannot_be_written_is_named(fold, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"fold_0 cannot be a folder: a file is in the way"):
        fit(fold, tiny_config(), tmp_path / "file" / "fold_0", "cpu")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("nnunet_lgesynth.generators.inpaint.train.write_json", full)
    with pytest.raises(UserError, match=r"stopped .*No space.* go on with --resume"):
        fit(fold, tiny_config(), tmp_path / "fold_0", "cpu")


def test_validation_cases_are_refused(fold):
    with pytest.raises(UserError, match="case_04 are no training cases"):
        read_subjects(fold, ["case_00", "case_04"])


def test_the_fit_opens_no_validation_case(fold, tmp_path):
    for name in fold.val:
        for file in fold.folder.glob(f"{name}*"):
            shutil.move(file, tmp_path)
    try:
        assert {i.subject.case.identifier for i in tiny_slices(fold, tiny_config()).real} <= set(
            fold.train)
        fit(fold, haar_config(unet_steps=1, controlnet_steps=1), tmp_path / "fit", "cpu")
    finally:
        for file in tmp_path.glob("case_*"):
            shutil.move(file, fold.folder)


@pytest.mark.parametrize("stage, trained", [("vae", {"vae"}), ("unet", {"unet", "text"}),
                                            ("controlnet", {"controlnet"})])
def test_a_stage_trains_its_networks_alone(fold, stage, trained):
    config = tiny_config()
    networks = build(config)
    objective = objective_of(stage, networks, config, None, (3, 4))
    objective(*Draws(tiny_slices(fold, config), stage, networks.snr())[0]).backward()
    reached = {name for name, module in networks.modules.items()
               if any(p.grad is not None and p.grad.abs().sum() > 0
                      for p in module.parameters())}
    assert reached == trained


def test_batch_k_depends_on_seed_stage_and_k_alone(fold):
    slices, snr = tiny_slices(fold, tiny_config()), build(tiny_config()).snr()
    one, same = (Draws(slices, "controlnet", snr)[5][0] for _ in range(2))
    others = [Draws(slices, "controlnet", snr)[6][0], Draws(slices, "controlnet", snr, 1)[5][0],
              Draws(tiny_slices(fold, tiny_config(seed=1)), "controlnet", snr)[5][0]]
    assert torch.equal(one.image, same.image) and torch.equal(one.noise, same.noise)
    assert one.captions == same.captions and torch.equal(one.control, same.control)
    assert not any(torch.equal(one.noise, other.noise) for other in others)


def test_half_of_the_repaintings_stay_healthy_and_the_fill_tells_nothing(fold):
    slices, snr = tiny_slices(fold, tiny_config()), build(tiny_config()).snr()
    batch = Draws(slices, "controlnet", snr)[0][0]
    assert batch.control.shape[1] == CONTROL_CHANNELS
    healthy = ~batch.control[:, 3].flatten(1).any(1)
    assert int(healthy.sum()) == 2
    assert (batch.control[:, 1][batch.region[:, 0] > 0] == 0).all()
    assert not batch.control[healthy][:, 0].any()       # no edges either
    captions = np.array(batch.captions)[healthy.numpy()]
    assert set(captions) <= {"", "no enhancement"}


def test_a_healthy_twin_is_what_a_healthy_request_makes(fold):
    slices = tiny_slices(fold, tiny_config())
    item = slices.asked[0]
    mask = np.zeros(item.subject.labels.shape, np.uint8)
    mask[item.z] = item.request
    request = Request(mask, item.condition.contrast, item.condition.no_reflow_contrast, True)
    made = conditions(item.subject.lge, item.subject.anatomy, item.subject.intensities,
                      request, [item.z], pixels=32, mm=1.4, feather_mm=4.0)[0]
    twin = as_healthy(item).condition
    for name in ("source", "request", "region", "weight"):
        assert np.array_equal(getattr(made, name), getattr(twin, name)), name
    assert made.caption == twin.caption == "no enhancement"


def test_augmentation_moves_image_and_request_together(fold):
    condition = tiny_slices(fold, tiny_config()).scarred[0].condition
    for seed in range(5):
        moved = augment(condition, np.random.default_rng(seed))
        assert moved.caption == condition.caption
        scar, region = moved.request == 1, moved.region
        assert (region | ~scar).all() and moved.source.dtype == np.float32
        assert abs(np.median(moved.source[scar]) - moved.contrast) < 0.2 * condition.contrast
        assert 0.7 < scar.sum() / (condition.request == 1).sum() < 1.4


def test_contrast_is_measured_on_the_slice(fold):
    for item in tiny_slices(fold, tiny_config()).scarred:
        case = fold.read(item.subject.case.identifier)
        anatomy = describe(case.labels[0], fold.info.roles, case.spacing, fold.info.frame)
        assert np.array_equal(anatomy.wall, item.subject.anatomy.wall)
        image = item.subject.intensities.apply(case.image[0, item.z])
        expected = np.median(image[case.labels[0, item.z] == 3])
        assert item.condition.contrast == pytest.approx(expected)


def test_a_full_disk_costs_no_earlier_state_and_leaves_no_half_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, {"step": 1})

    def full(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="unexpected pos"):
        write_checkpoint(tmp_path, {"step": 2})
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["checkpoint.pt"]
    assert read_checkpoint(tmp_path) == {"step": 1}
