"""The benchmark's report as a page. Computes nothing.

Everything shown is handed over: number rows and sentences of `compare`, per-case rows and training
summaries of `collect`, commands, versions, pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from nnunet_lgesynth.benchmark import plots
from nnunet_lgesynth.benchmark.arms import COUNTS, UNITS
from nnunet_lgesynth.benchmark.compare import Comparison
from nnunet_lgesynth.benchmark.markdown import (
    ARM_COLUMNS,
    DIFFERENCE_COLUMNS,
    NAMES,
    by_arm,
    count,
    difference_cells,
    said_before,
    with_about,
)
from nnunet_lgesynth.benchmark.page import (
    PRIVATE,
    breakable,
    folded,
    number,
    picture,
    provenance,
    section,
    table,
    verdict,
    write_page,
)
from nnunet_lgesynth.benchmark.records import FILTERED
from nnunet_lgesynth.benchmark.variants import reference_of

__all__ = ["Report", "write_report"]

CASE_COLUMNS = {"arm": "arm", "case": "patient", "fold": "fold", "seed": "seed", "dice": "Dice",
                "no_reflow_dice": "no-reflow Dice", "true_percent": "true % of wall",
                "predicted_percent": "predicted % of wall", "true_ml": "true mL",
                "predicted_ml": "predicted mL"}


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    `comparisons` maps a split's title to its `Comparison`, `before` to what was stated before each
    run; `audits` are those of `audits.audit_generators`; `hashes` are of splits, plans, arms'
    settings and generators; `cases` are the splits' unfiltered
    per-case rows, `pictures` maps captions to PNG files, which are embedded.
    """

    title: str
    comparisons: dict[str, Comparison]
    before: dict[str, list[str]]
    cases: dict[str, list[dict]]
    trainings: list[dict]
    audits: list[dict]
    commands: list[str]
    hashes: dict[str, dict]
    versions: dict[str, str]
    machine: str
    date: str
    pictures: dict[str, Path] = field(default_factory=dict)


def write_report(path: str | Path, report: Report) -> Path:
    """Write the HTML file (whole or not at all); returns its path."""
    path = Path(path)
    parts = [f'<p class="soft">{escape(report.date)} · {escape(report.machine)}</p>']
    for split, comparison in report.comparisons.items():
        parts += _split(split, comparison, report.before.get(split, []), report.cases[split])
    rows = [r for c in report.comparisons.values() for r in c.rows]
    parts += [_trainings(report.trainings, rows), _audits(report.audits),
              _pictures(report.pictures),
              _cases([r for rows in report.cases.values() for r in rows]),
              provenance(report.commands, report.versions, report.machine, report.hashes)]
    write_page(path, report.title, parts)
    return path


def _split(split: str, comparison: Comparison, before: list[str], cases: list[dict]) -> list[str]:
    stated = said_before(before)
    return [f'<section><p class="soft">{escape(split)}</p>',
            verdict(*comparison.verdict, *stated * (len(stated) == 1)),
            _folded_statements(stated), _arms(comparison.rows),
            plots.forest(comparison.rows), _differences(comparison.rows),
            _detection(comparison.rows), plots.paired(comparison.patients),
            plots.doses(comparison.rows), plots.bland_altman(cases), plots.segments(cases),
            _everything(comparison.rows), "</section>"]


def _folded_statements(stated: list[str]) -> str:
    """Where runs of several days went into the folder; a single one stands in the verdict."""
    return "" if len(stated) < 2 else folded(f"Stated before each run ({len(stated)})", "".join(
        f'<p class="soft">{escape(said)}</p>' for said in stated))


def _arms(rows: list[dict]) -> str:
    body = []
    for arm, found in by_arm(rows).items():
        cells = [_cell(found, m) for m in ARM_COLUMNS]
        about = f"<td>{found['dice']['n']}</td><td>{len(found['dice']['seeds'])}</td>"
        body.append(f"<tr><td>{breakable(arm)}</td>{''.join(cells)}{about}</tr>")
    head = ["arm", *ARM_COLUMNS.values(), "patients", "seeds"]
    return section("Arms", table(head, body), (
        "Means over patients of the mean over seeds; below, 95 % bootstrap interval over patients "
        "and, after ±, standard deviation between seeds (on external images between folds and "
        "seeds). Scar is infarct plus no-reflow; Dice-TP "
        "counts only patients with scar, Dice counts two empty masks as 1. Arms named +filter have "
        "scar below a fixed share of the wall removed."))


