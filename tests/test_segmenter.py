"""Laws of the frozen nnU-Net segmenter: what it shares with nnU-Net, and what it refuses."""

import copy
import itertools
import json
import warnings

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_nnunet import REGIONS_ORDER, tiny_dataset_json, tiny_plans, write_tiny_model

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.judge.segmenter import Segmenter, default_reward_folder

KINDS = [{}, {"regions": True}, {"architecture": "resenc"}, {"channels": 2, "stages": 3}]


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load(folder, **options):
    return Segmenter.load_fold(write_tiny_model(folder, **options), "cpu")


def nnunet_logits(segmenter, slices):
    """nnU-Net's own predictor on (Z, C, Y, X): returns (Z, heads, Y, X)."""
    predictor = nnUNetPredictor(tile_step_size=1, use_gaussian=False, use_mirroring=False,
                                device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(segmenter.source.parent.parent), (0,))
    return predictor.predict_logits_from_preprocessed_data(slices.transpose(0, 1)).transpose(0, 1)


def label_manager(segmenter):
    return PlansManager(segmenter.plans).get_label_manager(segmenter.dataset_json)


@pytest.mark.parametrize("options", KINDS)
def test_gradient_reaches_the_image_and_no_weight(tmp_path, options):
    segmenter = load(tmp_path, **options)
    x = images(2, options.get("channels", 1), 40, 24).requires_grad_()
    segmenter.log_probabilities(x)[:, 3].mean().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    for parameter in segmenter.network.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert not any(module.training for module in segmenter.network.modules())


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (21, 30), (32, 17)])
def test_logits_are_those_of_nnunets_predictor(tmp_path, options, size):
    segmenter = load(tmp_path, **options)
    x = images(3, options.get("channels", 1), *size)
    theirs = nnunet_logits(segmenter, x).float()       # summed in half precision there
    torch.testing.assert_close(segmenter.logits(x), theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("options", KINDS)
def test_prediction_is_nnunets_own_conversion(tmp_path, options):
    segmenter = load(tmp_path, **options)
    x = images(4, options.get("channels", 1), 40, 24)
    predicted = segmenter.predict(x)
    own = [label_manager(segmenter).convert_logits_to_segmentation(each)
           for each in segmenter.logits(x).cpu()]
    assert predicted.dtype == torch.int16 and not predicted.requires_grad
    assert torch.equal(predicted.long(), torch.stack(own).long())
    assert len(predicted.unique()) > 2                 # the comparison saw several labels
    assert segmenter.labels == (0, 1, 2, 3, 4)


def test_a_checkpoint_of_nnunets_own_trainer_loads(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    plans, dataset_json = tiny_plans(), tiny_dataset_json()
    cases = tmp_path / "preprocessed" / plans["dataset_name"] / "nnUNetPlans_2d"
    cases.mkdir(parents=True)
    (cases / "a.b2nd").touch()
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "2d", 3, dataset_json,
                            torch.device("cpu"))
    trainer.initialize()
    sum(out.sum() for out in trainer.network(images(2, 1, 32, 32))).backward()
    trainer.optimizer.step()
    fold = tmp_path / "results" / plans["dataset_name"] / "nnUNetTrainer__nnUNetPlans__2d/fold_3"
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    (fold.parent / "dataset.json").write_text(json.dumps(dataset_json))
    segmenter = Segmenter.load_fold(fold, "cpu")
    x = images(1, 1, 32, 32)
    trainer.set_deep_supervision_enabled(False)
    assert torch.allclose(segmenter.logits(x), trainer.network.eval()(x), atol=1e-6)
    assert segmenter.fold == 3


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.",
                                    "_orig_mod.module.module.", "encoder_"])
def test_wrappers_do_not_change_the_segmenter(tmp_path, prefix):
    plain = load(tmp_path / "plain")
    if prefix == "encoder_":                           # no wrapper: must be refused, not stripped
        with pytest.raises(UserError, match=r"missing \(first: encoder"):
            load(tmp_path / "wrapped", prefix=prefix)
        return
    wrapped = load(tmp_path / "wrapped", prefix=prefix)
    assert wrapped.hash == plain.hash and len(plain.hash) == 12
    x = images(1, 1, 32, 32)
    assert torch.equal(wrapped.logits(x), plain.logits(x))


