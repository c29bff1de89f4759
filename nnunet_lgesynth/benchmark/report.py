"""The benchmark's report as a page, and the README's table. Computes nothing.

Everything shown is handed over: number rows and sentences of `compare`, per-case rows and training
summaries of `collect`, commands, versions, pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from nnunet_lgesynth.benchmark import plots
from nnunet_lgesynth.benchmark.arms import COUNTS, UNITS
from nnunet_lgesynth.benchmark.collect import FILTERED
from nnunet_lgesynth.benchmark.compare import Comparison
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
from nnunet_lgesynth.benchmark.variants import further_references, reference_of
from nnunet_lgesynth.benchmark.verdict import PRIMARY

__all__ = ["Report", "audits_markdown", "markdown", "markdown_differences", "markdown_table",
           "write_report"]

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


def markdown(split: str, comparison: Comparison, before: list[str]) -> str:
    """A split's verdict, its table, and its paired differences."""
    return "\n\n".join([f"## {split}", f"**{comparison.verdict[0]}**", *comparison.verdict[1:],
                        *_stated(before), markdown_table(comparison.rows),
                        markdown_differences(comparison.rows)])


def audits_markdown(audits: list[dict]) -> str:
    """A paragraph on the generators' audits; empty where there are none."""
    lines = [f"- {a['generator']}: {' '.join(a['sentences'])}" for a in audits]
    return "\n".join(["## Audit of the generators", "", *lines]) + "\n" if lines else ""


def markdown_table(rows: list[dict]) -> str:
    """One line an arm of one split's number rows, for a README."""
    columns = ["arm", *ARM_COLUMNS.values(), "TN FP FN TP", "patients", "seeds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for arm, found in _by_arm(rows).items():
        cells = [_with_interval(found, metric) for metric in ARM_COLUMNS]
        counts = " ".join(_count(found[c]["value"]) for c in COUNTS)
        cells += [counts, str(found["dice"]["n"]), str(len(found["dice"]["seeds"]))]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown_differences(rows: list[dict], metrics: Iterable[str] = DIFFERENCES,
                         arms: Iterable[str] | None = None) -> str:
    """One line a paired difference of one split's number rows; of all arms, or of these."""
    head = ["difference", *DIFFERENCE_COLUMNS]
    lines = [f"| {' | '.join(cells)} |" for cells in (
        head, ["---"] * len(head), *([f"{arm} − {reference}", *cells] for arm, reference, cells in
                                     _difference_cells(rows, metrics)
                                     if arms is None or arm in arms))]
    return "\n".join(lines) + "\n"


def _stated(before: list[str]) -> list[str]:
    return [f"Stated before {'the run' if len(before) == 1 else 'each run'}: {said}"
            for said in before]


def _split(split: str, comparison: Comparison, before: list[str], cases: list[dict]) -> list[str]:
    stated = _stated(before)
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
    for arm, found in _by_arm(rows).items():
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


def _difference_cells(rows: list[dict], metrics: Iterable[str] = DIFFERENCES
                      ) -> Iterator[tuple[str, str, list[str]]]:
    """(arm, reference, cells of DIFFERENCE_COLUMNS) of each paired difference that is shown."""
    arms = _by_arm(rows)
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


def _differences(rows: list[dict]) -> str:
    body: dict[bool, list[str]] = {False: [], True: []}         # of arms as they are; filtered
    before = None
    for arm, reference, cells in _difference_cells(rows):
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
    for arm, found in _by_arm(rows).items():
        for of, prefix in (("patients", ""), ("slices", "slice_")):
            cells = [breakable(arm), of, *(_count(found[f"{prefix}{c}"]["value"]) for c in COUNTS),
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
    arms, body = _by_arm(rows), []
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


def _by_arm(rows: list[dict]) -> dict[str, dict[str, dict]]:
    arms: dict[str, dict[str, dict]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["metric"]] = row
    return {arm: found for arm, found in arms.items() if "dice" in found}


def _cell(found: dict[str, dict], metric: str) -> str:
    """A metric of an arm with its interval, seed spread, and number of patients where not all have
    it."""
    value, about = _parts(found, metric)
    return f"<td>{value}<small>{about}</small></td>" if about else f"<td>{value}</td>"


def _with_interval(found: dict[str, dict], metric: str) -> str:
    """The same for a README."""
    return " ".join(part for part in _parts(found, metric) if part)


def _parts(found: dict[str, dict], metric: str) -> tuple[str, str]:
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


def _count(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.1f}"
