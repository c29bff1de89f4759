"""Drawn scars measure like the ones they vary, lie where their prior says, and obey the user."""

import dataclasses
import json

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.aha import TERRITORIES, connected
from nnunet_lgesynth.anatomy.caption import caption
from nnunet_lgesynth.anatomy.measure import measure, measure_scar
from nnunet_lgesynth.anatomy.priors import PRIORS, Asked, Prior
from nnunet_lgesynth.anatomy.scar import ScarSpec, Unreachable, paint_mask
from nnunet_lgesynth.anatomy.shapes import SHAPES
from nnunet_lgesynth.config import UserError

EVERY = pytest.mark.parametrize("name", PRIORS)


@pytest.fixture
def record(heart):
    h = heart(scar=(1.0, 2.5, 0.6), scar_slices=slice(1, 4), core=True, size=80)
    return measure_scar(h.labels, h.image, h.anatomy, h.roles)


def draws(prior, anatomy, n, asked=None):
    return [prior.draw(anatomy, np.random.default_rng(k), asked) for k in range(n)]


@EVERY
def test_draws_are_valid_and_repeatable(heart, record, name):
    prior, anatomy = Prior(name, (record,)), heart(scar=(4, 5, 0.3)).anatomy
    first, again = (draws(prior, anatomy, 40) for _ in range(2))
    assert first == again and len(set(first)) == 40
    assert all(isinstance(s, ScarSpec) and paint_mask(anatomy, s).any() for s in first)
    assert ScarSpec.from_dict(json.loads(json.dumps(dataclasses.asdict(first[0])))) == first[0]


@pytest.mark.parametrize("name", ["fitted", "sector"])
def test_draws_measure_like_their_record(heart, record, name):
    h, prior = heart(slices=7, size=80), Prior(name, (record,))
    found = [measure(paint_mask(h.anatomy, s), h.anatomy) for s in draws(prior, h.anatomy, 40)]
    for measured, tolerance in (("burden", 0.1), ("extent", 0.25), ("transmurality", 0.1),
                                ("no_reflow", 0.3)):
        mean = np.mean([getattr(f, measured) for f in found])
        assert mean == pytest.approx(getattr(record, measured), rel=tolerance), measured
    assert np.mean([f.slices / 7 for f in found]) == pytest.approx(record.slice_share, rel=0.25)


def test_fitted_scars_lie_where_their_record_lies(heart, record):
    anatomy = heart(slices=7).anatomy
    off = np.angle(np.exp(1j * (np.array([s.angle for s in draws(
        Prior("fitted", (record,)), anatomy, 60)]) - record.angle)))
    assert abs(off.mean()) < 0.1 and 0.1 < off.std() < 0.3


def test_sectors_visit_the_territories_as_often_as_the_records(heart, record):
    """Nine records in the LAD's territory and one in the RCA's."""
    anatomy = heart(slices=7).anatomy
    records = tuple(dataclasses.replace(record, angle=a) for a in [0.1] * 9 + [2.1])
    angles = np.array([s.angle for s in draws(Prior("sector", records), anatomy, 200)])
    near = {name: np.mean(np.abs(np.angle(np.exp(1j * (angles - centre)))) < np.pi / 3)
            for name, centre in (("LAD", 0.0), ("RCA", 2 * np.pi / 3), ("LCx", 4 * np.pi / 3))}
    assert set(near) == set(TERRITORIES)
    assert near["LAD"] > 0.55 > near["RCA"] + 0.2 and near["LCx"] > 0


def test_a_lesion_as_long_as_the_heart_is_not_pushed_out(heart, record):
    prior = Prior("fitted", (dataclasses.replace(record, slice_share=1.0, level=0.0),))
    anatomy = heart(slices=7).anatomy
    for spec in draws(prior, anatomy, 20):
        assert (paint_mask(anatomy, spec) > 0).any(axis=(1, 2)).sum() >= 5


def test_ellipsoid_visits_all_regions_and_layers(heart, record):
    specs = draws(Prior("ellipsoid", (record,)), heart().anatomy, 100)
    assert {round(s.depth, 2) for s in specs} == {0.17, 0.5, 0.83}
    assert {int(s.angle / (2 * np.pi) * 6) for s in specs} == set(range(6))