def _differences(rows: list[dict]) -> str:
    body: dict[bool, list[str]] = {False: [], True: []}         # of arms as they are; filtered
    before = None
    for arm, reference, cells in difference_cells(rows):
        lines = body[arm.endswith(FILTERED)]
        if before != (before := (arm, reference)):
            lines.append(f'<tr><td class="group" colspan="{len(DIFFERENCE_COLUMNS)}">'
                         f"{breakable(arm)} − {breakable(reference)}</td></tr>")
        lines.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    if not any(body.values()):
        return ""
    tables = {filtered: table(DIFFERENCE_COLUMNS, lines)
              for filtered, lines in body.items() if lines}
    if True in tables:
        tables[True] = folded("Paired differences after the volume filter", tables[True])
    return section("Paired differences", "".join(tables.values()), (
        "Paired by patient and seed; p from flipping the arms patient by patient, corrected (Holm) "
        "over arms and primary metrics, on which alone the verdict rests; what has no corrected p "
        "decides nothing; filtered arms are corrected among themselves. Surface distances are of "
        "patients in whom both arms find scar. Detectable: smallest "
        "mean difference that a t-test of so many patients finds in 80 % of studies, by the spread "
        "seen here."))


def _detection(rows: list[dict]) -> str:
    body = []
    for arm, found in by_arm(rows).items():
        for of, prefix in (("patients", ""), ("slices", "slice_")):
            cells = [breakable(arm), of, *(count(found[f"{prefix}{c}"]["value"]) for c in COUNTS),
                     *(number(found[f"{prefix}{m}"]["value"]) for m in (
                         "sensitivity", "specificity", "accuracy", "balanced_accuracy"))]
            tested = found.get(f"detection_p_mcnemar_vs_{reference_of(arm)}")
            if of == "patients" and tested is not None:
                gained, lost = (found[f"detection_{k}_vs_{reference_of(arm)}"]["value"]
                                for k in ("gained", "lost"))
                cells.append(f"+{gained:g} −{lost:g}<small>p = {tested['value']:.3f}</small>")
            else:
                cells.append("–")
            body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = ["arm", "of", "true neg.", "false pos.", "false neg.", "true pos.", "sensitivity",
            "specificity", "accuracy", "balanced accuracy", "told right, against real"]
    return section("Scar found or not", table(head, body), (
        "One predicted voxel counts as found; counts are means over seeds. Last column: patients "
        "whom only this arm, and whom only the reference tells right (by most seeds), with "
        "McNemar's exact p."))


def _everything(rows: list[dict]) -> str:
    """All metrics, arms as columns."""
    arms, body = by_arm(rows), []
    for metric, unit in UNITS.items():
        if any(found[metric]["value"] is not None for found in arms.values() if metric in found):
            cells = "".join(_cell(found, metric) for found in arms.values())
            body.append(f"<tr><td>{escape(NAMES[metric])}<small>{escape(unit)}</small></td>"
                        f"{cells}</tr>")
    return folded(f"All metrics ({len(body)})", table(["metric", *arms], body))


def _trainings(trainings: list[dict], rows: list[dict]) -> str:
    body = []
    for t in trainings:
        rate = "–" if t["qc_pass_own"] is None else (f"{t['qc_pass_own']:.2f}"
                                                     f"<small>of {t['drafted']}</small>")
        failed = ", ".join(f"{escape(k)} {v}" for k, v in sorted(t["failed_checks"].items())) or "–"
        last = t["injected_fraction_last"]
        cells = [breakable(t["arm"]), t["fold"], t["seed"], t["epochs"] or "–",
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


def _audits(audits: list[dict]) -> str:
    if not audits:
        return ""
    outcome = {True: "passed", False: "failed", None: "none"}
    body = [f"<tr><td>{escape(a['generator'])}</td><td>{outcome[a['passed']]}</td>"
            f'<td class="text">{escape(" ".join(a["sentences"]))}</td></tr>' for a in audits]
    return section("Audit of the generators", table(["generator", "audit", "found"], body), (
        "Does it repeat training scars, do seeds differ, are requests followed? The pages in the "
        "folder audits/ show it."))


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
    return section("Pictures", "".join(figures), PRIVATE) if figures else ""


def _cases(cases: Iterable[dict]) -> str:
    body = []
    for case in cases:
        cells = [number(v, 2) if isinstance(v := case[k], float) or v is None else escape(str(v))
                 for k in CASE_COLUMNS]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return folded(f"Every patient ({len(body)} rows)", table(CASE_COLUMNS.values(), body))


def _cell(found: dict[str, dict], metric: str) -> str:
    value, about = with_about(found, metric)
    return f"<td>{value}<small>{about}</small></td>" if about else f"<td>{value}</td>"
