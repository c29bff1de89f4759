"""The benchmark's answer in plain words: helps, harms, or no evidence.

It rests on the primary metrics alone: the interval of a difference must exclude 0, and its p value,
corrected over arms and metrics, lie below 0.05. Filtered arms are corrected among themselves, and
what they show is told, but not in the headline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nnunet_lgesynth.benchmark.records import FILTERED
from nnunet_lgesynth.benchmark.statistics import SIGNIFICANCE
from nnunet_lgesynth.benchmark.variants import (
    REFERENCE,
    further_references,
    is_tested,
    reference_of,
)

__all__ = ["PRIMARY", "proven", "tests_of", "verdict"]

PRIMARY = {"dice_tp": "Dice-TP", "no_reflow_dice": "no-reflow Dice", "slice_auroc": "slice AUROC"}


def tests_of(arms: Iterable[str], metrics: int) -> int:
    """How many p values an arm's is one of, where so many primary metrics are defined."""
    named = {a.removesuffix(FILTERED) for a in arms}
    return metrics * sum(is_tested(a) and reference_of(a) in named for a in named)


def verdict(rows: list[dict]) -> list[str]:
    """The headline, then one sentence an arm. An arm helps or harms where the interval of a primary
    metric excludes 0 and its p, corrected over arms and metrics, is below 0.05."""
    found = {(r["arm"], r["metric"]): r for r in rows}
    arms = list(dict.fromkeys(r["arm"] for r in rows if not r["arm"].endswith(FILTERED)))
    sentences, compared = [], []
    for arm in filter(is_tested, arms):
        reference = reference_of(arm)
        shared = list(_primary_differences(found, arm, reference))
        compared += [metric for metric, _, _ in shared]
        sentences.append(f"{arm} against {reference}: "
                         f"{'; '.join(told for _, _, told in shared) or 'nothing shared'}."
                         + _shares(found, arm))
        for other in further_references(arm, arms):
            parts = [told for _, _, told in _primary_differences(found, arm, other)]
            if parts:
                sentences.append(f"{arm} against {other}, which decides nothing: "
                                 f"{'; '.join(parts)}.")
    if not compared:
        return [f"No comparison: it needs '{REFERENCE}', trained on as many patients, and another "
                "arm, both scored on the same patients with the same seeds.", *sentences]
    tested = ", ".join(name for metric, name in PRIMARY.items() if metric in compared)
    lone = [arm for arm in arms if is_tested(arm) and _fewest_seeds(found, arm) == 1]
    headline = _proven(found, arms)
    if shown := [arm for arm in lone if headline and _proven(found, [arm])]:
        headline += (f" One seed of {', '.join(shown)}: these networks differ, other random "
                     "numbers alone may do as much.")
    headline = headline or f"No evidence: no difference from {REFERENCE} is shown in {tested}."
    if filtered := _proven(found, [arm + FILTERED for arm in arms]):
        sentences.append(f"After the volume filter, corrected among filtered arms: {filtered}")
    if lone:
        sentences.append(f"One seed of {', '.join(lone)}, in some patients at least: what other "
                         "seeds would give is not known.")
    return [headline, *sentences]


def _fewest_seeds(found: dict, arm: str) -> float | None:
    """Of a patient in whom an arm is compared with its reference; None where it is not."""
    return found.get((arm, f"fewest_seeds_vs_{reference_of(arm)}"), {}).get("value")


def _proven(found: dict, arms: Iterable[str]) -> str:
    """Which of these arms help or harm, and in what; empty where none does."""
    signs: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for arm in filter(is_tested, arms):
        reference = reference_of(arm)
        for metric, row, told in _primary_differences(found, arm, reference):
            p = found[arm, f"{metric}_p_holm_vs_{reference}"]["value"]
            signs[proven((row["low"], row["high"]), p)].append(f"{arm}, {told}")
    return " ".join(f"{what}: {'; '.join(signs[sign])}."
                    for sign, what in ((1, "Helps"), (-1, "Harms")) if signs[sign])


def _primary_differences(found: dict, arm: str, reference: str) -> Iterator[tuple[str, dict, str]]:
    """(metric, number row, in words) of an arm's differences that are defined."""
    for metric, name in PRIMARY.items():
        row = found.get((arm, f"{metric}_diff_vs_{reference}"))
        if row is not None and row["value"] is not None:
            yield metric, row, f"{name} {_signed(row)}"


def proven(bounds: tuple[float | None, float | None], corrected_p: float | None) -> int:
    """1 for a gain, -1 for a loss, 0 where neither is shown."""
    low, high = bounds
    if low is None or corrected_p is None or corrected_p >= SIGNIFICANCE or low * high <= 0:
        return 0
    return 1 if low > 0 else -1


def _shares(found: dict, arm: str) -> str:
    """Where a difference in Dice comes from."""
    whole, scarred, empty = (found.get((arm, f"dice_diff_{part}vs_{reference_of(arm)}"))
                             for part in ("", "from_scarred_", "from_empty_"))
    if whole is None or whole["value"] is None or scarred is None:
        return ""
    return (f" Its Dice differs by {whole['value']:+.3f}, of which {scarred['value']:+.3f} is from "
            f"patients with scar and {empty['value']:+.3f} from those without.")


def _signed(row: dict) -> str:
    bounds = ("no interval" if row["low"] is None
              else f"95 % interval {row['low']:+.3f} to {row['high']:+.3f}")
    return f"{row['value']:+.3f} ({bounds}, {row['n']} patients)"
