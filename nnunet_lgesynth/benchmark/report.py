"""The benchmark's report as a page, and the README's table. Computes nothing.

Everything shown is handed over: number rows and sentences of `compare`, per-case rows and training
summaries of `collect`, commands, versions, pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from nnunet_lgesynth.benchmark.compare import PRIMARY, Comparison, reference_of
from nnunet_lgesynth.benchmark.page import (
    ACCENT,
    INK,
    PRIVATE,
    number,
    picture,
    plot,
    provenance,
    section,
    table,
    verdict,
    write_page,
)

__all__ = ["Report", "markdown_table", "write_report"]

ARM_COLUMNS = {**PRIMARY, "dice": "Dice", "balanced_accuracy": "balanced accuracy",
               "volume_mae_percent": "volume error, % of wall"}
COUNTS = ("tn", "fp", "fn", "tp")
CASE_COLUMNS = {"arm": "arm", "case": "patient", "fold": "fold", "seed": "seed", "dice": "Dice",
                "no_reflow_dice": "no-reflow Dice", "true_percent": "true % of wall",
                "predicted_percent": "predicted % of wall", "true_ml": "true mL",
                "predicted_ml": "predicted mL"}


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    `comparisons` maps a split's title to its `Comparison`; `pictures` maps captions to PNG files,
    which are embedded.
    """

    title: str
    comparisons: dict[str, Comparison]
    cases: list[dict]
    trainings: list[dict]
    commands: list[str]
    versions: dict[str, str]
    machine: str
    date: str
    pictures: dict[str, Path] = field(default_factory=dict)


def write_report(path: str | Path, report: Report) -> Path:
    """Write the HTML file (whole or not at all); returns its path."""
    path = Path(path)
    parts = [f'<p class="soft">{escape(report.date)} · {escape(report.machine)}</p>']
    for split, comparison in report.comparisons.items():
        parts += _split(split, comparison)
    rows = [r for c in report.comparisons.values() for r in c.rows]
    parts += [_trainings(report.trainings, rows), _pictures(report.pictures), _cases(report.cases),
              provenance(report.commands, report.versions, report.machine)]
    write_page(path, report.title, parts)
    return path


