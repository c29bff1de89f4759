"""Intervals, tests and the smallest effect that a number of patients can show.

Bootstrap and permutations are scipy's; McNemar's test and the power of a t-test statsmodels'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

__all__ = ["POWER", "SIGNIFICANCE", "detectable", "finite", "flip_p", "holm", "interval",
           "mcnemar_p"]

SIGNIFICANCE = 0.05
POWER = 0.8
LARGEST = 5.0          # standard deviations; no training differs by more, and solvers end at 10
BATCH = 500            # resamples at a time, to bound memory


def interval(n: int, statistic: Callable[[np.ndarray], np.ndarray], resamples: int,
             strata: np.ndarray | None = None) -> tuple[float | None, float | None]:
    """95 % BCa interval over n patients; (None, None) where undefined.

    `statistic` maps resamples (..., any) of the indices 0..n-1 to values (...). With `strata` (n,)
    every resample has as many patients of each as there are.
    """
    strata = np.zeros(n) if strata is None else strata
    groups = tuple(np.flatnonzero(strata == one) for one in np.unique(strata))
    if min(map(len, groups), default=0) < 2:
        return None, None

    def together(*samples: np.ndarray) -> np.ndarray:
        shape = np.broadcast_shapes(*(s.shape[:-1] for s in samples))
        return statistic(np.concatenate([np.broadcast_to(s, (*shape, s.shape[-1]))
                                         for s in samples], axis=-1))

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")     # degenerate data: scipy warns and returns NaN
        found = stats.bootstrap(groups, _along_last(together), method="BCa",
                                vectorized=True, n_resamples=resamples, batch=BATCH,
                                rng=0).confidence_interval
    low, high = finite(found.low), finite(found.high)
    return (None, None) if low is None or high is None or low == high else (low, high)


def flip_p(data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray],
           resamples: int = 9999) -> float:
    """Two-sided p of paired data (differences, or two arms): flips patient by patient, every way
    where 2**n <= resamples. `statistic` reduces the last axis."""
    if len(data[0]) < 2:
        return 1.0        # one patient: both flips are as extreme as what was seen
    return float(stats.permutation_test(data, _along_last(statistic), vectorized=True, axis=-1,
                                        permutation_type="samples", n_resamples=resamples,
                                        batch=BATCH, rng=0).pvalue)


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: of the patients that only one of two arms has right,
    `gained` and `lost`."""
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values corrected for their number (Holm 1979); what is undefined counts as no test.

    Written out, since statsmodels takes tens of milliseconds; a test holds it to theirs.
    """
    known = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, k) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[k] = least
    return corrected


def detectable(patients: int, tests: int = 1) -> float | None:
    """Smallest mean of paired differences, in their standard deviations, that a t-test over so many
    patients finds with 80 % power at 5 %, two-sided, where it is one of so many (Bonferroni); None
    where only larger ones than `LARGEST` are, or where flipping signs of so few patients gives no
    p below the bound. The comparison's own test finds a little less often in few patients."""
    from statsmodels.stats.power import TTestPower

    if patients < 2 or tests * 2 / 2 ** patients >= SIGNIFICANCE:
        return None
    size = np.asarray(TTestPower().solve_power(nobs=patients, alpha=SIGNIFICANCE / tests,
                                               power=POWER)).item()
    return size if size < LARGEST else None


def finite(value: float | None) -> float | None:
    """Rounded for a JSON file; None where undefined."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def _along_last(statistic: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`statistic` as scipy calls it; scipy has moved the axis to the end by then."""
    return lambda *samples, axis: statistic(*samples)