def test_a_compiled_submodule_loads(tmp_path):
    plain = load(tmp_path / "plain")
    fold = write_tiny_model(tmp_path / "compiled")
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    state["network_weights"] = {k.replace("decoder.", "decoder._orig_mod.", 1): v
                                for k, v in state["network_weights"].items()}
    torch.save(state, fold / "checkpoint_final.pth")
    assert Segmenter.load_fold(fold, "cpu").hash == plain.hash


def test_hash_names_the_weights_alone(tmp_path):
    fold = write_tiny_model(tmp_path)
    before = Segmenter.load_fold(fold, "cpu").hash
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    torch.save({**state, "current_epoch": 7}, fold / "checkpoint_final.pth")
    assert Segmenter.load_fold(fold, "cpu").hash == before
    assert load(tmp_path, seed=1).hash != before


def test_loading_leaves_the_random_state_alone(tmp_path):
    fold = write_tiny_model(tmp_path)
    state = torch.get_rng_state()
    Segmenter.load_fold(fold, "cpu")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("size", [(48, 50), (48, 20), (20, 47), (33, 31)])
def test_the_network_sees_one_patch_and_the_rest_is_background(tmp_path, regions, size):
    segmenter = load(tmp_path, regions=regions)
    x = images(1, 1, *size)
    rows, cols = (slice((s - 32) // 2, (s + 32) // 2) if s > 32 else slice(0, s)
                  for s in size)
    logits = segmenter.logits(x)
    assert logits.shape[-2:] == size
    assert torch.equal(logits[..., rows, cols], segmenter.logits(x[..., rows, cols]))
    outside = torch.ones(size, dtype=torch.bool)
    outside[rows, cols] = False
    assert (segmenter.probabilities(x)[0, 0][outside] > 1 - 1e-6).all()
    assert (segmenter.predict(x)[0][outside] == 0).all()
    certain = logits[0].amax(0) < -20 if regions else logits[0, 0] > 20
    assert certain[outside].all() and not certain[~outside].any()
    changed = torch.where(outside, 9.0, x)             # what lies outside is not looked at
    assert torch.equal(segmenter.logits(changed), logits)


def test_each_sample_has_its_own_centre(tmp_path):
    segmenter = load(tmp_path)
    x = images(3, 1, 60, 70)
    centres = [(20, 40), (0, 69), (59, -5)]            # the last two clamp to a corner
    corners = [(4, 24), (0, 38), (28, 0)]
    logits = segmenter.logits(x, centres)
    for k, (top, left) in enumerate(corners):
        patch = x[k:k + 1, :, top:top + 32, left:left + 32]
        inside = logits[k:k + 1, :, top:top + 32, left:left + 32]
        torch.testing.assert_close(inside, segmenter.logits(patch))
        torch.testing.assert_close(logits[k:k + 1], segmenter.logits(x[k:k + 1], centres[k]))
    shared = segmenter.logits(x, torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(shared[0], logits[0])


@pytest.mark.parametrize("options", [{}, {"regions": True}])
def test_probabilities_are_a_float32_distribution_under_autocast(tmp_path, options):
    segmenter = load(tmp_path, **options)
    x = images(2, 1, 40, 24).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert segmenter.logits(x).dtype == torch.bfloat16
        log_probabilities = segmenter.log_probabilities(x)
    assert log_probabilities.dtype == torch.float32 and log_probabilities.shape == (2, 5, 40, 24)
    total = log_probabilities.exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total))
    log_probabilities[:, 4].sum().backward()
    assert torch.isfinite(log_probabilities).all() and torch.isfinite(x.grad).all()


def test_region_probabilities_enumerate_the_switches(tmp_path):
    segmenter = load(tmp_path, regions=True)
    x = images(1, 1, 32, 32)
    on = segmenter.logits(x).sigmoid()
    expected = torch.zeros(1, 5, 32, 32)
    for switches in itertools.product([0, 1], repeat=4):
        value = max((v for v, s in zip(REGIONS_ORDER, switches) if s), default=0)
        chance = [on[:, i] if s else 1 - on[:, i] for i, s in enumerate(switches)]
        expected[:, value] += torch.stack(chance).prod(dim=0)
    torch.testing.assert_close(segmenter.probabilities(x), expected)


