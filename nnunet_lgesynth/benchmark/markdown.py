"""The benchmark's numbers in words and cells: what its page and its Markdown show alike. Computes
nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nnunet_lgesynth.benchmark.arms import COUNTS, UNITS
from nnunet_lgesynth.benchmark.compare import Comparison
from nnunet_lgesynth.benchmark.page import number
from nnunet_lgesynth.benchmark.variants import further_references, reference_of
from nnunet_lgesynth.benchmark.verdict import PRIMARY

__all__ = ["ARM_COLUMNS", "DIFFERENCE_COLUMNS", "NAMES", "audits_markdown", "by_arm", "count",
           "difference_cells", "markdown", "markdown_differences", "markdown_table", "said_before",
           "with_about"]

ARM_COLUMNS = {**PRIMARY, "dice": "Dice", "balanced_accuracy": "balanced accuracy",
               "volume_mae_percent": "volume error, % of wall"}
NAMES = {
    **ARM_COLUMNS, "dice_tp_small": "Dice-TP, smallest third of scars", "hd95_mm": "HD95",
    "asd_mm": "average surface distance", "volume_mae_percent": "volume error",
    "volume_bias_percent": "volume bias", "volume_mae_ml": "volume error",
    "volume_bias_ml": "volume bias", "no_reflow_mae_ml": "no-reflow volume error",
    "no_reflow_bias_ml": "no-reflow volume bias",
    "no_reflow_mae_percent": "no-reflow volume error",
    "no_reflow_bias_percent": "no-reflow volume bias", "transmurality_mae": "transmurality error",
    "segment_mae_percent": "AHA segments, error of their scar",
    "segment_jaccard": "AHA segments with scar, Jaccard index",
    "segment_kappa": "AHA segments, weighted kappa of five classes", "lesion_f1": "lesion-wise F1",
    "patient_auroc": "patient AUROC over scar volume",
    **{f"{of}{name}": f"{of.replace('_', ' ')}{name.replace('_', ' ')}" for of in ("", "slice_")
       for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity")}}
DIFFERENCES = (*ARM_COLUMNS, "dice_tp_small", "hd95_mm", "asd_mm")
DIFFERENCE_COLUMNS = ("metric", "value", "95 % interval", "± seeds", "p", "p, corrected",
                      "detectable", "patients")


def markdown(split: str, comparison: Comparison, before: list[str]) -> str:
    """A split's verdict, its table, and its paired differences."""
    return "\n\n".join([f"## {split}", f"**{comparison.verdict[0]}**", *comparison.verdict[1:],
                        *said_before(before), markdown_table(comparison.rows),
                        markdown_differences(comparison.rows)])


def audits_markdown(audits: list[dict]) -> str:
    """A paragraph on the generators' audits; empty where there are none."""
    lines = [f"- {a['generator']}: {' '.join(a['sentences'])}" for a in audits]
    return "\n".join(["## Audit of the generators", "", *lines]) + "\n" if lines else ""


def markdown_table(rows: list[dict]) -> str:
    """One line an arm of one split's number rows, for a README."""
    columns = ["arm", *ARM_COLUMNS.values(), "TN FP FN TP", "patients", "seeds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for arm, found in by_arm(rows).items():
        cells = [" ".join(with_about(found, metric)).rstrip() for metric in ARM_COLUMNS]
        counts = " ".join(count(found[c]["value"]) for c in COUNTS)
        cells += [counts, str(found["dice"]["n"]), str(len(found["dice"]["seeds"]))]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown_differences(rows: list[dict], metrics: Iterable[str] = DIFFERENCES,
                         arms: Iterable[str] | None = None) -> str:
    """One line a paired difference of one split's number rows; of all arms, or of these."""
    head = ["difference", *DIFFERENCE_COLUMNS]
    lines = [f"| {' | '.join(cells)} |" for cells in (
        head, ["---"] * len(head), *([f"{arm} − {reference}", *cells] for arm, reference, cells in
                                     difference_cells(rows, metrics)
                                     if arms is None or arm in arms))]
    return "\n".join(lines) + "\n"


def said_before(before: list[str]) -> list[str]:
    """What was stated before each run, as sentences."""
    return [f"Stated before {'the run' if len(before) == 1 else 'each run'}: {said}"
            for said in before]


def difference_cells(rows: list[dict], metrics: Iterable[str] = DIFFERENCES
                     ) -> Iterator[tuple[str, str, list[str]]]:
    """(arm, reference, cells of DIFFERENCE_COLUMNS) of each paired difference that is shown."""
    arms = by_arm(rows)
    shown = [(arm, reference, metric) for arm in arms
             for reference in (reference_of(arm), *further_references(arm, arms))
             for metric in metrics]
    for arm, reference, metric in shown:
        row = arms[arm].get(f"{metric}_diff_vs_{reference}")
        if row is None or row["value"] is None:
            continue
        bounds = "–" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
        yield arm, reference, [
            NAMES[metric] + (f", {UNITS[metric]}" if UNITS[metric] == "mm" else ""),
            f"{row['value']:+.3f}", bounds,
            number(arms[arm].get(f"{metric}_diff_seed_std_vs_{reference}", {}).get("value")),
            *(number(arms[arm].get(f"{metric}_{what}_vs_{reference}", {}).get("value"))
              for what in ("p", "p_holm", "detectable")), str(row["n"])]


def by_arm(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Number rows of each arm that has patients, by metric."""
    arms: dict[str, dict[str, dict]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["metric"]] = row
    return {arm: found for arm, found in arms.items() if "dice" in found}


def with_about(found: dict[str, dict], metric: str) -> tuple[str, str]:
    """A metric of an arm; its interval, seed spread, and number of patients where not all have it.
    """
    row = found.get(metric)
    if row is None or row["value"] is None:
        return "–", ""
    about = [] if row["low"] is None else [f"({row['low']:.3f} to {row['high']:.3f})"]
    spread = found.get(f"{metric}_seed_std")
    if spread is not None and spread["value"] is not None:
        about.append(f"± {spread['value']:.3f}")
    if row["n"] < found["dice"]["n"]:
        about.append(f"(n = {row['n']})")
    return f"{row['value']:.3f}", " ".join(about)


def count(value: float) -> str:
    """A count, or a mean of counts over seeds."""
    return f"{value:g}" if value == int(value) else f"{value:.1f}"
