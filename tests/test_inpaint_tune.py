"""Laws of the reward: its gradient reaches the ControlNet and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_fold import write_tiny_fold
from tiny_inpaint import tiny_config, tiny_slices
from tiny_nnunet import write_tiny_model

from nnunet_lgesynth.generators.condition import paste_array
from nnunet_lgesynth.generators.inpaint.batch import Draws
from nnunet_lgesynth.generators.inpaint.networks import build, build_controlnet
from nnunet_lgesynth.generators.inpaint.train import objective_of
from nnunet_lgesynth.generators.inpaint.tune import label_loss, pasted
from nnunet_lgesynth.judge.segmenter import Segmenter


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return tiny_slices(write_tiny_fold(tmp_path_factory.mktemp("fold")), tiny_config())


@pytest.fixture
def segmenter(tmp_path):
    return Segmenter.load_fold(write_tiny_model(tmp_path), "cpu")


@pytest.fixture
def setting(slices, segmenter):
    torch.manual_seed(0)
    networks = build(slices.config)
    networks.controlnet = build_controlnet(networks.unet, networks.factor)
    objective = objective_of("reward", networks, slices.config, segmenter)
    return objective, networks, Draws(slices, "reward", networks.snr())[0]


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("part", ["real", "drawn", "all"])
def test_reward_gradient_reaches_the_controlnet_and_nothing_else(setting, segmenter, part):
    objective, networks, (diffusion, real, drawn) = setting
    before = {k: v.clone() for k, v in segmenter.network.state_dict().items()}
    if part == "real":
        loss = objective.reward(objective.one_step(real), real.canvas)
    elif part == "drawn":
        loss = objective.reward(objective.sampled(drawn), drawn.canvas)
    else:
        loss = objective(diffusion, real, drawn)
    loss.backward()
    found = gradients(networks.controlnet)
    assert found and all(torch.isfinite(g).all() for g in found)
    assert sum(g.abs().sum() for g in found) > 0
    for frozen in (segmenter.network, networks.unet, networks.vae, networks.text):
        assert not gradients(frozen)
        assert not any(p.requires_grad for p in frozen.parameters())
    weights = networks.controlnet.state_dict()
    start = {k: v.clone() for k, v in weights.items()}
    torch.optim.SGD(objective.parameters(), lr=0.1).step()
    assert any(not torch.equal(v, start[k]) for k, v in weights.items())
    assert all(torch.equal(v, before[k]) for k, v in segmenter.network.state_dict().items())


def test_the_segmenter_sees_what_paste_writes(slices, setting):
    batch = setting[2][2]
    drafts = torch.randn(len(batch.image), 1, 32, 32)
    images = pasted(drafts, batch.canvas)
    unchanged = batch.canvas.weight == 0
    assert torch.equal(images[unchanged], batch.canvas.image[unchanged])
    for k, caption in enumerate(batch.captions):
        item = next(i for i in slices.asked
                    if np.array_equal(i.condition.source, batch.image[k, 0].numpy())
                    and np.array_equal(i.condition.region, batch.region[k, 0].numpy() > 0)
                    and caption in (i.condition.caption, "no enhancement"))
        image = item.subject.lge[item.z]
        full = paste_array(image, drafts[k, 0].numpy(), item.condition)
        top, left = (round(a - b) for a, b in
                     zip(item.condition.crop.centre, batch.canvas.crops[k].centre))
        np.testing.assert_allclose(images[k, 0], full[top:top + 32, left:left + 32], atol=1e-5)


def test_targets_are_the_labels_as_asked(slices, setting):
    _, real, drawn = setting[2]
    assert {3, 4} & set(real.canvas.target.unique().tolist())
    for batch in (real, drawn):
        for target, request, weight in zip(batch.canvas.target, batch.control[:, 3],
                                           batch.canvas.weight[:, 0]):
            assert bool((target >= 3).any()) == bool(request.any())
            assert (weight[target >= 3] == 1).all()
    healthy = [c == "no enhancement" for c in drawn.captions]
    assert all((t < 3).all() for t, h in zip(drawn.canvas.target, healthy) if h)


def test_label_loss_falls_with_the_right_label_and_counts_classes_alike(setting):
    canvas = setting[2][1].canvas
    labels = (0, 1, 2, 3, 4)
    truth = torch.nn.functional.one_hot(canvas.target, 5).movedim(-1, 1).float()
    right, flat = (truth * 9).log_softmax(1), torch.zeros_like(truth).log_softmax(1)
    assert label_loss(right, canvas, labels) < 0.01
    assert torch.isclose(label_loss(flat, canvas, labels), torch.tensor(5.0).log())
    wrong = torch.where(canvas.target[:, None] == 3, -right * 0 - 8, right)
    classes = canvas.target[canvas.weight[:, 0] > 0].unique()
    assert torch.isclose(label_loss(wrong, canvas, labels), torch.tensor(8 / len(classes)),
                         atol=0.05)
    outside = dataclasses.replace(canvas, target=torch.where(
        canvas.weight[:, 0] > 0, canvas.target, 1))
    assert torch.equal(label_loss(wrong, outside, labels), label_loss(wrong, canvas, labels))


def test_real_slices_are_noised_little(slices, setting):
    snr = setting[1].snr()
    for k in range(2):
        steps = Draws(slices, "reward", snr)[k][1].timesteps
        assert (snr[steps] >= slices.config.reward_min_snr).all()