@pytest.mark.parametrize("order", [[1, 2, 3, 4], [2, 1, 4, 3], [1, 2, 3, 3]])
def test_decided_regions_give_nnunets_labels(tmp_path, order):
    fold = write_tiny_model(tmp_path, regions=True)
    dataset_json = {**tiny_dataset_json(regions=True), "regions_class_order": order}
    (fold.parent / "dataset.json").write_text(json.dumps(dataset_json))
    segmenter = Segmenter.load_fold(fold, "cpu")
    scale = torch.nn.Parameter(torch.tensor(1e3), requires_grad=False)
    sharp = torch.nn.Sequential(segmenter.network, Scaled(scale))
    object.__setattr__(segmenter, "network", sharp)    # every sigmoid is 0 or 1
    x = images(2, 1, 32, 32)
    log_probabilities = segmenter.log_probabilities(x)
    assert torch.isfinite(log_probabilities).all()
    assert (log_probabilities.argmax(1) == segmenter.predict(x)).float().mean() > 0.999


class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

class Listing(nn.Sequential):
    def forward(self, x):
        out = super().forward(x)
        return [out, out[..., ::2, ::2]]

class nnUNetTrainerListing(nnUNetTrainer):
    @staticmethod
    def build_network_architecture({arguments}, n_in, n_out, enable_deep_supervision=True):
        return Listing(nn.Conv2d(n_in, n_out, 3, padding=1))
