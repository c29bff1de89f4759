"""Laws of the quality control: a check passes at its bound, fails alone, and labels stay inside."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.intensities import Intensities
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR
from nnunet_lgesynth.config import QCConfig
from nnunet_lgesynth.dataset.roles import Roles
from nnunet_lgesynth.judge.qc import Painted, accepted_labels, dice, examine

ROLES = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
CONFIG = QCConfig()
GEOMETRIC = {"pixels", "outside_wall", "outside_crop", "finite"}
REQUEST = np.s_[4:6, 4:14]           # 20 pixels of wall
FEATHER = np.s_[3:7, 3:15]


def painted(healthy: bool = False, judged: bool = True) -> Painted:
    """A slice (24, 24) whose rows 2 to 7 are wall; everything about it passes every check."""
    labels = np.zeros((24, 24), np.int16)
    labels[2:8], labels[8:12] = 2, 1
    request = np.zeros((24, 24), np.uint8)
    request[REQUEST] = SCAR
    weight = np.zeros((24, 24), np.float32)
    weight[FEATHER] = 0.5
    weight[REQUEST] = 1
    source = np.full((24, 24), 2.0, np.float32)        # level 2, scale 10
    sample = source if healthy else source + 10 * 0.6 * (request > 0).astype(np.float32)
    before = labels.copy()
    after = labels.copy()
    if not healthy:
        after[request > 0] = 3
    return Painted(source, sample, labels, request, weight, 0.6, healthy, Intensities(2.0, 10.0),
                   before if judged else None, after if judged else None)


def failed(item: Painted, config: QCConfig = CONFIG) -> set[str]:
    verdict = examine(item, ROLES, config)
    names = {name for name, check in verdict.checks.items() if not check.passed}
    assert verdict.accepted == (not names)
    return names


def marked(array: np.ndarray, where, value, count: int | None = None) -> np.ndarray:
    """A copy with the first `count` pixels of `where` set."""
    result = array.copy()
    at = np.zeros(array.shape, bool)
    at[where] = True
    at = np.argwhere(at)[:count]
    result[tuple(at.T)] = value
    return result


def test_dice_of_empty_masks_is_one():
    empty, full = np.zeros(4, bool), np.ones(4, bool)
    assert dice(empty, empty) == dice(full, full) == 1 and dice(empty, full) == 0


@pytest.mark.parametrize("healthy", [False, True])
def test_a_good_slice_passes_and_its_checks_are_those_of_its_branch(healthy):
    judged = {"new_outside", *(["new_inside"] if healthy else ["dice_request", "dice_source"])}
    own = {"level_change"} if healthy else {"contrast_share"}
    assert not failed(painted(healthy))
    assert set(examine(painted(healthy), ROLES, CONFIG).checks) == GEOMETRIC | own | judged
    assert set(examine(painted(healthy, judged=False), ROLES, CONFIG).checks) == GEOMETRIC | own


def test_a_request_may_not_be_smaller_than_the_bound():
    assert not failed(painted(), replace(CONFIG, min_pixels=20))
    assert failed(painted(), replace(CONFIG, min_pixels=21)) == {"pixels"}


@pytest.mark.parametrize("healthy", [False, True])
def test_a_request_lies_inside_wall_and_crop(healthy):
    item = painted(healthy)
    assert failed(replace(item, labels=marked(item.labels, REQUEST, 1, 1))) == {"outside_wall"}
    assert failed(replace(item, weight=marked(item.weight, REQUEST, 0, 1))) == {"outside_crop"}


def test_a_sample_is_finite_and_its_verdict_stays_json():
    item = painted()
    broken = replace(item, sample=marked(item.sample, np.s_[20:, 20:], np.nan, 1))
    assert failed(broken) == {"finite"}
    nowhere = replace(item, sample=np.full_like(item.sample, np.nan))
    assert failed(nowhere) == {"finite", "contrast_share"}
    record = examine(nowhere, ROLES, CONFIG).as_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["checks"]["contrast_share"]["value"] is None and not record["accepted"]


def test_contrast_is_counted_from_normal_myocardium_in_the_scar_alone():
    item = painted()
    for share, wrong in ((0.41, set()), (0.39, {"contrast_share"})):
        sample = np.where(item.request > 0, 2 + 10 * 0.6 * share, 99).astype(np.float32)
        assert failed(replace(item, sample=sample)) == wrong
    dark = np.where(item.request > 0, 2 + 10 * 0.03, 99).astype(np.float32)
    for contrast in (0.01, 0.0, -0.2):                        # the wall's own level is no scar
        assert failed(replace(item, contrast=contrast, sample=dark)) == {"contrast_share"}
    core = marked(item.request, REQUEST, NO_REFLOW, 9)
    dark = np.where(core == NO_REFLOW, -50, item.sample)      # a core does not dilute the contrast
    assert not failed(replace(item, request=core, sample=dark))


def test_a_core_is_darker_than_the_scar_around_it():
    item = replace(painted(), core_contrast=0.1)
    item = replace(item, request=marked(item.request, REQUEST, NO_REFLOW, 9))
    for core, wrong in ((0.1, set()), (0.39, set()), (0.41, {"core_contrast_share"}),
                        (0.6, {"core_contrast_share"})):         # 0.4 of 0.5 below the scar's 0.6
        sample = np.where(item.request == NO_REFLOW, 2 + 10 * core, item.sample)
        assert failed(replace(item, sample=sample.astype(np.float32))) == wrong
    alike = replace(item, core_contrast=0.7)                # as in some real scars: a little darker
    assert failed(alike) == {"core_contrast_share"}
    assert not failed(replace(alike, sample=np.where(
        item.request == NO_REFLOW, 2 + 10 * 0.55, item.sample).astype(np.float32)))
    whole = np.where(item.request > 0, NO_REFLOW, 0).astype(np.uint8)
    assert "core_contrast_share" not in examine(replace(item, request=whole), ROLES, CONFIG).checks


def test_what_the_judge_sees_in_a_core_counts_for_nothing():
    item = replace(painted(), core_contrast=0.1)
    request = marked(item.request, REQUEST, NO_REFLOW, 9)
    sample = np.where(request == NO_REFLOW, 2 + 10 * 0.1, item.sample).astype(np.float32)
    strict = replace(CONFIG, min_dice=1.0)
    for seen in (1, 2, 3, 4):
        judged = np.where(request == NO_REFLOW, seen, item.judged_sample)
        assert not failed(replace(item, request=request, sample=sample, judged_sample=judged),
                          strict)
    missed = marked(item.judged_sample, request == SCAR, 2, 1)
    assert failed(replace(item, request=request, sample=sample, judged_sample=missed),
                  strict) == {"dice_request"}


def test_a_healthy_repainting_keeps_its_level_either_way():
    item = painted(healthy=True)
    for change, wrong in ((0.24, set()), (0.26, {"level_change"}), (-0.26, {"level_change"})):
        sample = (item.source + 10 * change * (item.weight > 0)).astype(np.float32)
        assert failed(replace(item, sample=sample)) == wrong


def test_the_judge_must_find_the_request():
    item = painted()
    bound = replace(CONFIG, min_dice=2 * 10 / (10 + 20))
    half = marked(item.labels, REQUEST, 3, 10)
    assert not failed(replace(item, judged_sample=half), bound)
    less = marked(item.labels, REQUEST, 3, 9)
    assert failed(replace(item, judged_sample=less), bound) == {"dice_request"}
    core = marked(item.labels, REQUEST, 4, 10)                # no-reflow counts as scar
    assert not failed(replace(item, judged_sample=core), bound)


def test_the_judge_must_not_have_found_it_before():
    item = painted()
    bound = replace(CONFIG, max_source_dice=2 * 2 / (2 + 20))
    assert not failed(replace(item, judged_source=marked(item.labels, REQUEST, 3, 2)), bound)
    assert failed(replace(item, judged_source=marked(item.labels, REQUEST, 3, 3)),
                  bound) == {"dice_source"}


@pytest.mark.parametrize("healthy", [False, True])
def test_no_new_scar_outside_but_old_scar_may_stay(healthy):
    item, far = painted(healthy), np.s_[18:]
    for count, wrong in ((5, set()), (6, {"new_outside"})):
        after = marked(item.judged_sample, far, 3, count)
        assert failed(replace(item, judged_sample=after)) == wrong
    before, after = (marked(m, far, 3) for m in (item.judged_source, item.judged_sample))
    assert not failed(replace(item, judged_source=before, judged_sample=after))


def test_a_large_scar_may_have_more_scar_outside_than_a_small_one():
    item, far = painted(), np.s_[18:]
    for share, count, wrong in ((0.25, 5, set()), (0.4, 8, set()), (0.4, 9, {"new_outside"})):
        after = marked(item.judged_sample, far, 3, count)          # of 20 pixels that were asked
        bounds = replace(CONFIG, max_new_outside_share=share)
        assert failed(replace(item, judged_sample=after), bounds) == wrong
    item = painted(healthy=True)                        # no scar was asked for, however large
    after = marked(item.judged_sample, far, 3, 6)
    assert failed(replace(item, judged_sample=after), bounds) == {"new_outside"}


def test_a_healthy_repainting_brings_no_new_scar_inside():
    item = painted(healthy=True)
    for count, wrong in ((5, set()), (6, {"new_inside"})):
        after = marked(item.judged_sample, FEATHER, 3, count)
        assert failed(replace(item, judged_sample=after)) == wrong


def test_intended_labels_are_the_request_and_nothing_else():
    item = painted()
    item = replace(item, request=marked(item.request, REQUEST, NO_REFLOW, 4))
    labels = accepted_labels(item, ROLES, CONFIG)
    assert (labels[item.request == SCAR] == 3).all()
    assert (labels[item.request == NO_REFLOW] == 4).all()
    assert (labels[item.request == 0] == item.labels[item.request == 0]).all()
    single = accepted_labels(item, replace(ROLES, no_reflow=None), CONFIG)
    assert (single[item.request > 0] == 3).all()


def test_predicted_labels_stay_inside_feather_and_wall():
    item = painted()
    item = replace(item, judged_sample=np.where(np.indices((24, 24)).sum(0) % 2, 3, 4))
    labels = accepted_labels(item, ROLES, replace(CONFIG, label="predicted"))
    inside = (item.weight > 0) & (item.labels == 2)
    assert (labels[inside] == item.judged_sample[inside]).all() and inside.sum() > 20
    assert (labels[~inside] == item.labels[~inside]).all()
    normal = replace(item, judged_sample=item.labels)         # normal wall predicted: nothing to do
    assert (accepted_labels(normal, ROLES, replace(CONFIG, label="predicted"))
            == item.labels).all()


def test_without_a_judge_predicted_means_intended():
    item = painted(judged=False)
    assert (accepted_labels(item, ROLES, replace(CONFIG, label="predicted"))
            == accepted_labels(item, ROLES, CONFIG)).all()


@pytest.mark.parametrize("label", ["intended", "predicted"])
def test_a_healthy_repainting_keeps_its_labels_and_the_source_is_never_changed(label):
    item = painted(healthy=True)
    item = replace(item, judged_sample=marked(item.labels, REQUEST, 3))
    assert (accepted_labels(item, ROLES, replace(CONFIG, label=label)) == item.labels).all()
    scar = painted()
    before = scar.labels.copy()
    accepted_labels(scar, ROLES, replace(CONFIG, label=label))
    assert (scar.labels == before).all()


def stack(items: list[Painted]) -> Painted:
    """Slices as one lesion's stack (n, Y, X)."""
    names = ("source", "sample", "labels", "request", "weight", "judged_source", "judged_sample")
    return replace(items[0], **{n: np.stack([getattr(i, n) for i in items]) for n in names})


