"""A manifest line makes its pool case again, bit by bit; a line of something else is refused."""

from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import torch
from tiny_inpaint import tiny_config, tiny_inpainter, tiny_slices

from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.generators.inpaint.sample import Inpainter
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.rebuild import rebuild
from nnunet_lgesynth.pool.store import read_manifest
from nnunet_lgesynth.pool.studio import Studio

# what a draft of untrained networks can pass, and the whim of the judge below decides on
QC = QCConfig(min_dice=0.1, max_source_dice=0.05, max_healthy_pixels=10 ** 4, max_level_change=1e6,
              min_contrast_share=-1e6, min_slice_share=0.3)
INJECTION = InjectionConfig(pool_cases=3, refresh_cases=0, seed=4)


class Whim:
    """Finds scar wherever something was repainted, but in every other draft also elsewhere."""

    hash = "f" * 12
    refused = 0

    def predict(self, images, centre=None):
        before, after = images[:, 0].numpy().reshape(2, -1, *images.shape[2:])
        found = np.where(before != after, 3, 1)
        for one, image in zip(found, after):
            if crc32(image.tobytes()) % 2:
                Whim.refused += 1
                one[:8] = 3
        return torch.from_numpy(np.concatenate([np.ones_like(found), found]))


def inpainter(fold) -> Inpainter:
    """The same untrained networks at each call, without what the others have computed."""
    return tiny_inpainter(tiny_slices(fold, tiny_config()))


def filled(fold, generator, judge, tmp_path) -> Studio:
    studio = Studio(fold, generator, judge, INJECTION, tmp_path / "pool", lambda _: None, QC)
    for _ in range(40):
        studio.draft()
    assert studio.wanted is None
    return studio


@pytest.fixture(params=["paint", "lgesynth"])
def pool(request, fold, tmp_path):
    """(how its generator is made, judge, pool, manifest lines)."""
    def make():
        return Painter() if request.param == "paint" else inpainter(fold)
    judge = None if request.param == "paint" else Whim()
    studio = filled(fold, make(), judge, tmp_path)
    return make, judge, studio.pool, read_manifest(studio.pool.folder)


def test_a_line_rebuilds_its_case_bit_by_bit(fold, pool):
    make, judge, written, lines = pool
    assert {line["kind"] for line in lines} == {"scar", "healthy"} and len(lines) >= 4
    assert judge is None or Whim.refused                       # drafts were repeated
    generator = make()
    for line in reversed(lines):
        sample = rebuild(fold, generator, judge, QC, line)
        image, labels, _, _ = fold.cases_folder(written.cases).load_case(line["identifier"])
        assert np.asarray(image[:]).tobytes() == sample.case.image.tobytes()
        assert np.array_equal(labels[:], sample.case.labels)
        assert sample.accepted and list(sample.slices) == line["slices"]
        source = fold.read(line["source"])
        assert (image[:] != source.image).any()


def test_what_the_line_is_not_of_is_refused(fold, tmp_path):
    line = read_manifest(filled(fold, Painter(), None, tmp_path).pool.folder)[0]
    other = Painter()
    for told, given, message in (
            ({"generator": "paint-0"}, {}, "with the generator paint-0, not paint-"),
            ({}, {"judge": Whim()}, "with the judge None, not ffff"),
            ({}, {"config": QCConfig()}, "with the quality control "),
            ({"source": "case_05"}, {}, "case_05 are no training cases of fold 0"),
            ({"slices": [99]}, {}, "comes out with other slices than its manifest")):
        asked = {"judge": None, "config": QC} | given
        with pytest.raises(UserError, match=message):
            rebuild(fold, other, asked["judge"], asked["config"], line | told)


def test_a_changed_source_is_told(fold, tmp_path):
    line = read_manifest(filled(fold, Painter(), None, tmp_path).pool.folder)[0]
    case = fold.read(line["source"])
    for file in fold.folder.glob(f"{line['source']}*"):
        file.unlink()
    noise = np.random.default_rng(0).normal(0, 0.1, case.image.shape)
    fold.write(replace(case, image=case.image + noise), fold.folder)
    with pytest.raises(UserError, match="the source case, the machine or the versions"):
        rebuild(fold, Painter(), None, QC, line)
