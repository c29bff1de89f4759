"""Laws of the statistics: known p values, the nominal rate of false verdicts, power as computed."""

import json
import sys

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from benchmarks import verdicts
from benchmarks.verdicts import signs, simulate
from nnunet_lgesynth.benchmark.statistics import detectable, flip_p, holm, interval, mcnemar_p

SIMULATIONS = 2000


def last_mean(values):
    return values.mean(axis=-1)


def test_sign_flip_is_exhaustive_for_few_patients():
    assert flip_p((np.array([0.1, 0.2, 0.3, 0.4, 0.5]),), last_mean) == pytest.approx(2 / 32)
    # sums at least as large as that of (1, 2, -0.5): 2 of 8 sign patterns, 2.5 and 3.5
    assert flip_p((np.array([1.0, 2.0, -0.5]),), last_mean) == pytest.approx(2 * 2 / 8)
    assert flip_p((np.zeros(4),), last_mean) == 1.0
    assert flip_p((np.array([0.3]),), last_mean) == 1.0


def test_the_interval_covers_the_mean_of_a_normal_sample():
    values = np.random.default_rng(0).normal(size=40)
    low, high = interval(40, lambda i: values[i].mean(-1), 1000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(40)
    assert low == pytest.approx(values.mean() - half, abs=0.08)
    assert high == pytest.approx(values.mean() + half, abs=0.08)


def test_resamples_in_strata_are_those_of_each_apart():
    """The difference of two groups' means: scipy's own interval of two samples."""
    rng = np.random.default_rng(1)
    values, group = rng.normal(size=30), np.arange(30) % 3 == 0
    def difference(chosen):
        taken, first = values[chosen], group[chosen]
        return ((first * taken).sum(-1) / first.sum(-1)
                - (~first * taken).sum(-1) / (~first).sum(-1))
    expected = stats.bootstrap(
        (values[~group], values[group]), lambda a, b, axis: b.mean(axis) - a.mean(axis),
        n_resamples=2000, batch=500, rng=0).confidence_interval
    assert interval(30, difference, 2000, group) == pytest.approx(tuple(expected), abs=1e-5)
    assert interval(30, difference, 200, np.arange(30) == 0) == (None, None)


def test_mcnemar_is_the_sign_test_of_the_patients_that_differ():
    for gained, lost in ((0, 0), (5, 0), (3, 9), (9, 3), (1, 1)):
        expected = 1.0 if gained + lost == 0 else stats.binomtest(gained, gained + lost).pvalue
        assert mcnemar_p(gained, lost) == pytest.approx(expected)


def test_holm_multiplies_the_smallest_by_all_and_keeps_the_order():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06),
                                              pytest.approx(0.06)]
    values = np.random.default_rng(0).random((4, 5)) ** 3
    for row in (*values, np.repeat(0.02, 5)):
        assert holm(row) == pytest.approx(multipletests(row, method="holm")[1])
    assert holm([None]) == [None] and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_detectable_difference_is_found_so_often_as_promised():
    """A simulated effect of that size, with the sign-flip test that the comparison uses."""
    n, effect = 12, detectable(12)
    assert TTestPower().power(effect, n, 0.05) == pytest.approx(0.8, abs=1e-6)
    assert detectable(12, tests=6) > effect > detectable(40)
    assert detectable(1) is None is detectable(2, tests=6)
    assert detectable(8, tests=6) is not None is detectable(7, tests=6)  # 6 x 2 / 2**7 is above .05
    for case in ((63, 3), (48, 6), (38, 12), (73, 24)):         # statsmodels gives arrays for these
        assert isinstance(detectable(*case), float)
    rng = np.random.default_rng(0)
    found = np.mean([flip_p((rng.normal(effect, 1, n),), last_mean, 999) < 0.05
                     for _ in range(SIMULATIONS)])
    assert found == pytest.approx(0.8, abs=0.035)        # 0.8 +- 0.018 by chance, t-test's power


def test_a_false_verdict_is_as_rare_as_promised_also_with_several_arms():
    """Without any effect arms are exchangeable, though some patients can change by more."""
    wrong = simulate("exchangeable", 8, SIMULATIONS, resamples=100)
    assert wrong <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / SIMULATIONS)
    assert wrong > 0.005                                  # it can be wrong: the check is no stone
    wrong = simulate("slice_auroc", 9, few := 300, resamples=100)      # each takes 30 ms
    assert wrong <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / few)


def test_simulated_verdicts_are_written_with_their_intervals(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verdicts", "--studies", "10", "-o",
                                      str(tmp_path / "v.json")])
    verdicts.main()
    rows = json.loads((tmp_path / "v.json").read_text())
    assert {(r["arm"], r["split"]) for r in rows} == {
        (arm, f"{n} patients, 2 arms") for arm in (*verdicts.SCENARIOS, "slice_auroc", "effect")
        for n in verdicts.PATIENTS}
    assert all(r["low"] <= r["value"] <= r["high"] and r["n"] == 10 for r in rows)
    assert capsys.readouterr().out.count("power") == len(verdicts.PATIENTS)


def test_a_true_effect_is_told_with_its_sign():
    rng = np.random.default_rng(2)
    told = [signs([rng.normal(1.5, 1, 10), rng.normal(-1.5, 1, 10), rng.normal(0, 1, 10)], 100)
            for _ in range(200)]
    helps, harms, nothing = np.transpose(told)
    assert (helps == 1).mean() > 0.9 < (harms == -1).mean() and (helps >= 0).all()
    assert (nothing != 0).mean() < 0.05