@pytest.mark.parametrize("healthy", [False, True])
def test_a_stack_of_one_slice_is_judged_as_that_slice(healthy):
    item = painted(healthy)
    item = replace(item, judged_sample=marked(item.judged_sample, np.s_[18:], 3, 6))
    assert examine(stack([item]), ROLES, CONFIG) == examine(item, ROLES, CONFIG)
    for label in ("intended", "predicted"):
        config = replace(CONFIG, label=label)
        assert (accepted_labels(stack([item] * 2), ROLES, config)
                == accepted_labels(item, ROLES, config)).all()


def test_a_stack_is_judged_as_a_whole():
    item = painted()
    missed = replace(item, judged_sample=item.labels)
    assert failed(missed) == {"dice_request"}
    assert not failed(stack([item, item, missed]))                  # Dice 0.8
    assert failed(stack([item, missed, missed])) == {"dice_request"}
    dark = replace(item, sample=item.source)
    assert failed(dark) == failed(stack([item, dark, dark])) == {"contrast_share"}
    assert not failed(stack([item, item, dark]))                    # a median
    outside = replace(item, labels=marked(item.labels, REQUEST, 1, 1))
    assert failed(stack([item, outside])) == {"outside_wall"}       # never, in any slice


def test_the_unwanted_scar_allowed_grows_with_the_slices():
    clean, far = painted(), np.s_[18:]
    for count, wrong in ((15, set()), (16, {"new_outside"})):
        after = marked(clean.judged_sample, far, 3, count)
        assert failed(stack([clean, replace(clean, judged_sample=after), clean])) == wrong
    clean = painted(healthy=True)
    for count, wrong in ((10, set()), (11, {"new_inside"})):
        after = marked(clean.judged_sample, FEATHER, 3, count)
        assert failed(stack([replace(clean, judged_sample=after), clean])) == wrong