def test_smile_fills_connected_segments_with_fresh_noise(heart, record):
    h = heart(slices=9, size=80)
    h.labels[0][h.labels[0] == 1] = 2                            # the apical cap
    anatomy, prior = h.anatomy, Prior("smile", (record,))
    specs = draws(prior, anatomy, 150)
    assert all(connected(s.segments) and len(s.shares) == len(s.segments) for s in specs)
    assert {n for s in specs for n in s.segments} == set(range(1, 18))
    assert {len(s.segments) for s in specs} == set(range(1, 7))
    assert len({s.texture for s in specs}) == len(specs)
    for spec in specs[:20]:
        mask = paint_mask(anatomy, spec) > 0
        for segment, share in zip(spec.segments, spec.shares):
            assert mask[anatomy.segment == segment].mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("name, low, high", [("midwall", 0.2, 0.8), ("subepicardial", 0.35, 1.0)])
def test_non_ischaemic_scars_spare_the_endocardium(heart, record, name, low, high):
    anatomy = heart(slices=7, size=96, spacing=(10.0, 1.0, 1.0)).anatomy
    for spec in draws(Prior(name, (record,)), anatomy, 20):
        depth = anatomy.depth[paint_mask(anatomy, spec) > 0]
        assert low < np.percentile(depth, 5) and np.percentile(depth, 95) < high + 1e-6
        assert spec.no_reflow == 0


def test_burden_is_that_of_the_part_that_may_be_painted(heart, record):
    """In a heart whose scarred slices are taken, the rest holds its share and no more."""
    half = heart(scar=(4, 5, 0.3), scar_slices=slice(0, 4), slices=8).anatomy
    whole = heart(slices=8).anatomy
    prior = Prior("fitted", (record,))
    small, large = (np.mean([s.burden for s in draws(prior, a, 40)]) for a in (half, whole))
    assert small == pytest.approx(large / 2, rel=0.1)


@EVERY
def test_the_user_goes_before_the_prior(heart, record, name):
    anatomy = heart(slices=9, size=96).anatomy
    asked = Asked(segments=(8, 9, 14), burden=(0.03, 0.04), transmurality=(0.4, 0.6))
    for spec in draws(Prior(name, (record,)), anatomy, 10, asked):
        found = measure(paint_mask(anatomy, spec), anatomy)
        assert found.segments == (8, 9, 14)
        assert 0.03 - 1e-4 <= found.burden <= 0.04 + 1e-4
        assert 0.35 <= found.transmurality <= 0.65


@EVERY
def test_the_burden_follows_the_segments_that_were_asked_for(heart, record, name):
    """A large scar's record, and a user who wants it in one segment."""
    anatomy = heart(slices=9, size=96).anatomy
    prior = Prior(name, (dataclasses.replace(record, burden=0.5),))
    for spec in draws(prior, anatomy, 3, Asked(segments=(9,))):
        found = measure(paint_mask(anatomy, spec), anatomy)
        assert found.segments == (9,) and 0.003 < found.burden < 0.06


def test_a_core_can_be_asked_for(heart, record):
    anatomy = heart(slices=9, size=96).anatomy
    asked = Asked(no_reflow=(0.2, 0.3), burden=(0.1, 0.1), transmurality=(0.8, 0.8))
    plain = dataclasses.replace(record, no_reflow=0.0, no_reflow_contrast=None)
    for spec in draws(Prior("fitted", (plain, record)), anatomy, 10, asked):
        assert 0.2 <= measure(paint_mask(anatomy, spec), anatomy).no_reflow <= 0.31
        assert spec.no_reflow_contrast == record.no_reflow_contrast
    with pytest.raises(UserError, match="No training scar has a no-reflow core"):
        Prior("fitted", (plain,)).draw(anatomy, np.random.default_rng(0), asked)


@pytest.mark.parametrize("name", ["fitted", "sector"])
def test_cores_can_be_asked_for_more_often_than_real_scars_hold_them(heart, record, name):
    anatomy = heart(slices=9, size=96).anatomy
    plain = dataclasses.replace(record, no_reflow=0.0, no_reflow_contrast=None)
    records = (plain, plain, plain, record)

    def share(asked) -> float:
        specs = draws(Prior(name, records, asked), anatomy, 60)
        return float(np.mean([spec.no_reflow > 0 for spec in specs]))
    assert share(0.0) == 0 and share(1.0) == 1 and share(0.75) == pytest.approx(0.75, abs=0.15)
    assert share(None) == pytest.approx(0.25, abs=0.15)
    alone = draws(Prior(name, (plain,), 1.0), anatomy, 5)        # no real scar has a core
    assert all(spec.no_reflow == 0 for spec in alone)
    speck = dataclasses.replace(record, no_reflow=record.no_reflow / 4, no_reflow_contrast=9.0)
    specs = draws(Prior(name, (speck, record), 1.0), anatomy, 60)        # by the core's volume
    specks = np.mean([spec.no_reflow_contrast == 9.0 for spec in specs])
    assert specks == pytest.approx(0.2, abs=0.15)
    assert draws(Prior(name, (speck,), 1.0), anatomy, 1)[0].no_reflow > 0


