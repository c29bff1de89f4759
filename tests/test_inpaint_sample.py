"""Laws of sampling: one seed a sample, the known stays known, nothing changes outside the mask."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_fold import write_tiny_fold
from tiny_inpaint import tiny_config, tiny_inpainter, tiny_slices

from nnunet_lgesynth import precision
from nnunet_lgesynth.anatomy.scar import NO_REFLOW
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.generators.condition import control_map, paste_array
from nnunet_lgesynth.generators.fitted import generator_folder
from nnunet_lgesynth.generators.inpaint import sample
from nnunet_lgesynth.generators.inpaint.batch import collate, latent_shape
from nnunet_lgesynth.generators.inpaint.data import as_healthy
from nnunet_lgesynth.generators.inpaint.sample import Inpainter, denoise


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return tiny_slices(write_tiny_fold(tmp_path_factory.mktemp("fold")), tiny_config())


@pytest.fixture(scope="module")
def inpainter(slices):
    return tiny_inpainter(slices)


def test_a_sample_is_the_same_bit_by_bit_alone_and_among_any_others(inpainter, slices):
    conditions = [item.condition for item in slices.asked[:18]]
    drafts = inpainter.drafts(conditions, range(18))
    assert len(drafts) == 18 and drafts[0].shape == (32, 32) and drafts[0].dtype == np.float32
    for count in (1, 3, 16):
        for k in (0, 7, 17):
            first = min(k, 18 - count)
            asked = range(first, first + count)[::-1]
            again = inpainter.drafts([conditions[i] for i in asked], asked)
            assert np.array_equal(again[first + count - 1 - k], drafts[k])
    other = inpainter.drafts(conditions[:1], [99])[0]
    assert np.abs(other - drafts[0]).max() > 1e-2


def test_batches_of_another_size_differ_by_rounding_alone(inpainter, slices):
    conditions = [item.condition for item in slices.asked[:6]]
    four, five = (sample.paint(inpainter.networks, slices.config, conditions, range(6),
                               batch_size=n, half=False) for n in (4, 5))
    np.testing.assert_allclose(four, five, atol=1e-4)


def test_drafting_pauses_after_each_pass_and_leaves_the_callers_modes_alone(
        inpainter, slices, monkeypatch):
    monkeypatch.setattr(precision, "half_precision", lambda device: torch.bfloat16)
    asked, seeds = [item.condition for item in slices.asked[:5]], range(5)     # two batches
    steps, pauses = inpainter.drafting(asked, seeds), 0
    state = torch.get_rng_state()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            drafts = end.value
            break
        pauses += 1
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert pauses == 2 * 2 * slices.config.sampler_steps           # with the healthy twins
    assert np.array_equal(drafts, inpainter.drafts(asked, seeds))
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_can_be_left_out(inpainter, slices, monkeypatch):
    monkeypatch.setattr(precision, "half_precision", lambda device: torch.bfloat16)
    conditions = [item.condition for item in slices.asked[:2]]
    full = Inpainter(inpainter.networks, slices.config, slices.prior, inpainter.hash, half=False)
    halves, exact = (np.stack(i.drafts(conditions, [0, 1])) for i in (inpainter, full))
    # eight bits of mantissa add up to 3 % here, 23 % in the worst pixel, which varies with the CPU
    assert 0 < np.sqrt(np.mean((halves - exact) ** 2)) < 0.05 * exact.std()
    assert np.abs(halves - exact).max() < 0.4 * exact.std()
    monkeypatch.setattr(precision, "half_precision", lambda device: None)
    assert np.array_equal(inpainter.drafts(conditions, [0, 1]), exact)


def test_the_callers_random_numbers_are_left_alone(inpainter, slices):
    state = torch.get_rng_state()
    inpainter.drafts([slices.asked[0].condition], [3])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draft_changes_only_what_lies_under_the_feather(inpainter, slices):
    for item in slices.asked[:3]:
        image = item.subject.lge[item.z]
        draft = inpainter.drafts([item.condition], [1])[0]
        pasted = paste_array(image, draft, item.condition)
        outside = item.condition.weight == 0
        assert np.array_equal(pasted[outside], image[outside])
        assert np.abs(pasted - image)[~outside].max() > 1e-3


def test_known_latents_end_as_the_sources(inpainter, slices):
    item, networks = slices.asked[0], inpainter.networks
    noise = torch.randn(1, slices.config.sampler_steps, *latent_shape(slices.config))
    batch = collate([item.condition], tiny_config(), noise)
    with torch.no_grad():
        steps = list(denoise(networks, batch, slices.config))
        known = networks.encode(batch.image)
    outside = torch.nn.functional.max_pool2d(batch.region, networks.factor).expand_as(known) == 0
    assert len(steps) == slices.config.sampler_steps
    assert torch.equal(steps[-1][outside], known[outside])
    assert (steps[-1] - known)[~outside].abs().max() > 1e-2


def test_every_step_draws_its_own_noise(inpainter, slices):
    config = slices.config
    noise = torch.randn(1, config.sampler_steps, *latent_shape(config))
    ends = []
    for changed in (None, *range(config.sampler_steps)):
        other = noise.clone()
        if changed is not None:
            other[:, changed] = torch.randn_like(other[:, changed])
        batch = collate([slices.asked[0].condition], config, other)
        with torch.no_grad():
            ends.append(list(denoise(inpainter.networks, batch, config))[-1])
    assert all((end - ends[0]).abs().max() > 1e-3 for end in ends[1:])


@pytest.mark.parametrize("last", [0, 1, 2])
def test_gradient_comes_from_the_last_steps_only(inpainter, slices, last):
    networks = inpainter.networks
    networks.train_only(networks.controlnet)
    batch = collate([slices.asked[0].condition], slices.config,
                    torch.randn(1, slices.config.sampler_steps, *latent_shape(slices.config)))
    graphs = [latents.requires_grad for latents in denoise(networks, batch, slices.config, last)]
    networks.train_only()
    assert graphs == [False] * (3 - last) + [True] * last


def test_an_unfitted_inpainter_names_the_command(tmp_path):
    folder = tmp_path / "Dataset116_X" / "LGESynth_roi-cpu__nnUNetPlans__2d" / "fold_3"
    with pytest.raises(UserError, match="lgesynth fit -d 116 -c 2d -f 3 --preset roi-cpu"):
        Inpainter.load(folder, "cpu")


def test_a_damaged_file_of_a_fitted_inpainter_is_told_with_the_command_that_mends_it(
        inpainter, slices, tmp_path):
    folder = generator_folder(tmp_path, "Dataset116_X", "tiny", "nnUNetPlans", "2d", 0)
    inpainter.networks.save(folder)
    write_json(folder / "prior.json", slices.prior.as_dict())
    write_json(folder / "config.json", {"config": dataclasses.asdict(slices.config), "hash": "0"})
    assert Inpainter.load(folder, "cpu").hash == "0"
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.parent.name for p in files} == {"fold_0", "vae", "unet", "controlnet", "scheduler",
                                              "text_encoder"}
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2])
        with pytest.raises(UserError, match=r"(?s)(damaged|not readable) \(.*delete .* and "
                                            "run: lgesynth fit -d 116"):
            Inpainter.load(folder, "cpu")
        path.write_bytes(whole)


def test_captions_are_told_as_the_config_says(slices):
    told = {kind: collate([slices.asked[0].condition], tiny_config(captions=kind),
                          torch.randn(1, 1, *latent_shape(slices.config))).captions[0]
            for kind in ("full", "constant", "none")}
    assert told == {"full": slices.asked[0].condition.caption, "constant": "enhancement",
                    "none": ""}
    with pytest.raises(UserError, match="captions must be full, constant or none"):
        tiny_config(captions="some")


def test_the_outline_is_a_rim_or_a_mask(slices):
    condition = slices.asked[0].condition
    edges, mask = (control_map(condition, kind)[0] > 0 for kind in ("edges", "mask"))
    assert (mask == (condition.request > 0)).all() and (edges <= mask).all()
    assert 0 < edges.sum() < mask.sum()


def test_a_drafts_fine_texture_is_the_sources_own(inpainter, slices):
    conditions = [as_healthy(item).condition for item in slices.asked[:3]]
    shares = []
    for texture_mm in (0.0, 4.0, 4000.0):
        config = tiny_config(texture_mm=texture_mm)
        drafts = sample.paint(inpainter.networks, config, conditions, range(3), half=False)
        lost = [(d - c.source)[c.region] for d, c in zip(drafts, conditions)]
        fine = [(v - ndimage.gaussian_filter(v, 1.0))[c.region] for v, c in zip(
            [d - c.source for d, c in zip(drafts, conditions)], conditions)]
        shares.append([np.concatenate(v).std() for v in (lost, fine)])
    (coarse, detail), (kept, same), (all_kept, _) = shares
    assert same < 0.2 * detail and 0.2 * coarse < kept < coarse and all_kept < 0.2 * coarse
    scars = [item.condition for item in slices.asked[:3]]
    plain, textured, healthy = (sample.paint(
        inpainter.networks, tiny_config(texture_mm=t, level_cores=False), asked, range(3),
        half=False) for t, asked in ((0.0, scars), (4000.0, scars), (0.0, conditions)))
    for a, b, h, c in zip(plain, textured, healthy, scars):
        missing = c.source - h
        np.testing.assert_allclose(b, a + missing - missing.mean(), atol=0.05)


def test_a_core_has_the_contrast_that_was_asked(inpainter, slices):
    asked = [item.condition for item in slices.asked if (item.request == NO_REFLOW).any()][:4]
    assert len(asked) == 4
    drawn, levelled = (sample.paint(inpainter.networks, tiny_config(level_cores=level), asked,
                                    range(4), half=False) for level in (False, True))
    for before, after, condition in zip(drawn, levelled, asked):
        core = condition.request == NO_REFLOW
        share = (np.median(after[core]) - np.median(before[core])) / (
            condition.no_reflow_contrast - np.median(before[core]))
        assert 0.3 < share < 1.1 and after.dtype == np.float32
        if core.sum() >= 12:
            assert share == pytest.approx(1, abs=0.1)
        near = ndimage.binary_dilation(core, np.ones((7, 7)))      # reach of the blur
        assert np.array_equal(after[~near], before[~near])
    healthy = [as_healthy(item).condition for item in slices.asked[:2]]
    for one, other in zip(*(sample.paint(inpainter.networks, tiny_config(level_cores=level),
                                         healthy, range(2), half=False) for level in (0, 1))):
        assert np.array_equal(one, other)


def test_a_healthy_draft_is_its_own_twin(inpainter, slices, monkeypatch):
    """Drafting only healthy wall takes half the passes, and comes out as among scars."""
    scars = [item.condition for item in slices.asked[:2]]
    healthy = [as_healthy(item).condition for item in slices.asked[2:4]]
    config, passes, velocity = tiny_config(texture_mm=7.0), [], inpainter.networks.velocity
    monkeypatch.setattr(inpainter.networks, "velocity",
                        lambda *given: passes.append(len(given[0])) or velocity(*given))

    def drafts(conditions, seeds):
        passes.clear()
        found = sample.paint(inpainter.networks, config, conditions, seeds, batch_size=4)
        return found, len(passes)

    alone, few = drafts(healthy, [2, 3])
    among, many = drafts(scars + healthy, [0, 1, 2, 3])
    assert (few, many) == (config.sampler_steps, 2 * config.sampler_steps)
    for one, other in zip(alone, among[2:], strict=True):
        np.testing.assert_array_equal(one, other)
