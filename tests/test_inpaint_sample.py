"""Laws of sampling: one seed a sample, the known stays known, nothing changes outside the mask."""

import numpy as np
import pytest
import torch
from tiny_fold import write_tiny_fold
from tiny_inpaint import tiny_config, tiny_slices

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.generators.condition import paste_array
from nnunet_lgesynth.generators.inpaint.batch import collate, latent_shape
from nnunet_lgesynth.generators.inpaint.networks import build
from nnunet_lgesynth.generators.inpaint.sample import Inpainter, denoise


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return tiny_slices(write_tiny_fold(tmp_path_factory.mktemp("fold")), tiny_config())


@pytest.fixture(scope="module")
def inpainter(slices):
    torch.manual_seed(0)
    networks = build(slices.config)
    for parameter in networks.controlnet.parameters():   # zero where untrained: make it matter
        parameter.data += 0.02 * torch.randn_like(parameter)
    networks.train_only()
    return Inpainter(networks, slices.config, slices.prior, "0" * 12)


def test_a_sample_is_the_same_alone_and_in_any_batch(inpainter, slices):
    conditions = [item.condition for item in slices.asked[:18]]
    drafts = inpainter.drafts(conditions, range(18))              # in batches of 16 and 2
    assert len(drafts) == 18 and drafts[0].shape == (32, 32) and drafts[0].dtype == np.float32
    for size in (1, 3, 16):
        for k in (0, 7, 17):
            first = min(k, 18 - size)
            batch = range(first, first + size)
            again = inpainter.drafts([conditions[i] for i in batch], batch)[k - first]
            np.testing.assert_allclose(again, drafts[k], atol=1e-4)
    other = inpainter.drafts(conditions[:1], [99])[0]
    assert np.abs(other - drafts[0]).max() > 1e-2


@pytest.mark.parametrize("size", [1, 3, 16])
def test_in_batches_of_one_size_a_sample_is_the_same_bit_by_bit(inpainter, slices, size):
    conditions = [item.condition for item in slices.asked[:size + 3]]
    once = inpainter.drafts(conditions[:size], range(size))
    companions = [*range(size + 2, 2, -1)][:size - 1]
    order = [*companions, 0]                                      # last instead of first
    again = inpainter.drafts([conditions[i] for i in order], order)
    assert np.array_equal(again[-1], once[0])
    assert np.array_equal(inpainter.drafts(conditions[:size], range(size)), once)


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
    noise = torch.randn(1, *latent_shape(slices.config))
    batch = collate([item.condition], noise)
    with torch.no_grad():
        steps = list(denoise(networks, batch, slices.config))
        known = networks.encode(batch.image)
    outside = torch.nn.functional.max_pool2d(batch.region, networks.factor).expand_as(known) == 0
    assert len(steps) == slices.config.sampler_steps
    assert torch.equal(steps[-1][outside], known[outside])
    assert (steps[-1] - known)[~outside].abs().max() > 1e-2


@pytest.mark.parametrize("last", [0, 1, 2])
def test_gradient_comes_from_the_last_steps_only(inpainter, slices, last):
    networks = inpainter.networks
    networks.train_only(networks.controlnet)
    batch = collate([slices.asked[0].condition], torch.randn(1, *latent_shape(slices.config)))
    graphs = [latents.requires_grad for latents in denoise(networks, batch, slices.config, last)]
    networks.train_only()
    assert graphs == [False] * (3 - last) + [True] * last


def test_an_unfitted_inpainter_names_the_command(tmp_path):
    folder = tmp_path / "Dataset116_X" / "LGESynth_roi-cpu__nnUNetPlans__2d" / "fold_3"
    with pytest.raises(UserError, match="lgesynth fit -d 116 -c 2d -f 3 --preset roi-cpu"):
        Inpainter.load(folder, "cpu")