@pytest.mark.parametrize("asked", [
    Asked((9,), burden=(0.001, 0.5)), Asked((9,), burden=(0.04, 0.5)), Asked((9,), (0.05, 0.9)),
    Asked(burden=(0.7, 1.0)), Asked((9,), transmurality=(1.0, 1.0))])
@pytest.mark.parametrize("name", ["sector", "fitted", "smile"])     # the others are drawn below
def test_a_range_that_the_heart_can_meet_is_met(heart, record, name, asked):
    """Whatever the prior's first draw: what the user left open gives way."""
    anatomy = heart(slices=9, size=96).anatomy
    for spec in draws(Prior(name, (record,)), anatomy, 5, asked):
        found = measure(paint_mask(anatomy, spec), anatomy)
        low, high = asked.burden or (0, 1)
        assert low - 1e-4 <= found.burden <= high and (
            not asked.segments or found.segments == asked.segments)


@pytest.mark.parametrize("name", ["midwall", "subepicardial"])
def test_a_range_of_depths_ends_where_the_shape_does(heart, record, name):
    anatomy = heart(slices=9, size=96).anatomy
    for spec in draws(Prior(name, (record,)), anatomy, 12, Asked(transmurality=(0.55, 1.0))):
        assert 0.55 <= spec.transmurality <= SHAPES[name].deepest


def test_patchy_foci_are_scattered(heart, record):
    """And mostly said to be; small scars of one or two foci are named by their layer."""
    anatomy = heart(slices=9, size=96, spacing=(10.0, 1.2, 1.2)).anatomy
    prior = Prior("patchy", (record,))
    texts = [caption(paint_mask(anatomy, s), anatomy) for s in draws(prior, anatomy, 30)]
    assert np.mean([t.startswith("patchy") for t in texts]) > 0.5


def test_a_scar_that_is_not_ischaemic_has_no_core(heart, record):
    for name in ("midwall", "subepicardial", "patchy"):
        with pytest.raises(UserError, match="not ischaemic and has no no-reflow core"):
            Prior(name, (record,)).draw(heart().anatomy, np.random.default_rng(0),
                                        Asked(no_reflow=(0.2, 0.2)))
        spec = Prior(name, (record,)).draw(heart().anatomy, np.random.default_rng(0),
                                           Asked(no_reflow=(0.0, 0.3)))
        assert spec.no_reflow == 0


def test_what_the_heart_cannot_hold_is_refused(heart, record):
    prior, rng = Prior("sector", (record,)), np.random.default_rng(0)
    with pytest.raises(Unreachable, match="which can hold"):
        prior.draw(heart(slices=9).anatomy, rng, Asked((8,), burden=(0.3, 0.4)))
    with pytest.raises(UserError, match="spares a part of the wall"):
        Prior("midwall", (record,)).draw(heart().anatomy, rng, Asked(transmurality=(0.9, 1.0)))
    full = heart(scar=(1, 2, 0.5), scar_slices=slice(None)).anatomy
    with pytest.raises(Unreachable, match="no scar-free slice"):
        prior.draw(full, rng)


@pytest.mark.parametrize("change, words", [
    ({"segments": (0, 18)}, "numbered 1 to 17, not 0, 18"),
    ({"burden": (0.3, 0.2)}, "burden must be a share.*0.3 0.2"),
    ({"burden": (0.0, 0.2)}, "burden must be a share"),
    ({"transmurality": (0.5, 1.5)}, "transmurality must be a share"),
    ({"no_reflow": (float("nan"), 0.5)}, "no_reflow must be a share"),
    ({"no_reflow": (0.5, 1.0)}, "no_reflow must be a share from 0 up to 0.8")])
def test_impossible_wishes_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        Asked(**change)


def test_prior_survives_json(record):
    prior = Prior("sector", (record, dataclasses.replace(record, no_reflow_contrast=None)))
    assert Prior.from_dict(json.loads(json.dumps(prior.as_dict()))) == prior


def test_a_prior_of_an_earlier_version_still_draws(heart, record):
    """Before profiles were measured."""
    values = Prior("sector", (record,)).as_dict()
    del values["records"][0]["profile"]
    old = Prior.from_dict(json.loads(json.dumps(values)))
    assert old.records[0].profile == ()
    assert draws(dataclasses.replace(old, name="fitted"), heart(slices=7).anatomy, 3)


def test_unusable_priors_are_refused(record):
    with pytest.raises(UserError, match="no measurable scar"):
        Prior("sector", ())
    with pytest.raises(UserError, match=r"star.*sector"):
        Prior("star", (record,))
