"""The report: one HTML file without outside references, and the README's table. Computes nothing.

Everything shown is handed over: number rows and sentences of `compare`, per-case rows and training
summaries of `collect`, commands, versions, pictures. Light and dark follow the reader's system.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from nnunet_lgesynth.benchmark.compare import PRIMARY, Comparison, reference_of
from nnunet_lgesynth.config import write_text

__all__ = ["Report", "markdown_table", "write_report"]

ARM_COLUMNS = {**PRIMARY, "dice": "Dice", "balanced_accuracy": "balanced accuracy",
               "volume_mae_percent": "volume error, % of wall"}
COUNTS = ("tn", "fp", "fn", "tp")
CASE_COLUMNS = {"arm": "arm", "case": "patient", "fold": "fold", "seed": "seed", "dice": "Dice",
                "no_reflow_dice": "no-reflow Dice", "true_percent": "true % of wall",
                "predicted_percent": "predicted % of wall", "true_ml": "true mL",
                "predicted_ml": "predicted mL"}
INK = "#010203"       # replaced by the page's text colour
ACCENT = "#2f81c7"

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--line:#d5dae0;--page:#fff;--box:#f3f6f9}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#9aa5b1;--line:#39424c;--page:#14181c;
--box:#1e242a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:62rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.45rem;line-height:1.25;margin:0 0 .2rem}h2{font-size:1.12rem;margin:2.2rem 0 .5rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}
.verdict{background:var(--box);border-left:4px solid #2f81c7;padding:.8rem 1rem;margin:1.2rem 0}
.verdict p:first-child{font-weight:600;font-size:1.05rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem .35rem 0;text-align:right;border-bottom:1px solid var(--line);
vertical-align:top;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{font-weight:600}
td small{display:block;color:var(--soft)}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots figure{flex:1 1 16rem;max-width:22rem;margin:0}
figure svg,figure img{width:100%;height:auto;display:block}
figure.wide{margin:0 0 1rem}figcaption{color:var(--soft);font-size:.85rem}
details{margin-top:2rem}summary{cursor:pointer;font-weight:600}
pre{background:var(--box);padding:.7rem;overflow-x:auto;font-size:.8rem}
"""


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
    parts = [f"<h1>{escape(report.title)}</h1>",
             f'<p class="soft">{escape(report.date)} · {escape(report.machine)}</p>']
    for split, comparison in report.comparisons.items():
        parts += _split(split, comparison)
    rows = [r for c in report.comparisons.values() for r in c.rows]
    parts += [_trainings(report.trainings, rows), _pictures(report.pictures), _cases(report.cases),
              _provenance(report)]
    page = (f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>"
            f"<body>{''.join(parts)}</body></html>\n")
    write_text(path, page)
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
    first, *others = comparison.verdict
    sentences = f"<p>{escape(first)}</p>" + "".join(
        f'<p class="soft">{escape(s)}</p>' for s in others)
    return [f'<section><p class="soft">{escape(split)}</p><div class="verdict">{sentences}</div>',
            _arms(comparison.rows), _differences(comparison.rows), _detection(comparison.rows),
            _plots(comparison.patients), "</section>"]


