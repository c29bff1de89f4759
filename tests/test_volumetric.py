"""Laws of 3D trainings: a lesion is one through its slices, in noise, in verdict and in the pool,
and nnU-Net's loader finds it as it finds a real one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_fold import in_3d, write_tiny_fold
from tiny_inpaint import tiny_config, tiny_inpainter, tiny_slices

from nnunet_lgesynth.anatomy.scar import ScarSpec, paint_mask
from nnunet_lgesynth.config import InjectionConfig, QCConfig
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.generators.subject import Subject
from nnunet_lgesynth.pool.rebuild import rebuild
from nnunet_lgesynth.pool.store import read_manifest
from nnunet_lgesynth.pool.studio import Studio
from nnunet_lgesynth.pool.synthesize import paint_case

SPEC = ScarSpec("sector", 0.26, 1.0, angle=1.0, extent=2.2, slice=2.0, length=6.0,
                no_reflow=0.1, contrast=0.9, no_reflow_contrast=0.3)


@pytest.fixture
def flat(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return write_tiny_fold(tmp_path)


@pytest.fixture
def fold(flat):
    return in_3d(flat)


@pytest.fixture
def heart(fold):
    return Subject.of(fold, fold.read("case_01"))          # scar-free, five slices


class Judge:
    """Finds the request in the slices `seen`, and from draft number `last` on in all of them."""

    hash = "0" * 12

    def __init__(self, heart: Subject, request: np.ndarray, seen: set[int], last: int = 10 ** 6):
        self.heart, self.request, self.seen, self.last = heart, request, seen, last
        self.drafts = []

    def predict(self, images: torch.Tensor, centre=None) -> torch.Tensor:
        self.drafts.append(images[len(images) // 2:, 0].numpy())
        slices = [next(z for z, source in enumerate(self.heart.lge) if (source == one[0]).all())
                  for one in images[:len(images) // 2].numpy()]
        labels, request = self.heart.labels[slices], self.request[slices] > 0
        if len(self.drafts) < self.last:
            request[[z not in self.seen for z in slices]] = False
        return torch.from_numpy(np.concatenate([labels, np.where(request, 3, labels)]))


def paint(fold, heart, *, generator=None, judge=None, mask=None, config=None, healthy=False):
    mask = paint_mask(heart.anatomy, SPEC) if mask is None else mask
    return paint_case(fold, generator or Painter(), heart, SPEC, mask, judge, config or QCConfig(),
                      3, healthy)


def test_a_lesion_is_kept_as_a_whole_though_a_slice_of_it_is_not_found(flat, fold, heart):
    request = paint_mask(heart.anatomy, SPEC)
    alone, whole = (paint(f, heart, judge=Judge(heart, request, {0, 1, 3, 4}))
                    for f in (flat, fold))
    assert alone.slices == (0, 1, 3, 4) and whole.slices == (0, 1, 2, 3, 4)
    assert len({id(v) for v in whole.verdicts.values()}) == 1 and len(whole.verdicts) == 5
    assert whole.accepted and whole.passed_first == 5 == len(whole.changed)
    assert ((whole.case.labels[0] == 3) | (whole.case.labels[0] == 4)).any(axis=(1, 2)).all()


def test_a_refused_lesion_leaves_no_slice_and_is_drafted_again_in_whole(fold, heart):
    request = paint_mask(heart.anatomy, SPEC)
    judge = Judge(heart, request, {2})
    refused = paint(fold, heart, judge=judge, config=QCConfig(drafts_per_slice=3))
    assert [len(d) for d in judge.drafts] == [5, 5, 5]
    assert (judge.drafts[0] != judge.drafts[1]).any() and not refused.accepted
    assert not refused.slices and not refused.changed and len(refused.verdicts) == 5
    assert refused.case.image.tobytes() == heart.case.image.tobytes()
    assert refused.case.labels.tobytes() == heart.case.labels.tobytes()
    judge = Judge(heart, request, {2}, last=2)
    late = paint(fold, heart, judge=judge)
    assert [len(d) for d in judge.drafts] == [5, 5] and late.accepted
    assert late.slices == (0, 1, 2, 3, 4) and late.passed_first == 0


def test_a_lesion_that_thins_out_on_the_way_has_no_gap(flat, fold, heart):
    mask = paint_mask(heart.anatomy, SPEC)
    rest = np.argwhere(mask[2])[2:]                            # two pixels of slice 2 stay
    mask[2][tuple(rest.T)] = 0
    assert paint(flat, heart, mask=mask).slices == (0, 1, 3, 4)
    assert paint(fold, heart, mask=mask).slices == (0, 1, 2, 3, 4)
    assert not paint(fold, heart, mask=0 * mask).verdicts


@pytest.fixture(params=["paint", "lgesynth"])
def generator(request, flat):
    if request.param == "paint":
        return Painter()
    return tiny_inpainter(tiny_slices(flat, tiny_config()))


@pytest.mark.parametrize("healthy", [False, True])
def test_slices_next_to_each_other_change_alike(flat, fold, heart, generator, healthy):
    """Slices alike in everything stay alike with the noise of one lesion, not with their own."""
    def repeated(stack, axis=0):
        return np.repeat(np.take(stack, [2], axis), 5, axis)
    mask = repeated(paint_mask(heart.anatomy, SPEC))
    heart = Subject.of(fold, replace(heart.case, image=repeated(heart.case.image, 1)))
    heart = replace(heart, anatomy=replace(heart.anatomy, level=repeated(heart.anatomy.level),
                                           segment=repeated(heart.anatomy.segment)))
    anything = QCConfig(min_contrast_share=-1e9, max_level_change=1e9)

    def jump(fold) -> float:
        after = paint(fold, heart, generator=generator, mask=mask, config=anything,
                      healthy=healthy)
        assert after.accepted and len(after.slices) == 5
        change = after.case.image[0] - heart.case.image[0]
        return float(np.abs(np.diff(change, axis=0))[mask[1:] > 0].mean())
    assert jump(fold) < 1e-6 and jump(flat) > 0.01


@pytest.fixture
def studio(fold, tmp_path):
    """A pool of three cases of each kind."""
    studio = Studio(fold, Painter(), None, InjectionConfig(pool_cases=3, refresh_cases=0, seed=2),
                    tmp_path / "pool", lambda _: None)
    for _ in range(40):
        studio.draft()
    assert studio.wanted is None
    return studio


def test_a_pool_s_line_rebuilds_its_case_bit_by_bit(fold, studio):
    cases = fold.cases_folder(studio.pool.cases)
    for line in read_manifest(studio.pool.folder):
        assert len({str(v) for v in line["verdicts"].values()}) == 1
        assert line["slices"] == sorted(map(int, line["verdicts"]))
        made = rebuild(fold, Painter(), None, QCConfig(), line).case
        image, labels, _, _ = cases.load_case(line["identifier"])
        assert np.array_equal(made.image, image[:]) and np.array_equal(made.labels, labels[:])


def test_foreground_oversampling_finds_synthetic_scars(fold, studio):
    cases = fold.cases_folder(studio.pool.cases)
    loader = nnUNetDataLoader(cases, 2, fold.patch_size, fold.patch_size,
                              PlansManager(fold.plans).get_label_manager(fold.dataset_json))
    np.random.seed(0)
    for line in (r for r in read_manifest(studio.pool.folder) if r["kind"] == "scar"):
        _, labels, _, properties = cases.load_case(line["identifier"])
        for _ in range(10):
            low, high = loader.get_bbox(labels.shape[1:], True, properties["class_locations"],
                                        overwrite_class=3)
            window = tuple(slice(max(a, 0), b) for a, b in zip(low, high))
            assert len(window) == 3 and (labels[0][window] == 3).any()