"""


@pytest.mark.parametrize("arguments", ["plans_manager, configuration_manager", "name, kwargs, req"])
def test_the_trainers_own_network_is_built_and_its_first_output_taken(tmp_path, monkeypatch,
                                                                      arguments):
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "nnUNetTrainerListing.py").write_text(TRAINER.format(arguments=arguments))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers))
    fold = write_tiny_model(tmp_path, trainer="nnUNetTrainerListing")
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    conv = torch.nn.Conv2d(1, 5, 3, padding=1)
    state["network_weights"] = {f"0.{k}": v for k, v in conv.state_dict().items()}
    torch.save(state, fold / "checkpoint_final.pth")
    x = images(2, 1, 32, 32)
    assert torch.allclose(Segmenter.load_fold(fold, "cpu").logits(x), conv(x), atol=1e-6)


def test_an_unknown_trainer_warns_and_ours_does_not(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    with pytest.warns(UserWarning, match="nnUNetTrainerUnheardOf was not found"):
        load(tmp_path, trainer="nnUNetTrainerUnheardOf")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(tmp_path, trainer="nnUNetTrainerLGEReal")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "fold_2/checkpoint_final.pth"])
def test_a_missing_file_is_named_with_its_remedy(tmp_path, name):
    fold = write_tiny_model(tmp_path, fold=2, plans_name="nnUNetResEncUNetMPlans")
    (fold / "checkpoint_best.pth").touch()
    (fold.parent / name).unlink()
    with pytest.raises(UserError, match="nnUNetv2_train Dataset116_EMIDECROI 2d 2 "
                                        "-p nnUNetResEncUNetMPlans") as error:
        Segmenter.load_fold(fold, "cpu")
    assert str(fold.parent / name) in str(error.value)
    assert ("checkpoint_best.pth" in str(error.value)) == name.endswith(".pth")


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    fold = write_tiny_model(tmp_path)
    path = fold / "checkpoint_final.pth"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint", b"junk"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint_final\.pth is"):
            Segmenter.load_fold(fold, "cpu")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=r"lacks \['init_args', 'network_weights', 'trainer_name'"):
        Segmenter.load_fold(fold, "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_judge_is_refused(tmp_path, value):
    """It would find no scar anywhere, and so pass every healthy repainting."""
    path = write_tiny_model(tmp_path) / "checkpoint_final.pth"
    state = torch.load(path, weights_only=False)
    name = list(state["network_weights"])[-1]
    state["network_weights"][name][0] = value
    torch.save(state, path)
    with pytest.raises(UserError, match=rf"has diverged: 1 of its weights.*{name}.*train it with"):
        Segmenter.load_fold(path.parent, "cpu")


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_checkpoint_cannot_run_code(tmp_path):
    fold = write_tiny_model(tmp_path)
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    torch.save({**state, "logging": Trap(tmp_path / "sprung")}, fold / "checkpoint_final.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        Segmenter.load_fold(fold, "cpu")
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    fold = write_tiny_model(tmp_path)
    wider = tiny_plans()
    wider["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 16]
    for plans, reason in ((wider, "other shape"), (tiny_plans(stages=3), "missing"),
                          (tiny_plans(architecture="resenc"), "unknown")):
        (fold.parent / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(UserError, match=f"does not fit the network.*{reason}.*nnUNetv2_train"):
            Segmenter.load_fold(fold, "cpu")


def test_3d_and_cascades_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"3d_fullres.*nnUNetv2_train Dataset116_EMIDECROI 2d F"):
        load(tmp_path, patch=(8, 16, 16), spacing=(10, 1.4, 1.4), configuration="3d_fullres")
    plans = tiny_plans(configuration="3d_cascade_fullres")
    plans["configurations"]["3d_cascade_fullres"]["previous_stage"] = "3d_lowres"
    with pytest.raises(UserError, match="second stage of a cascade"):
        load(tmp_path, plans=plans)


def test_a_renamed_fold_folder_is_refused(tmp_path):
    fold = write_tiny_model(tmp_path, fold=1)
    renamed = fold.rename(fold.with_name("fold_0"))
    with pytest.raises(UserError, match="trained on fold 1"):
        Segmenter.load_fold(renamed, "cpu")


def test_bad_images_and_centres_are_refused(tmp_path):
    segmenter = load(tmp_path)
    with pytest.raises(UserError, match=r"shape \(B, 1, Y, X\), not \(2, 3, 32, 32\)"):
        segmenter.logits(images(2, 3, 32, 32))
    with pytest.raises(UserError, match="pixel position"):
        segmenter.logits(images(1, 1, 40, 40), (float("nan"), 3))


def test_a_matching_training_passes_with_another_patch_size(tmp_path):
    segmenter = load(tmp_path)
    segmenter.check_matches(tiny_plans(patch=(64, 48), spacing=(1.3701, 1.37)), "2d",
                            tiny_dataset_json(), 0)
    segmenter.check_matches(tiny_plans(), "2d", tiny_dataset_json(), "all")
    segmenter.check_matches(tiny_plans(), "2d", tiny_dataset_json(), None)


def in_3d(**options):
    return tiny_plans(configuration="3d_fullres", patch=(4, 32, 32), **options), "3d_fullres"


def test_a_2d_judge_scores_the_slices_of_a_3d_training_with_like_pixels(tmp_path):
    segmenter = load(tmp_path)
    segmenter.check_matches(*in_3d(spacing=(8, 1.37, 1.37)), tiny_dataset_json(), 0)
    with pytest.raises(UserError) as error:
        segmenter.check_matches(*in_3d(spacing=(10, 1.37, 1.5)), tiny_dataset_json(), 0)
    assert "it has spacing [1.37, 1.37] (here [1.37, 1.5]). Train" in str(error.value)
    assert str(error.value).endswith(": nnUNetv2_train Dataset116_EMIDECROI 2d 0")
    with pytest.raises(UserError, match="fold 0, which has seen validation cases of fold 1"):
        segmenter.check_matches(*in_3d(spacing=(10, 1.37, 1.37)), tiny_dataset_json(), 1)
    coarse, name = in_3d(spacing=(10, 2.0, 2.0))          # 3d_lowres: a 2d judge never has these
    coarse["configurations"] |= tiny_plans()["configurations"]
    with pytest.raises(UserError, match=r"None of 2d has these pixels; use -c 3d_fullres, or"):
        segmenter.check_matches(coarse, name, tiny_dataset_json(), 0)


def differing(what):
    """(plans, dataset_json) that differ from the tiny model's in one thing, by its name."""
    plans, dataset_json = tiny_plans(), copy.deepcopy(tiny_dataset_json())
    settings = plans["configurations"]["2d"]
    if what == "dataset":
        plans["dataset_name"] = "Dataset115_EMIDEC"
    elif what == "spacing":
        settings["spacing"] = [1.5, 1.37]
    elif what == "axes order":
        plans["transpose_forward"] = [0, 2, 1]
    elif what == "normalization":
        settings["normalization_schemes"] = ["NoNormalization"]
    elif what == "normalization inside a mask":
        settings["use_mask_for_norm"] = [True]
    elif what == "channels":
        dataset_json["channel_names"] = {"0": "cine"}
    elif what == "labels":
        dataset_json["labels"]["infarct"], dataset_json["labels"]["no_reflow"] = 4, 3
    return plans, dataset_json


