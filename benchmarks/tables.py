"""The rows of `benchmarks.generator` for reading: as text, and as the tables of docs/samples.md.

    python -m benchmarks.tables generator_fold0.json --plain roi-cpu-plain-seed1
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import sub, truediv
from pathlib import Path

import numpy as np

from nnunet_lgesynth.config import UserError

__all__ = ["ABLATION", "COLUMNS", "FURTHER", "GOALS", "PASS_RATES", "Goal", "cell", "differences",
           "goals", "markdown", "table", "tertiles", "whole"]

PASS_RATES = {"Dice > 0.6, own judge": "dice_pass_own",
              "Dice > 0.6, independent": "dice_pass_independent",
              "whole QC, own judge": "qc_pass_own",
              "whole QC, independent": "qc_pass_independent"}
COLUMNS = {**PASS_RATES, "feature distance": "feature_distance",
           "Frechet distance": "frechet_distance", "burden error": "burden_error",
           "transmurality error": "transmurality_error", "SSIM in place": "ssim_crop",
           "RMSE in place": "rmse_crop", "shortcut AUC": "shortcut_auc", "seam AUC": "seam_auc",
           "s per accepted": "seconds_per_accepted"}
ABLATION = {**PASS_RATES, "whole slice, own judge": "dice_pass_anywhere_own",
            "whole slice, independent": "dice_pass_anywhere_independent",
            **{name: COLUMNS[name] for name in (
                "feature distance", "Frechet distance", "burden error", "transmurality error",
                "SSIM in place", "RMSE in place", "shortcut AUC", "seam AUC",
                "s per accepted")}}
FURTHER = {"KS of the burden asked": "ks_burden", "KS of the burden found": "ks_found_burden",
           "KS of the contrast asked": "ks_asked_contrast",
           "KS of the contrast realised": "ks_contrast",
           "intended label": "label_dice_intended", "predicted label": "label_dice_predicted"}


@dataclass(frozen=True)
class Goal:
    """A bound on a metric, or on the upper end of its 95 % interval (`of_high`)."""

    title: str
    metric: str
    least: float = -np.inf
    most: float = np.inf
    of_high: bool = False
    device: str = ""              # how the device must begin for the goal to be meant

    def reached(self, row: dict) -> bool:
        value = row["high"] if self.of_high else row["value"]
        if value is None or not row["device"].startswith(self.device):
            return False
        return self.least <= value and (value < self.most if self.of_high else value <= self.most)


GOALS = (
    Goal("Dice > 0.6, own judge: at least 0.60", "dice_pass_own", least=0.6),
    Goal("Dice > 0.6, own judge: 1.1 x the real slices'", "dice_pass_own_to_real", least=1.1),
    Goal("Dice > 0.6, independent judge: at least 0.50", "dice_pass_independent", least=0.5),
    Goal("Dice > 0.6, independent judge: 0.8 x the own judge's", "dice_pass_independent_to_own",
         least=0.8),
    Goal("whole QC, own judge: at least 0.60", "qc_pass_own", least=0.6),
    Goal("whole QC, independent judge: at least 0.50", "qc_pass_independent", least=0.5),
    Goal("whole QC, independent judge: 0.8 x the own judge's", "qc_pass_independent_to_own",
         least=0.8),
    Goal("pixels changed outside the feather: none", "changed_outside", most=0),
    Goal("burden error: median at most 0.15", "burden_error", most=0.15),
    Goal("segment Jaccard: median at least 0.80", "segment_jaccard", least=0.8),
    Goal("transmurality error: median at most 0.15", "transmurality_error", most=0.15),
    Goal("feature distance less the painter's: upper bound below 0",
         "feature_distance_diff_vs_paint", most=0, of_high=True),
    Goal("feature distance less the plain ControlNet's: upper bound below 0",
         "feature_distance_diff_vs_plain", most=0, of_high=True),
    Goal("Frechet distance less the painter's: at most 0", "frechet_distance_less_paint", most=0),
    Goal("Frechet distance less the plain ControlNet's: at most 0", "frechet_distance_less_plain",
         most=0),
    Goal("SSIM in place less the painter's: at least 0", "ssim_crop_less_paint", least=0),
    Goal("SSIM in place less the plain ControlNet's: at least 0", "ssim_crop_less_plain", least=0),
    Goal("RMSE in place less the painter's: at most 0", "rmse_crop_less_paint", most=0),
    Goal("RMSE in place less the plain ControlNet's: at most 0", "rmse_crop_less_plain", most=0),
    Goal("shortcut AUC of healthy repaintings: upper bound below 0.60", "shortcut_auc", most=0.6,
         of_high=True),
    Goal("seam AUC of healthy repaintings: upper bound below 0.60", "seam_auc", most=0.6,
         of_high=True),
    Goal("seconds per accepted sample on 2 CPU cores: at most 1", "seconds_per_accepted", most=1,
         device="cpu, 2 CPU cores"),
)


def table(rows: list[dict]) -> str:
    """The rows as text: one line a metric (and burden tertile), one column an arm."""
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    keys = list(dict.fromkeys((r["metric"], part_of(r)) for r in rows))
    lines = [f"{'':38}" + "".join(f"{a[:24]:>26}" for a in arms)]
    for metric, part in keys:
        cells = []
        for arm in arms:
            mine = [r for r in rows if (r["arm"], r["metric"], part_of(r)) == (arm, metric, part)]
            cells.append(f"{cell(mine[0]) if mine else '-':>26}")
        lines.append(f"{metric + (' (' + part + ')' if part else ''):38}" + "".join(cells))
    return "\n".join(lines)


def part_of(row: dict) -> str:
    """Which requests a row is of: "" all, or a third of the burdens."""
    return row["split"].partition(", fold ")[2].partition(", ")[2]


def whole(rows: list[dict]) -> list[dict]:
    """The rows that are not of a part of the requests."""
    return [r for r in rows if "burdens" not in r["split"]]


def markdown(rows: list[dict], columns: dict[str, str] = COLUMNS, bounds: bool = True) -> str:
    """The whole rows: one line an arm, with intervals or without."""
    lines = [f"| arm | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in dict.fromkeys(r["arm"] for r in rows):
        mine = {r["metric"]: r for r in whole(rows) if r["arm"] == arm}
        cells = [cell(mine[m], bounds) if m in mine else "-" for m in columns.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tertiles(rows: list[dict]) -> str:
    """Pass rates by burden tertile: one line a tertile and arm, and of how many slices."""
    lines = [f"| burdens | arm | slices | {' | '.join(PASS_RATES)} |",
             "|---" * (len(PASS_RATES) + 3) + "|"]
    parts = [r for r in rows if "burdens" in r["split"]]
    for part in dict.fromkeys(map(part_of, parts)):
        for arm in dict.fromkeys(r["arm"] for r in parts):
            mine = {r["metric"]: r for r in parts if (r["arm"], part_of(r)) == (arm, part)}
            cells = [cell(mine[m]) if m in mine else "-" for m in PASS_RATES.values()]
            if mine:
                n = next(iter(mine.values()))["n"]
                lines.append(f"| {part.removesuffix(' burdens')} | {arm} | {n} | "
                             f"{' | '.join(cells)} |")
    return "\n".join(lines)


def differences(rows: list[dict], to: str) -> str:
    """What the arms have more than the arm `to`, request by request: one line an arm."""
    mark, turned = "_diff_vs_", []
    for row in whole(rows):
        metric, _, other = row["metric"].partition(mark)
        if other == to:
            turned.append({**row, "metric": metric})
        elif other and row["arm"] == to:              # `other` was measured first
            bounds = [None if row[k] is None else -row[k] for k in ("high", "low")]
            turned.append({**row, "arm": other, "metric": metric, "value": -row["value"],
                           "low": bounds[0], "high": bounds[1]})
    return markdown(turned, {**PASS_RATES, "feature distance": "feature_distance"})


def goals(rows: list[dict], preset: str, plain: str) -> str:
    """The goals, one line each: mean, lowest and highest over the preset's seeds, and how many of
    them reach it; beside what real slices, the painter and the `plain` arm have."""
    found: dict[str, dict[str, dict]] = {}
    for row in whole(rows):
        if row["metric"] in found.setdefault(row["arm"], {}):
            raise UserError(f"There are two rows of {row['arm']}, {row['metric']}; goals are of "
                            "one measurement of an arm.")
        found[row["arm"]][row["metric"]] = row
    for mine in found.values():
        _add_compared(mine, found, plain)
    seeds = [mine for arm, mine in found.items()
             if re.fullmatch(re.escape(preset) + r"(-seed\d+)?", arm)]
    lines = [f"| goal | real | paint | {plain} | {preset}: mean of {len(seeds)} seeds (lowest to "
             "highest) | reached |", "|---" * 6 + "|"]
    for goal in GOALS:
        mine = [s[goal.metric] for s in seeds if goal.metric in s]
        others = [found.get(arm, {}).get(goal.metric) for arm in ("real", "paint", plain)]
        reached = f"{sum(map(goal.reached, mine))} of {len(seeds)}"
        missing = f", {len(seeds) - len(mine)} not measured" * (len(mine) < len(seeds))
        cells = [*("-" if r is None else cell(r, goal.of_high) for r in others),
                 _over_seeds(mine, goal.of_high), reached + missing]
        lines.append(f"| {goal.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _over_seeds(rows: list[dict], of_high: bool) -> str:
    if not rows:
        return "-"
    values = [r["value"] for r in rows]
    bounds = [r["high"] for r in rows if r["high"] is not None]
    told = f", upper bounds to {max(bounds):.3f}" if of_high and bounds else ""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}){told}"


def _add_compared(mine: dict[str, dict], found: dict[str, dict[str, dict]], plain: str) -> None:
    """Add what goals are put in and no row holds: ratios and differences to other arms."""
    def add(name: str, metric: str, other: dict | None, relate: Callable) -> None:
        if metric in mine and other and other["value"]:
            mine[name] = {**mine[metric], "value": relate(mine[metric]["value"], other["value"]),
                          "low": None, "high": None}

    add("dice_pass_own_to_real", "dice_pass_own", found["real"].get("dice_pass_own"), truediv)
    for kind in ("dice_pass", "qc_pass"):
        add(f"{kind}_independent_to_own", f"{kind}_independent", mine.get(f"{kind}_own"), truediv)
    for metric in ("frechet_distance", "ssim_crop", "rmse_crop"):
        for name, arm in (("paint", "paint"), ("plain", plain)):
            if mine is not found.get(arm):
                add(f"{metric}_less_{name}", metric, found.get(arm, {}).get(metric), sub)
    if f"feature_distance_diff_vs_{plain}" in mine:
        mine["feature_distance_diff_vs_plain"] = mine[f"feature_distance_diff_vs_{plain}"]


def cell(row: dict, bounds: bool = True) -> str:
    """A row's value and, where it has one, its interval."""
    told = bounds and row["low"] is not None
    return f"{row['value']:.3f}" + (f" ({row['low']:.3f}, {row['high']:.3f})" if told else "")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", type=_rows, help="JSON file of benchmarks.generator")
    parser.add_argument("--preset", default="roi-cpu", help="whose seeds the goals are asked of")
    parser.add_argument("--plain", default="roi-cpu-plain", help="arm without reward")
    arguments = parser.parse_args(words)
    rows, arms = arguments.rows, {r["arm"] for r in arguments.rows}
    if missing := sorted({"real", arguments.preset} - arms):
        parser.error(f"the file has no arm {missing[0]}; it has {', '.join(sorted(arms))}")
    print("\n\n".join((goals(rows, arguments.preset, arguments.plain), markdown(rows),
                       differences(rows, arguments.preset), markdown(rows, FURTHER),
                       tertiles(rows))))


def _rows(name: str) -> list[dict]:
    try:
        rows = json.loads(Path(name).read_text())
        if not {r["benchmark"] for r in rows} == {"generator"}:
            raise ValueError("rows of another benchmark")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{name} is no file of result rows ({error}); name one "
                                         "that benchmarks.generator has written") from error
    return rows


if __name__ == "__main__":
    main()
