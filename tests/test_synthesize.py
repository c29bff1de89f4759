"""Laws of synthesis: nothing changes outside the feather, and a sample follows from its seed."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from tiny_fold import tiny_case
from tiny_inpaint import tiny_config

from nnunet_lgesynth.anatomy.priors import Prior
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR, ScarSpec, Unreachable, paint_mask
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.case import Case
from nnunet_lgesynth.generators.condition import feather
from nnunet_lgesynth.generators.inpaint.data import SliceSet
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.pool.synthesize import (
    kinds_for,
    paint_case,
    prepare,
    synthesize,
)

SPEC = ScarSpec("sector", 0.26, 1.0, angle=1.0, extent=2.2, slice=2.0, length=6.0,
                no_reflow=0.1, contrast=0.9, no_reflow_contrast=0.3)


@pytest.fixture
def heart(fold):
    return Subject.of(fold, fold.read("case_01"))          # scar-free


class SliceJudge:
    """Finds the truth in the slices it is told, and scar everywhere in the others."""

    hash = "0" * 12

    def __init__(self, heart: Subject, request: np.ndarray, finds: set[int]):
        self.heart, self.request, self.finds, self.calls = heart, request, finds, []

    def predict(self, images: torch.Tensor, centre=None) -> torch.Tensor:
        self.calls.append((images, centre))
        slices = [next(z for z, source in enumerate(self.heart.lge) if (source == one[0]).all())
                  for one in images[:len(images) // 2].numpy()]
        labels = self.heart.case.labels[0, slices]
        found = np.where(self.request[slices] > 0, 3, labels)
        found[[z not in self.finds for z in slices]] = 3
        return torch.from_numpy(np.concatenate([labels, found]))


def draft(fold, heart, *, judge=None, seed=3, healthy=False, spec=SPEC, config=None):
    return paint_case(fold, Painter(), heart, spec, paint_mask(heart.anatomy, spec), judge,
                      config or QCConfig(), seed, healthy)


def same(a: Case, b: Case) -> bool:
    return a.image.tobytes() == b.image.tobytes() and a.labels.tobytes() == b.labels.tobytes()


def inside_feather(heart, mask) -> np.ndarray:
    return np.stack([feather(m > 0, heart.case.spacing[1:], Painter.feather_mm) > 0 for m in mask])


@pytest.mark.parametrize("healthy", [False, True])
def test_outside_the_feather_image_and_labels_are_bit_identical(fold, heart, healthy):
    mask = paint_mask(heart.anatomy, SPEC)
    sample = draft(fold, heart, healthy=healthy)
    assert sample.accepted and set(sample.slices) <= set(np.flatnonzero(mask.any(axis=(1, 2))))
    inside = inside_feather(heart, mask)
    before, after = heart.case, sample.case
    assert before.image[0][~inside].tobytes() == after.image[0][~inside].tobytes()
    assert (before.labels[0][mask == 0] == after.labels[0][mask == 0]).all()
    changed = before.image[0] != after.image[0]
    assert changed.any(axis=(1, 2)).nonzero()[0].tolist() == list(sample.slices)
    for z, (top, bottom, left, right) in sample.changed.items():
        rows, columns = np.nonzero(changed[z])
        assert top <= rows.min() and rows.max() < bottom
        assert left <= columns.min() and columns.max() < right


def test_labels_are_the_request_and_contrast_is_there(fold, heart):
    mask = paint_mask(heart.anatomy, SPEC)
    sample = draft(fold, heart)
    for z in sample.slices:
        labels = sample.case.labels[0, z]
        assert ((labels == 3) == (mask[z] == SCAR)).all()
        assert ((labels == 4) == (mask[z] == NO_REFLOW)).all()
        painted = heart.intensities.apply(sample.case.image[0, z][mask[z] == SCAR])
        assert np.median(painted) > 0.5 * SPEC.contrast
    assert (mask == NO_REFLOW).any()


def test_only_accepted_slices_differ(fold, heart):
    mask = paint_mask(heart.anatomy, SPEC)
    judge = SliceJudge(heart, mask, finds={1, 3})
    sample = draft(fold, heart, judge=judge)
    assert sample.slices == (1, 3) == tuple(sample.changed)
    assert set(sample.verdicts) == {0, 1, 2, 3, 4}
    assert {z for z, v in sample.verdicts.items() if v.accepted} == {1, 3}
    assert not sample.accepted         # two of five slices are too few for the lesion
    rest = [0, 2, 4]
    assert (sample.case.image[:, rest] == heart.case.image[:, rest]).all()
    assert (sample.case.labels[:, rest] == heart.case.labels[:, rest]).all()
    refused = draft(fold, heart, judge=SliceJudge(heart, mask, finds=set()))
    assert not refused.accepted and same(refused.case, heart.case)


def test_refused_slices_alone_are_drafted_again_with_other_noise(fold, heart):
    mask = paint_mask(heart.anatomy, SPEC)

    class Late(SliceJudge):
        def predict(self, images, centre=None):
            self.finds = {0, 1, 2} if not self.calls else {0, 1, 2, 3}
            return super().predict(images, centre)

    judge = Late(heart, mask, finds=set())
    sample = draft(fold, heart, judge=judge, config=QCConfig(drafts_per_slice=3))
    assert [len(images) // 2 for images, _ in judge.calls] == [5, 2, 1]
    assert sample.slices == (0, 1, 2, 3) and sample.passed_first == 3 and sample.accepted
    slice_3 = [judge.calls[i][0][-2, 0] for i in (0, 1)]       # its two drafts
    assert (slice_3[0] != slice_3[1]).any()
    once = draft(fold, heart, judge=Late(heart, mask, set()), config=QCConfig(drafts_per_slice=1))
    assert once.slices == (0, 1, 2) and not once.accepted
    assert draft(fold, heart, judge=Late(heart, mask, set()), config=QCConfig(
        drafts_per_slice=1, min_slice_share=0.6)).accepted


def test_what_no_draft_can_mend_is_not_drafted_again(fold, heart):
    mask = paint_mask(heart.anatomy, SPEC)

    class Before(SliceJudge):
        def predict(self, images, centre=None):      # scar is found in the untouched source
            maps = super().predict(images, centre)
            return torch.cat([maps[len(maps) // 2:]] * 2)

    judge = Before(heart, mask, finds={0, 1, 2, 3, 4})
    sample = draft(fold, heart, judge=judge)
    assert len(judge.calls) == 1 and not sample.slices
    assert not any(v.checks["dice_source"].passed for v in sample.verdicts.values())


def test_the_judge_sees_all_slices_before_and_after_around_the_heart(fold, heart):
    judge = SliceJudge(heart, paint_mask(heart.anatomy, SPEC), finds={0, 1, 2, 3, 4})
    sample = draft(fold, heart, judge=judge)
    (images, centre), = judge.calls
    assert images.shape == (10, 1, 48, 48) and centre == heart.anatomy.lv_centre
    assert (images[:5, 0].numpy() == heart.case.image[0]).all()
    assert (images[5:, 0].numpy() == sample.case.image[0]).all()


def test_healthy_samples_keep_their_labels_and_say_no_enhancement(fold, heart):
    sample = draft(fold, heart, healthy=True)
    assert sample.kind == "healthy" and sample.accepted
    assert sample.case.labels.tobytes() == heart.case.labels.tobytes()
    assert set(sample.captions.values()) == {"no enhancement"}
    assert sample.case.image.tobytes() != heart.case.image.tobytes()


def test_only_the_lge_channel_changes(fold):
    case = tiny_case(1)
    both = replace(case, image=np.concatenate([case.image * 3 + 1, case.image]))
    second = replace(fold, info=replace(fold.info, roles=replace(fold.info.roles, lge_channel=1)))
    sample = draft(second, Subject.of(second, both))
    assert sample.accepted and (sample.case.image[0] == both.image[0]).all()
    assert (sample.case.image[1] == draft(fold, Subject.of(fold, case)).case.image[0]).all()


def test_a_sample_follows_from_its_seed(fold, heart):
    assert same(draft(fold, heart, seed=5).case, draft(fold, heart, seed=5).case)
    assert not same(draft(fold, heart, seed=5).case, draft(fold, heart, seed=6).case)
    np.random.seed(1)
    torch.manual_seed(1)
    once = draft(fold, heart, seed=5)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert same(once.case, draft(fold, heart, seed=5).case)
    assert (np.random.get_state()[1] == state[0]).all()      # the training's draws are its own
    assert (torch.get_rng_state() == state[1]).all()


def test_the_stream_follows_from_its_generator_and_each_sample_from_its_record(fold):
    prior, hearts = prepare(fold, "sector")
    by_name = {h.case.identifier: h for h in hearts}

    def stream(seed):
        return list(islice(synthesize(fold, Painter(), prior, hearts, None, QCConfig(),
                                      np.random.default_rng(seed)), 6))
    first, again, other = stream(1), stream(1), stream(2)
    assert [s.record("g") for s in first] == [s.record("g") for s in again]
    assert [s.seed for s in first] != [s.seed for s in other]
    assert [s.kind for s in first] == ["scar", "healthy"] * 3
    for sample, twin in zip(first, again):
        alone = draft(fold, by_name[sample.source], spec=sample.spec, seed=sample.seed,
                      healthy=sample.kind == "healthy")
        assert same(sample.case, twin.case) and same(sample.case, alone.case)


def test_healthy_repaintings_stand_for_scar_free_patients(fold):
    """A scarred patient's heart, repainted elsewhere, still holds scar: it may not answer for one
    without."""
    prior, hearts = prepare(fold, "sector")
    assert {h.case.identifier for h in hearts} == {"case_00", "case_01", "case_02", "case_03"}
    samples = list(islice(synthesize(fold, Painter(), prior, hearts, None, QCConfig(),
                                     np.random.default_rng(0)), 24))
    sources = {k: {s.source for s in samples if s.kind == k} for k in ("scar", "healthy")}
    assert sources["healthy"] == {"case_01", "case_03"}
    assert sources["scar"] & {"case_00", "case_02"}
    assert not any((s.case.labels >= 3).any() for s in samples if s.kind == "healthy")
    assert all((s.case.labels >= 3).any() for s in samples if s.kind == "scar" and s.accepted)


def test_without_a_scar_free_heart_only_scars_are_drafted(fold):
    prior, hearts = prepare(fold, "sector")
    scarred = [h for h in hearts if h.anatomy.scarred.any()]
    assert kinds_for(hearts) == ("scar", "healthy") and kinds_for(scarred) == ("scar",)
    samples = islice(synthesize(fold, Painter(), prior, scarred, None, QCConfig(),
                                np.random.default_rng(0)), 4)
    assert {s.kind for s in samples} == {"scar"}


def test_real_scars_are_never_painted_over(fold):
    heart = Subject.of(fold, fold.read("case_00"))
    sample = draft(fold, heart)
    assert heart.anatomy.scarred.tolist() == [False, True, True, False, False]
    assert set(sample.verdicts) <= {0, 3, 4}
    for before, after in ((heart.case.image, sample.case.image),
                          (heart.case.labels, sample.case.labels)):
        assert (before[:, 1:3] == after[:, 1:3]).all()


def test_a_lesion_that_leaves_the_crop_is_refused_where_it_does(fold):
    """The label would otherwise change where no scar was painted."""
    heart = Subject.of(fold, tiny_case(1))
    small = Painter()
    small.pixels = 8
    sample = paint_case(fold, small, heart, SPEC, paint_mask(heart.anatomy, SPEC), None, QCConfig(),
                        0)
    assert sample.verdicts and not sample.accepted and same(sample.case, heart.case)
    assert all(not v.checks["outside_crop"].passed for v in sample.verdicts.values())


def test_a_request_too_small_for_any_slice_is_no_sample(fold, heart):
    sample = draft(fold, heart, config=QCConfig(min_pixels=10 ** 4))
    assert not sample.accepted and not sample.verdicts and same(sample.case, heart.case)


def test_requests_that_never_fit_end_with_an_error(fold, monkeypatch):
    monkeypatch.setattr("nnunet_lgesynth.pool.synthesize.HEARTS", 3)
    prior, hearts = prepare(fold, "sector")
    with pytest.raises(UserError, match=r"fewer than 10000 pixels.*lgesynth doctor"):
        next(synthesize(fold, Painter(), prior, hearts, None, QCConfig(min_pixels=10 ** 4),
                        np.random.default_rng(0)))


def test_a_heart_that_can_hold_no_request_is_passed_over(fold):
    """Also while the inpainter's training material is drawn."""
    prior, hearts = prepare(fold, "sector")
    small = hearts[0].anatomy

    class Particular(Prior):
        def draw(self, anatomy, rng, asked=None):
            if np.array_equal(anatomy.wall, small.wall):
                raise Unreachable("This heart holds nothing.")
            return super().draw(anatomy, rng, asked)

    picky = Particular(prior.name, prior.records)
    samples = list(islice(synthesize(fold, Painter(), picky, hearts, None, QCConfig(),
                                     np.random.default_rng(0)), 12))
    assert {s.source for s in samples} == {h.case.identifier for h in hearts[1:]}
    slices = SliceSet.of(fold, tiny_config(), picky, hearts)
    assert {i.subject.case.identifier for i in slices.asked} == {h.case.identifier
                                                                 for h in hearts[1:]}


def test_no_scar_free_slice_anywhere_is_refused(fold):
    for identifier in fold.train:
        case = fold.read(identifier)
        labels = case.labels.copy()
        labels[:, :, 24, 33] = 3                          # in the wall of every slice
        fold.write(replace(case, identifier=f"full_{identifier}", labels=labels), fold.folder)
    full = replace(fold, train=tuple(f"full_{i}" for i in fold.train))
    with pytest.raises(UserError, match=r"no training case has scar-free slices.*add scar-free"):
        prepare(full, "sector")


def test_no_real_scar_to_learn_from_is_refused(fold):
    with pytest.raises(UserError, match="no measurable scar"):
        prepare(replace(fold, train=("case_01", "case_03")), "sector")


def test_a_case_without_a_ring_is_named_and_passed_over(fold):
    case = fold.read("case_01")
    broken = replace(case, identifier="open", labels=np.where(case.labels == 2, 0, case.labels))
    with pytest.raises(UserError, match="open: no slice has a wall"):
        Subject.of(fold, broken)
    fold.write(broken, fold.folder)
    prior, hearts = prepare(replace(fold, train=(*fold.train, "open")), "sector")
    assert isinstance(prior, Prior) and len(hearts) == 4