def _arms(rows: list[dict]) -> str:
    body = []
    for arm, found in _by_arm(rows).items():
        cells = [_cell(found.get(m), found.get(f"{m}_seed_std")) for m in ARM_COLUMNS]
        about = f"<td>{found['dice']['n']}</td><td>{len(found['dice']['seeds'])}</td>"
        body.append(f"<tr><td>{escape(arm)}</td>{''.join(cells)}{about}</tr>")
    head = ["arm", *ARM_COLUMNS.values(), "patients", "seeds"]
    return _section("Arms", _table(head, body), (
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
    return _section("Paired differences", _table(head, body), (
        "Paired by patient and seed; p from flipping the arms patient by patient. Not corrected "
        "for the number of comparisons."))


def _detection(rows: list[dict]) -> str:
    body = []
    for arm, found in _by_arm(rows).items():
        cells = [_count(found[c]["value"]) for c in COUNTS]
        cells += [_number(found["accuracy"]["value"]), _number(found["balanced_accuracy"]["value"])]
        body.append(f"<tr><td>{escape(arm)}</td>" + "".join(f"<td>{c}</td>" for c in cells)
                    + "</tr>")
    head = ["arm", "true neg.", "false pos.", "false neg.", "true pos.", "accuracy",
            "balanced accuracy"]
    return _section("Scar found or not, per patient", _table(head, body),
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
    return _section("Each patient, paired", f'<div class="plots">{"".join(figures)}</div>',
                    "Scar Dice, mean over seeds; a point above the diagonal is a patient who "
                    "gained.")


def _scatter(pairs: list[tuple[float, float]], arm: str, reference: str) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": arm, "text.color": INK,
                     "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
                     "ytick.color": INK, "font.family": "sans-serif"}):
        figure = Figure(figsize=(3.3, 3.3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6)
        axes.plot(*zip(*pairs), "o", color=ACCENT, markersize=5, alpha=0.75, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=reference, ylabel=arm)
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    return svg.replace(INK, "currentColor")


def _trainings(trainings: list[dict], rows: list[dict]) -> str:
    body = []
    for t in trainings:
        rate = "–" if t["qc_pass_own"] is None else (f"{t['qc_pass_own']:.2f}"
                                                     f"<small>of {t['drafted']}</small>")
        failed = ", ".join(f"{escape(k)} {v}" for k, v in sorted(t["failed_checks"].items())) or "–"
        last = t["injected_fraction_last"]
        cells = [escape(t["arm"]), t["fold"], t["seed"], t["epochs"] or "–",
                 _number(t["injected_fraction"]) + ("" if last is None
                                                    else f"<small>last {_number(last)}</small>"),
                 _served(t), rate, failed, _number(t["minutes"], 1)]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = ["arm", "fold", "seed", "epochs", "injected fraction", "unique samples", "QC pass rate",
            "failed checks", "minutes"]
    return _section("What was injected", _table(head, body), (
        "Injected fraction: share of training patches with a changed voxel, mean after warm-up. "
        "QC: accepted of drafted slices; failed checks are those of the cases kept in the pool's "
        f"manifest.{_real_rate(rows)}"))


def _real_rate(rows: list[dict]) -> str:
    return "".join(f" Share of {r['n']} real scar slices found as well by the real-only model: "
                   f"{_number(r['value'])}." for r in rows if r["metric"] == "qc_pass_real")


def _served(training: dict) -> str:
    parts = [f"{training[key]} {name}" for key, name in (("unique_slices", "slices"),
             ("unique_cases", "cases")) if training[key] is not None]
    pool = f"<small>{training['pool_slices']} slices in the pool</small>"
    return ", ".join(parts) + pool if parts else "–"


def _pictures(pictures: dict[str, Path]) -> str:
    figures = []
    for caption, path in pictures.items():
        data = base64.b64encode(Path(path).read_bytes()).decode()
        figures.append(f'<figure class="wide"><img alt="{escape(caption)}" src="data:image/png;'
                       f'base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>')
    return "<h2>Samples</h2>" + "".join(figures) if figures else ""


def _cases(cases: Iterable[dict]) -> str:
    body = []
    for case in cases:
        cells = [_number(v, 2) if isinstance(v := case[k], float) or v is None else escape(str(v))
                 for k in CASE_COLUMNS]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return (f"<details><summary>Every patient ({len(body)} rows)</summary>"
            + _table(CASE_COLUMNS.values(), body) + "</details>")


def _provenance(report: Report) -> str:
    commands = escape("\n".join(report.commands))
    versions = escape(json.dumps(report.versions, indent=1))
    return (f"<details><summary>Commands, versions, machine</summary><pre>{commands}</pre>"
            f"<pre>{versions}</pre><p>{escape(report.machine)}</p></details>")


def _by_arm(rows: list[dict]) -> dict[str, dict[str, dict]]:
    arms: dict[str, dict[str, dict]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["metric"]] = row
    return {arm: found for arm, found in arms.items() if "dice" in found}


def _section(title: str, content: str, note: str) -> str:
    return f'<h2>{title}</h2>{content}<p class="soft">{note}</p>'


def _table(head: Iterable[str], body: list[str]) -> str:
    heads = "".join(f"<th>{escape(h)}</th>" for h in head)
    return (f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>")


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


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _count(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.1f}"