DIFFERENCES = ["dataset", "spacing", "axes order", "normalization", "normalization inside a mask",
               "channels", "labels"]


@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_difference_is_named_with_both_values_and_alone(tmp_path, what):
    with pytest.raises(UserError, match=r"it has .*\(here .*nnUNetv2_train") as error:
        load(tmp_path).check_matches(differing(what)[0], "2d", differing(what)[1], 0)
    found = str(error.value).split("it has ")[1].split(". Train")[0]
    assert found.startswith(f"{what} ") and "; " not in found


def test_all_differences_come_in_one_error(tmp_path):
    plans = tiny_plans(dataset="Dataset115_EMIDEC", spacing=(1.4, 1.4))
    with pytest.raises(UserError) as error:
        load(tmp_path).check_matches(plans, "2d", tiny_dataset_json(regions=True), 2)
    for expected in ("Dataset116_EMIDECROI (here Dataset115_EMIDEC)", "[1.37, 1.37]",
                     "[1.4, 1.4]", "labels", "regions' order", "fold 2",
                     "nnUNetv2_train Dataset115_EMIDEC 2d 2"):
        assert expected in str(error.value)


def test_regions_in_another_order_are_a_difference(tmp_path):
    other = {**tiny_dataset_json(regions=True), "regions_class_order": [1, 2, 4, 3]}
    segmenter = load(tmp_path, regions=True)
    segmenter.check_matches(tiny_plans(), "2d", tiny_dataset_json(regions=True), 0)
    with pytest.raises(UserError, match="regions' order"):
        segmenter.check_matches(tiny_plans(), "2d", other, 0)


@pytest.mark.parametrize("trained", [1, "all"])
def test_a_checkpoint_that_saw_the_validation_cases_is_refused(tmp_path, trained):
    segmenter = load(tmp_path, fold=trained)
    segmenter.check_matches(tiny_plans(), "2d", tiny_dataset_json(), trained)
    with pytest.raises(UserError, match=f"fold {trained}, which has seen validation cases of fold "
                                        "0"):
        segmenter.check_matches(tiny_plans(), "2d", tiny_dataset_json(), 0)


def test_an_absent_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match="no configuration '3d_fullres'"):
        load(tmp_path).check_matches(tiny_plans(), "3d_fullres", tiny_dataset_json(), 0)


def test_the_default_reward_is_stock_then_real_only_then_an_error(tmp_path):
    wanted = ("Dataset116_EMIDECROI", "nnUNetPlans", "2d", 0)
    with pytest.raises(UserError) as error:
        default_reward_folder(tmp_path, *wanted)
    assert "nnUNetv2_train Dataset116_EMIDECROI 2d 0 " in str(error.value)
    assert ("lgesynth train Dataset116_EMIDECROI 2d 0 -tr nnUNetTrainerLGEReal"
            in str(error.value))
    real = write_tiny_model(tmp_path, trainer="nnUNetTrainerLGEReal")
    assert default_reward_folder(tmp_path, *wanted) == real
    unfinished = write_tiny_model(tmp_path, checkpoint="checkpoint_latest.pth")
    assert default_reward_folder(tmp_path, *wanted) == real
    stock = write_tiny_model(tmp_path)
    assert default_reward_folder(tmp_path, *wanted) == stock == unfinished
    assert Segmenter.load_fold(stock, "cpu").fold == 0


def test_a_checkpoint_of_the_same_fold_under_another_split_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path)
    assert load(tmp_path).validated_on == frozenset()        # no validation yet: nothing is known
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": [
        {"reference_file": f"/truth/{case}.nii.gz"} for case in ("a", "b")]}))
    segmenter = load(tmp_path)
    arguments = tiny_plans(), "2d", tiny_dataset_json()
    segmenter.check_matches(*arguments, 0, ("a", "b"))
    segmenter.check_matches(*arguments, 0, ("a",))
    segmenter.check_matches(*arguments, "all", ("c",))
    with pytest.raises(UserError, match=r"another split: 1 of this fold's 2 \(first: c\)"):
        segmenter.check_matches(*arguments, 0, ("a", "c"))
