"""A scar of known size measures as such, and drawn scars measure like the ones they vary."""

import dataclasses
import json

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.heart import describe
from nnunet_lgesynth.anatomy.priors import PRIORS, Prior, measure_scar
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, ScarSpec, paint_mask
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import Roles


def measured(h):
    return measure_scar(h.labels, h.image, h.anatomy, h.roles)


@pytest.fixture
def record(heart):
    return measured(heart(scar=(1.0, 2.5, 0.6), scar_slices=slice(1, 4), core=True, size=80))


def test_known_scar_comes_back(heart):
    h = heart(scar=(1.0, 2.5, 0.6), core=True, size=80, spacing=(10.0, 1.0, 1.3))
    record = measured(h)
    assert record.angle == pytest.approx(1.75, abs=0.05)
    assert record.extent == pytest.approx(1.5, abs=0.2)           # bins of 0.17
    assert record.transmurality == pytest.approx(0.6, abs=0.1)
    assert record.slice_share == pytest.approx(2 / 5)
    assert record.level == pytest.approx(0.375)                   # slices 1 and 2 of 0 .. 4
    scar, wall = np.isin(h.labels, (3, 4)), h.labels >= 2
    assert record.burden == pytest.approx(scar.sum() / wall.sum())
    assert record.no_reflow == pytest.approx((h.labels == 4).sum() / scar.sum())
    assert record.contrast == pytest.approx(0.7, abs=0.02)
    assert record.no_reflow_contrast == pytest.approx(0.2, abs=0.02)
    assert record.wall_sd == pytest.approx(0.03, abs=0.005)


def test_scar_across_the_zero_angle_is_not_torn(heart):
    h = heart(scar=(0.0, 1.0, 0.6))
    turned = describe(np.rot90(h.labels, 3, axes=(1, 2)), h.roles, h.spacing, h.frame)
    record = measure_scar(np.rot90(h.labels, 3, axes=(1, 2)), np.rot90(h.image, 3, axes=(1, 2)),
                          turned, h.roles)
    assert record.angle == pytest.approx(0.5 - np.pi / 2 + 2 * np.pi, abs=0.06)
    assert record.extent == pytest.approx(1.0, abs=0.2)


def test_too_little_scar_is_no_record(heart):
    assert measured(heart()) is None
    h = heart()
    row, column = np.argwhere(h.labels[1] == 2)[0]
    h.labels[1, row, column] = 3
    assert measured(h) is None


def test_no_reflow_alone_tells_no_contrast_of_infarct(heart):
    h = heart(scar=(1.0, 2.0, 0.8))
    h.labels[h.labels == 3] = 4
    assert measure_scar(h.labels, h.image, h.anatomy, h.roles) is None


def test_dataset_without_no_reflow(heart):
    h = heart(scar=(1.0, 2.5, 0.6))
    record = measure_scar(h.labels, h.image, h.anatomy, Roles(1, 2, 3))
    assert record.no_reflow == 0 and record.no_reflow_contrast is None


@pytest.mark.parametrize("name", PRIORS)
def test_draws_are_valid_and_repeatable(heart, record, name):
    prior, anatomy = Prior(name, (record,)), heart(scar=(4, 5, 0.3)).anatomy
    first, again = ([prior.draw(anatomy, rng) for _ in range(200)]
                    for rng in (np.random.default_rng(3), np.random.default_rng(3)))
    assert first == again and len(set(first)) == 200
    assert all(isinstance(s, ScarSpec) and s.shape == name for s in first)
    assert json.loads(json.dumps(dataclasses.asdict(first[0]))) == dataclasses.asdict(first[0])


def test_sector_draws_measure_like_their_record(heart, record):
    """Size, depth and core of painted masks agree with the scars they were drawn from."""
    h, rng = heart(slices=7), np.random.default_rng(0)
    prior, painted = Prior("sector", (record,)), []
    for _ in range(40):
        spec = prior.draw(h.anatomy, rng)
        mask = paint_mask(h.anatomy, spec)
        labels = np.where(mask > 0, np.where(mask == NO_REFLOW, 4, 3), h.labels)
        painted.append(measure_scar(labels, h.image, h.anatomy, h.roles))
        offset = np.angle(np.exp(1j * (painted[-1].angle - record.angle)))
        assert abs(offset) < 1.5
    for name, tolerance in (("burden", 0.2), ("extent", 0.2), ("transmurality", 0.15),
                            ("slice_share", 0.2)):
        mean = np.mean([getattr(p, name) for p in painted])
        assert mean == pytest.approx(getattr(record, name), rel=tolerance), name
    assert np.mean([p.no_reflow for p in painted]) == pytest.approx(record.no_reflow, rel=0.5)


def test_lesion_fits_into_the_stack(heart, record):
    """A lesion as long as the heart is not pushed out at its ends."""
    prior = Prior("sector", (dataclasses.replace(record, slice_share=1.0, level=0.0),))
    anatomy = heart(slices=7).anatomy
    for seed in range(20):
        mask = paint_mask(anatomy, prior.draw(anatomy, np.random.default_rng(seed)))
        assert (mask > 0).any(axis=(1, 2)).sum() >= 5


def test_ellipsoid_visits_all_regions_and_layers(heart, record):
    prior, rng, anatomy = Prior("ellipsoid", (record,)), np.random.default_rng(0), heart().anatomy
    specs = [prior.draw(anatomy, rng) for _ in range(100)]
    assert {round(s.depth, 2) for s in specs} == {0.17, 0.5, 0.83}
    assert {int(s.angle / (2 * np.pi) * 6) for s in specs} == set(range(6))


def test_prior_survives_json(record):
    prior = Prior("sector", (record, dataclasses.replace(record, no_reflow_contrast=None)))
    assert Prior.from_dict(json.loads(json.dumps(prior.as_dict()))) == prior


def test_unusable_priors_are_refused(heart, record):
    with pytest.raises(UserError, match="no measurable scar"):
        Prior("sector", ())
    with pytest.raises(UserError, match=r"star.*sector"):
        Prior("star", (record,))
    full = heart(scar=(1, 2, 0.5), scar_slices=slice(None)).anatomy
    with pytest.raises(UserError, match="no scar-free slice"):
        Prior("sector", (record,)).draw(full, np.random.default_rng(0))
