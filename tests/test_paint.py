"""The rule-based painter: one seed a sample, the contrast asked, none where none is asked."""

import dataclasses

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.intensities import Intensities
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR, ScarSpec, paint_mask
from nnunet_lgesynth.generators.condition import Request, conditions
from nnunet_lgesynth.generators.paint import Painter

SPEC = ScarSpec("sector", 0.18, 0.8, angle=1.0, extent=2.0, slice=2, length=5,
                no_reflow=0.2)


@pytest.fixture
def told(heart):
    def make(contrast=0.7, no_reflow_contrast=0.2, healthy=False, spec=SPEC):
        h = heart(size=72)
        request = Request(paint_mask(h.anatomy, spec), contrast, no_reflow_contrast, healthy)
        return conditions(h.image, h.anatomy,
                          Intensities.measure(h.image, h.labels, h.anatomy, h.roles), request,
                          (1, 2, 3), pixels=Painter.pixels, mm=Painter.mm,
                          feather_mm=Painter.feather_mm)
    return make


def test_sample_is_the_same_alone_and_in_any_batch(told):
    painter, requests = Painter(), told()
    batch = painter.drafts(requests, [5, 6, 7])
    alone = [painter.drafts([c], [s])[0] for c, s in zip(requests, [5, 6, 7])]
    backwards = painter.drafts(requests[::-1], [7, 6, 5])[::-1]
    for a, b, c in zip(batch, alone, backwards):
        assert a.dtype == np.float32 and a.shape == (Painter.pixels,) * 2
        assert np.array_equal(a, b) and np.array_equal(a, c)
    assert not np.array_equal(painter.drafts(requests[:1], [8])[0], batch[0])


@pytest.mark.parametrize("contrast", [0.4, 0.7, 1.1])
def test_contrast_asked_is_realised(told, contrast):
    requests = told(contrast, 0.3)
    drafts = Painter().drafts(requests, [1, 2, 3])
    for value, asked, tolerance in ((SCAR, contrast, 0.12), (NO_REFLOW, 0.3, 0.2)):
        added = np.concatenate([(d - c.source)[c.request == value]
                                for d, c in zip(drafts, requests)])
        assert np.median(added) == pytest.approx(asked, abs=tolerance)


def test_thin_scar_still_shows(told):
    thin = dataclasses.replace(SPEC, transmurality=0.25, burden=0.06, no_reflow=0.0)
    for draft, condition in zip(Painter().drafts(told(spec=thin), [1, 2, 3]), told(spec=thin)):
        added = (draft - condition.source)[condition.request == SCAR]
        assert 0.5 * 0.7 < np.median(added) < 1.3 * 0.7


def test_healthy_request_adds_texture_but_no_contrast(told):
    painter = Painter()
    for scar, healthy in zip(told(), told(healthy=True)):
        added = painter.drafts([healthy], [3])[0] - healthy.source
        assert abs(added[healthy.region].mean()) < painter.field_sd
        assert added.std() == pytest.approx(painter.field_sd, rel=0.05)
        # the texture over scar and over healthy wall is the same field
        both = painter.drafts([scar], [3])[0] - scar.source
        far = ~scar.region
        assert np.allclose(both[far], added[far], atol=1e-3)


def test_one_part_alone_is_painted(told):
    condition = told()[1]
    only_core = dataclasses.replace(
        condition, request=np.where(condition.request == NO_REFLOW, NO_REFLOW, 0).astype(np.uint8))
    draft, = Painter().drafts([only_core], [0])
    assert np.isfinite(draft).all()


def test_hash_follows_the_settings():
    class Rougher(Painter):
        field_sd = 0.2
    assert Painter().hash == Painter().hash != Rougher().hash
