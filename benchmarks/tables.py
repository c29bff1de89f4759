"""The rows of `benchmarks.generator` for reading: as text, and as the tables of docs/samples.md."""

from __future__ import annotations

__all__ = ["COLUMNS", "PASS_RATES", "cell", "markdown", "table", "whole"]

PASS_RATES = {"Dice > 0.6, own judge": "dice_pass_own",
              "Dice > 0.6, independent": "dice_pass_independent",
              "whole QC, own judge": "qc_pass_own",
              "whole QC, independent": "qc_pass_independent"}
COLUMNS = {**PASS_RATES, "feature distance": "feature_distance", "burden error": "burden_error",
           "transmurality error": "transmurality_error", "SSIM in place": "ssim_crop",
           "RMSE in place": "rmse_crop", "shortcut AUC": "shortcut_auc", "seam AUC": "seam_auc",
           "s per accepted": "seconds_per_accepted"}


def table(rows: list[dict]) -> str:
    """The rows as text: one line a metric (and burden tertile), one column an arm."""
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    keys = list(dict.fromkeys((r["metric"], r["split"].partition(", fold ")[2].partition(", ")[2])
                              for r in rows))
    lines = [f"{'':38}" + "".join(f"{a[:24]:>26}" for a in arms)]
    for metric, part in keys:
        cells = []
        for arm in arms:
            mine = [r for r in rows if r["arm"] == arm and r["metric"] == metric
                    and r["split"].endswith(part) and (part or "burdens" not in r["split"])]
            cells.append(f"{cell(mine[0]) if mine else '-':>26}")
        lines.append(f"{metric + (' (' + part + ')' if part else ''):38}" + "".join(cells))
    return "\n".join(lines)


def whole(rows: list[dict]) -> list[dict]:
    """The rows that are not of a part of the requests."""
    return [r for r in rows if "burdens" not in r["split"]]


def markdown(rows: list[dict]) -> str:
    """The whole rows: one line an arm."""
    lines = [f"| arm | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for arm in dict.fromkeys(r["arm"] for r in rows):
        mine = {r["metric"]: r for r in whole(rows) if r["arm"] == arm}
        cells = [cell(mine[m]) if m in mine else "-" for m in COLUMNS.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: dict) -> str:
    """A row's value and interval."""
    bounds = "" if row["low"] is None else f" ({row['low']:.3f}, {row['high']:.3f})"
    return f"{row['value']:.3f}{bounds}"
