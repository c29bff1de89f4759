"""The soak tells a leak from noise; the training itself is `make soak`."""

import numpy as np
import pytest

from benchmarks import soak

ABOUT = dict.fromkeys(("benchmark", "arm", "dataset", "split", "device", "seeds", "preset",
                       "command", "versions", "date"))


def epochs(leak=0.0, slower=0.0, settles=0.0, jumps=True, seed=0):
    rng = np.random.default_rng(seed)
    return [{"epoch": k, "memory_mb": 1000 + leak * k + rng.integers(-15, 15),
             "memory_synthesis_mb": 700 + 100 * (k > 2), "drafted": 3, "injected_fraction": 0.4,
             "seconds_epoch": 5 + slower * k + settles * (k < 5) + rng.uniform(0, 0.5)
             + 8 * (jumps and k % 17 == 0), "synthesis_share": 0.03} for k in range(100)]


@pytest.mark.parametrize("made, expected", [
    ({}, []), ({"settles": 40.0}, []), ({"leak": 1.0}, ["host_memory_growth"]),
    ({"slower": 0.01}, ["epoch_growth"]),
    ({"leak": 1.0, "slower": 0.01}, ["host_memory_growth", "epoch_growth"])])
@pytest.mark.parametrize("seed", range(3))
def test_growth_is_found_where_there_is_some(made, expected, seed):
    rows = soak.rows_of(epochs(**made, seed=seed), ABOUT)
    assert soak.grows(rows) == expected
    growth = {r["metric"]: r for r in rows}["host_memory_growth"]
    assert growth["low"] <= growth["value"] <= growth["high"]
    assert growth["value"] == pytest.approx(100 * made.get("leak", 0) / 1800, abs=0.02)
