"""A number as every file in benchmarks/results and every report holds it."""

from __future__ import annotations

from nnunet_lgesynth.benchmark.arms import UNITS
from nnunet_lgesynth.benchmark.statistics import finite

__all__ = ["number_row"]


def number_row(about: dict, metric: str, value: float, low: float | None = None,
               high: float | None = None, *, n: int, unit: str | None = None) -> dict:
    """One number as every file in benchmarks/results holds it; `about` has the fields that say
    where it comes from."""
    base = metric.split("_diff_vs_")[0].removesuffix("_seed_std")
    numbers = {"value": finite(value), "low": finite(low), "high": finite(high), "n": int(n)}
    return {"benchmark": about["benchmark"], "arm": about["arm"], "metric": metric, **numbers,
            "unit": unit or UNITS.get(base, "fraction"),
            **{k: about[k] for k in ("dataset", "split", "device", "seeds", "preset", "command",
                                     "versions", "date")}}
