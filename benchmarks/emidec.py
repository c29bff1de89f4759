"""The EMIDEC benchmark's numbers, again from the recorded patients alone: no data, no network.

    python -m benchmarks.emidec --folds 0 1 2 3 -o benchmarks/results/emidec_roi.json

The settings were chosen on fold 4 and are fixed, see docs/benchmark.md. Rows are those that
`lgesynth benchmark` with these settings writes into results.json; tables and goals go to the screen
and, word for word, into the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import exit_code, result_file
from nnunet_lgesynth.benchmark.compare import compare, training_rows
from nnunet_lgesynth.benchmark.markdown import by_arm, markdown_differences, markdown_table
from nnunet_lgesynth.benchmark.records import FILTERED, Records
from nnunet_lgesynth.benchmark.settings import Settings
from nnunet_lgesynth.benchmark.verdict import PRIMARY, proven, verdict
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import write_json

__all__ = ["ARMS", "GOALS", "RESULTS", "goals", "numbers", "settings", "tables"]

RESULTS = Path(__file__).parent / "results"
TOLD = "p=1.0,f=1.0,c=1.0"
SYNTH, PAINT = f"lgesynth:{TOLD}", f"paint:{TOLD}"
ARMS = ("real", PAINT, SYNTH)
SHOWN = (*PRIMARY, "dice_tp_small")


@dataclass(frozen=True)
class Goal:
    """What the inpainter's arm should reach: a metric of at least `least`; a difference also with
    an interval clear of zero and, since few patients have too narrow ones, a p below 0.05."""

    title: str
    metric: str                   # with @ in the place of the filtered arms' suffix
    least: float

    def reached(self, found: dict[str, dict], suffix: str) -> bool:
        """By an arm's rows."""
        metric = self.metric.replace("@", suffix)
        row, p = found.get(metric), found.get(metric.replace("_diff_vs_", "_p_vs_"))
        if row is None or row["value"] is None or row["value"] < self.least:
            return False
        return row is p or proven((row["low"], row["high"]), p["value"]) == 1


GOALS = (Goal("Dice-TP over `real`: +0.05", "dice_tp_diff_vs_real@", 0.05),
         Goal("no-reflow Dice over `real`: +0.20", "no_reflow_dice_diff_vs_real@", 0.20),
         Goal("Dice-TP of the smallest third over `real`: +0.08", "dice_tp_small_diff_vs_real@",
              0.08),
         Goal("slice AUROC: 0.97", "slice_auroc", 0.97),
         *(Goal(f"{name} over `paint`: above 0", f"{metric}_diff_vs_{PAINT}@", 0.0)
           for metric, name in PRIMARY.items()))


def settings(folds: Sequence[int], seeds: int = 1) -> Settings:
    """The frozen settings."""
    return Settings("Dataset116_EMIDECROI", "2d", ARMS, tuple(folds), seeds, Path("benchmark"),
                    preset="roi-cpu", device="cpu", epochs=30, iterations=50, warm_up=64, half=True)


def numbers(told: Settings, results: Path = RESULTS) -> list[dict]:
    """Number rows of all that is recorded with these settings."""
    cases, summaries = Records.below(results, told.dataset).of(
        [(arm, told.recipe(arm)) for arm in told.arms], told.folds)
    missing = sorted({f"{arm} on fold {fold}" for arm in told.arms for fold in told.folds}
                     - {f"{r['arm']} on fold {r['fold']}" for r in cases})
    if missing:
        raise UserError(f"Not recorded: {', '.join(missing)}; name other --folds.")
    cases.sort(key=lambda r: told.arms.index(r["arm"].removesuffix(FILTERED)))
    context = told.context("validation")
    return [*compare(cases, context).rows, *training_rows(summaries, context)]


def goals(rows: list[dict]) -> str:
    """A line a goal: what came out, as predicted and after the volume filter."""
    lines = ["| goal | came out | after the volume filter | reached |", "|---|---|---|---|"]
    for goal in GOALS:
        told, reached = [], []
        for suffix, name in (("", "yes"), (FILTERED, "after the filter")):
            found = {r["metric"]: r for r in rows if r["arm"] == SYNTH + suffix}
            told.append(_told(found.get(goal.metric.replace("@", suffix)), "_vs_" in goal.metric))
            reached += [name] * goal.reached(found, suffix)
        lines.append(f"| {goal.title} | {' | '.join(told)} | {(reached or ['no'])[0]} |")
    lines.append("| 20 real patients with synthesis do what 40 real ones do | not measured | | |")
    return "\n".join(lines) + "\n"


def _told(row: dict | None, signed: bool) -> str:
    if row is None or row["value"] is None:
        return "-"
    sign = "+" if signed else ""
    bounds = ("no interval" if row["low"] is None
              else f"{row['low']:{sign}.3f} to {row['high']:{sign}.3f}")
    return f"{row['value']:{sign}.3f} ({bounds}, n = {row['n']})"


def tables(rows: list[dict]) -> str:
    """Arms, differences and goals, as the README shows them."""
    arms = [arm for arm in by_arm(rows) if not arm.endswith(FILTERED)]
    return "\n".join([markdown_table(rows), markdown_differences(rows, SHOWN, arms), goals(rows)])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--seeds", type=int, default=1, help="as told to lgesynth benchmark")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of recorded rows")
    parser.add_argument("-o", type=result_file, help="write the number rows there")
    arguments = parser.parse_args(words)
    rows = numbers(settings(arguments.folds, arguments.seeds), arguments.results)
    if arguments.o:
        write_json(arguments.o, rows)
    print(tables(rows), *verdict(rows), sep="\n")


if __name__ == "__main__":
    raise SystemExit(exit_code("benchmarks.emidec", main))