def markdown_table(rows: list[dict]) -> str:
    """One line an arm of one split's number rows, for a README."""
    columns = ["arm", *ARM_COLUMNS.values(), "TN FP FN TP", "patients", "seeds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for arm, found in _by_arm(rows).items():
        cells = [_with_interval(found.get(m)) for m in ARM_COLUMNS]
        counts = " ".join(_count(found[c]["value"]) for c in COUNTS)
        cells += [counts, str(found["dice"]["n"]), str(len(found["dice"]["seeds"]))]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _split(split: str, comparison: Comparison) -> list[str]:
    return [f'<section><p class="soft">{escape(split)}</p>', verdict(*comparison.verdict),
            _arms(comparison.rows), _differences(comparison.rows), _detection(comparison.rows),
            _plots(comparison.patients), "</section>"]


def _arms(rows: list[dict]) -> str:
    body = []
    for arm, found in _by_arm(rows).items():
        cells = [_cell(found.get(m), found.get(f"{m}_seed_std")) for m in ARM_COLUMNS]
        about = f"<td>{found['dice']['n']}</td><td>{len(found['dice']['seeds'])}</td>"
        body.append(f"<tr><td>{escape(arm)}</td>{''.join(cells)}{about}</tr>")
    head = ["arm", *ARM_COLUMNS.values(), "patients", "seeds"]
    return section("Arms", table(head, body), (
        "Means over patients of the mean over seeds; below, 95 % bootstrap interval over patients "
        "and, after ±, standard deviation between seeds. Scar is infarct plus no-reflow; Dice-TP "
        "counts only patients with scar, Dice counts two empty masks as 1. Arms named +filter have "
        "scar below a fixed share of the wall removed."))


def _differences(rows: list[dict]) -> str:
    body = []
    for arm, found in _by_arm(rows).items():
        reference = reference_of(arm)
        for metric, name in ARM_COLUMNS.items():
            row = found.get(f"{metric}_diff_vs_{reference}")
            if row is None or row["value"] is None:
                continue
            bounds = ("–" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}")
            p = found[f"{metric}_p_vs_{reference}"]["value"]
            cells = [f"{escape(arm)} − {escape(reference)}", escape(name), f"{row['value']:+.3f}",
                     bounds, "–" if p is None else f"{p:.3f}", str(row["n"])]
            body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    if not body:
        return ""
    head = ["difference", "metric", "value", "95 % interval", "p", "patients"]
    return section("Paired differences", table(head, body), (
        "Paired by patient and seed; p from flipping the arms patient by patient. Not corrected "
        "for the number of comparisons."))


def _detection(rows: list[dict]) -> str:
    body = []
    for arm, found in _by_arm(rows).items():
        cells = [_count(found[c]["value"]) for c in COUNTS]
        cells += [number(found["accuracy"]["value"]), number(found["balanced_accuracy"]["value"])]
        body.append(f"<tr><td>{escape(arm)}</td>" + "".join(f"<td>{c}</td>" for c in cells)
                    + "</tr>")
    head = ["arm", "true neg.", "false pos.", "false neg.", "true pos.", "accuracy",
            "balanced accuracy"]
    return section("Scar found or not, per patient", table(head, body),
                   "One predicted voxel counts as found; counts are means over seeds.")


def _plots(patients: list[dict]) -> str:
    dice = {(p["arm"], p["case"]): p["dice"] for p in patients}
    figures = []
    for arm in dict.fromkeys(p["arm"] for p in patients):
        reference = reference_of(arm)
        pairs = [(dice[reference, c], value) for (a, c), value in dice.items()
                 if a == arm and (reference, c) in dice]
        if arm != reference and pairs:
            figures.append(f"<figure>{_scatter(pairs, arm, reference)}</figure>")
    if not figures:
        return ""
    return section("Each patient, paired", f'<div class="plots">{"".join(figures)}</div>',
                   "Scar Dice, mean over seeds; a point above the diagonal is a patient who "
                   "gained.")


def _scatter(pairs: list[tuple[float, float]], arm: str, reference: str) -> str:
    def draw(axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6)
        axes.plot(*zip(*pairs), "o", color=ACCENT, markersize=5, alpha=0.75, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=reference, ylabel=arm)
    return plot(draw, salt=arm)


def _trainings(trainings: list[dict], rows: list[dict]) -> str:
    body = []
    for t in trainings:
        rate = "–" if t["qc_pass_own"] is None else (f"{t['qc_pass_own']:.2f}"
                                                     f"<small>of {t['drafted']}</small>")
        failed = ", ".join(f"{escape(k)} {v}" for k, v in sorted(t["failed_checks"].items())) or "–"
        last = t["injected_fraction_last"]
        cells = [escape(t["arm"]), t["fold"], t["seed"], t["epochs"] or "–",
                 number(t["injected_fraction"]) + ("" if last is None
                                                   else f"<small>last {number(last)}</small>"),
                 _served(t), rate, failed, number(t["minutes"], 1)]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = ["arm", "fold", "seed", "epochs", "injected fraction", "unique samples", "QC pass rate",
            "failed checks", "minutes"]
    return section("What was injected", table(head, body), (
        "Injected fraction: share of training patches with a changed voxel, mean after warm-up. "
        "QC: accepted of drafted slices; failed checks are those of the cases kept in the pool's "
        f"manifest.{_real_rate(rows)}"))


def _real_rate(rows: list[dict]) -> str:
    return "".join(f" Share of {r['n']} real scar slices found as well by the real-only model: "
                   f"{number(r['value'])}." for r in rows if r["metric"] == "qc_pass_real")


def _served(training: dict) -> str:
    parts = [f"{training[key]} {name}" for key, name in (("unique_slices", "slices"),
             ("unique_cases", "cases")) if training[key] is not None]
    pool = f"<small>{training['pool_slices']} slices in the pool</small>"
    return ", ".join(parts) + pool if parts else "–"


def _pictures(pictures: dict[str, Path]) -> str:
    figures = [picture(caption, Path(path).read_bytes()) for caption, path in pictures.items()]
    return section("Samples", "".join(figures), PRIVATE) if figures else ""


def _cases(cases: Iterable[dict]) -> str:
    body = []
    for case in cases:
        cells = [number(v, 2) if isinstance(v := case[k], float) or v is None else escape(str(v))
                 for k in CASE_COLUMNS]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return (f"<details><summary>Every patient ({len(body)} rows)</summary>"
            + table(CASE_COLUMNS.values(), body) + "</details>")


def _by_arm(rows: list[dict]) -> dict[str, dict[str, dict]]:
    arms: dict[str, dict[str, dict]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["metric"]] = row
    return {arm: found for arm, found in arms.items() if "dice" in found}


def _cell(row: dict | None, spread: dict | None) -> str:
    if row is None or row["value"] is None:
        return "<td>–</td>"
    text = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    if spread is not None and spread["value"] is not None:
        text += f" ± {spread['value']:.3f}"
    return f"<td>{row['value']:.3f}<small>{text}</small></td>"


def _with_interval(row: dict | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    bounds = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['value']:.3f}{bounds}"


def _count(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.1f}"
