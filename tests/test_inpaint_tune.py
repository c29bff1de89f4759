"""Laws of the reward: its gradient reaches the ControlNet and nothing else."""

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
from nnunet_lgesynth.generators.inpaint.tune import LEAK_PIXELS, contrast_loss, label_loss, pasted
from nnunet_lgesynth.judge.segmenter import Segmenter

LABELS, SCARS = (0, 1, 2, 3, 4), (3, 4)


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
    objective = objective_of("reward", networks, slices.config, segmenter, SCARS)
    return objective, networks, Draws(slices, "reward", networks.snr())[0]


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("part", ["real", "drawn", "all"])
def test_reward_gradient_reaches_the_controlnet_and_nothing_else(setting, segmenter, part):
    objective, networks, (diffusion, real, drawn) = setting
    before = {k: v.clone() for k, v in segmenter.network.state_dict().items()}
    if part == "real":
        loss = objective.reward(networks.decode(objective.one_step(real)), real)
    elif part == "drawn":
        loss = objective.reward(objective.sampled(drawn), drawn)
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


def log_probabilities(target, sure=20.0):
    """Of a segmenter that is `sure` of these labels (B, H, W)."""
    truth = torch.nn.functional.one_hot(target, 5).movedim(-1, 1).float()
    return (truth * sure).log_softmax(1)


def loss_of(canvas, found, before=None, sure=20.0, core="own"):
    before = torch.where(canvas.target >= 3, 2, canvas.target) if before is None else before
    return label_loss(log_probabilities(found, sure), log_probabilities(before), canvas, LABELS,
                      SCARS, core)


def test_label_loss_falls_with_the_right_label_and_counts_classes_alike(setting):
    canvas = setting[2][1].canvas
    losses = [loss_of(canvas, canvas.target, sure=s) for s in (1, 3, 5, 9, 20)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.01
    missed = torch.where(canvas.target >= 3, 2, canvas.target)
    expected = []
    for target, here in zip(canvas.target, canvas.weight[:, 0] > 0):
        classes = {min(c, 3) for c in target[here].unique().tolist()}     # scar kinds as one
        expected.append((20 - np.log(2)) / len(classes) + 1 + (4 in target[here]))
    assert np.isclose(float(loss_of(canvas, missed)), np.mean(expected), atol=0.05)


def test_no_reflow_taken_for_scar_costs_its_dice_alone(setting):
    canvas = setting[2][1].canvas
    taken = torch.where(canvas.target == 4, 3, canvas.target)
    asked = [bool((t[w[0] > 0] == 4).any()) for t, w in zip(canvas.target, canvas.weight)]
    assert any(asked)
    for core in ("own", "scar"):
        assert torch.isclose(loss_of(canvas, taken, core=core), torch.tensor(asked).float().mean(),
                             atol=0.01)


def test_a_core_need_not_be_found_as_scar(setting):
    """A segmenter that never learnt no-reflow takes it for wall; only "scar" holds that against a
    draft beyond its own Dice."""
    canvas = setting[2][1].canvas
    taken, wall = (torch.where(canvas.target == 4, v, canvas.target) for v in (3, 2))
    assert torch.isclose(loss_of(canvas, wall), loss_of(canvas, taken), atol=1e-4)
    assert loss_of(canvas, wall, core="scar") > loss_of(canvas, taken, core="scar") + 0.1


def test_label_loss_counts_new_scar_outside_the_feather_and_nothing_else_there(setting):
    canvas = setting[2][1].canvas
    outside = canvas.weight[:, 0] == 0
    spilled, other = canvas.target.clone(), canvas.target.clone()
    for k in range(len(outside)):
        y, x = (outside[k] & (canvas.target[k] < 3)).nonzero()[:10].T
        spilled[k, y, x], other[k, y, x] = 3, 1
    base = loss_of(canvas, canvas.target)
    assert torch.isclose(loss_of(canvas, spilled) - base, torch.tensor(1 + 10 / LEAK_PIXELS).log(),
                         atol=1e-3)
    assert torch.isclose(loss_of(canvas, other), base, atol=1e-5)
    assert torch.isclose(loss_of(canvas, spilled, before=spilled), base, atol=1e-5)   # not new


def test_the_pixels_around_a_scar_are_nobodys(setting):
    canvas = setting[2][1].canvas
    wanted = canvas.target >= 3
    near, far = (torch.nn.functional.max_pool2d(wanted[:, None].float(), n, 1, n // 2)[:, 0] > 0
                 for n in (3, 5))
    base = loss_of(canvas, canvas.target)
    for ring, free in ((near & ~wanted, True), (far & ~near, False)):
        assert (ring & (canvas.weight[:, 0] > 0)).any()
        inside = ring & (canvas.weight[:, 0] > 0)
        wider = torch.where(inside, 3, canvas.target)
        assert torch.isclose(loss_of(canvas, wider), base, atol=1e-5) == free


def test_contrast_loss_is_the_error_of_each_parts_middle_level(setting):
    control = setting[2][1].control
    asked = control[:, 3:].clone()
    assert contrast_loss(asked, control) < 1e-6
    rough = asked + torch.randn_like(asked)
    assert 0 < contrast_loss(rough, control) < 0.5
    assert torch.isclose(contrast_loss(asked + 0.3, control), torch.tensor(0.3))
    places = [(sample > 0).nonzero() for sample in asked[:, 0]]
    assert max(map(len, places)) >= 8
    for sample, where in zip(asked[:, 0], places):
        if len(where) >= 8:                # a blurred border and a bright spot cost nothing
            sample[tuple(where[0])], sample[tuple(where[-1])] = 0, 5
    assert contrast_loss(asked, control) < 1e-6
    healthy = torch.zeros_like(control)
    assert contrast_loss(rough, healthy) == 0


def test_real_slices_are_noised_little(slices, setting):
    snr = setting[1].snr()
    for k in range(2):
        steps = Draws(slices, "reward", snr)[k][1].timesteps
        assert (snr[steps] >= slices.config.reward_min_snr).all()
