"""Laws of the report: self-contained, complete, escaped, and nothing in it that was not given."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imsave
from pages import pictures_of

from nnunet_lgesynth.benchmark.compare import compare
from nnunet_lgesynth.benchmark.markdown import markdown_table
from nnunet_lgesynth.benchmark.plots import doses
from nnunet_lgesynth.benchmark.report import Report, write_report

CONTEXT = {"benchmark": "test", "dataset": "Dataset900_Toy", "split": "fold 0",
           "command": "lgesynth benchmark"}


def case_rows():
    rng = np.random.default_rng(0)
    rows = []
    for arm, gain in (("real", 0.0), ("real+filter", 0.0), ("paint", 0.1), ("paint+filter", 0.1)):
        for i in range(6):
            scar, dice = i < 4, float(rng.uniform(0.3, 0.8) + gain)
            rows.append({
                "arm": arm, "fold": 0, "seed": 0, "case": f"<p{i}>", "split": "validation",
                "preset": None, "dice": dice, "dice_tp": dice if scar else None,
                "no_reflow_dice": None, "has_scar": scar,
                "found_scar": True, "slices": [[0, 0.2 * scar, 0.3], [1, 0.0, 0.1]],
                "true_percent": 10.0 * scar, "predicted_percent": 11.0, "true_ml": 1.0,
                "predicted_ml": 2.0})
    return rows


TRAINING = {"arm": "paint", "fold": 0, "seed": 0, "epochs": 3, "injected_fraction": 0.312,
            "injected_fraction_last": 0.4, "unique_slices": None, "unique_cases": 17,
            "pool_slices": 55, "drafted": 40, "accepted": 10, "qc_pass_own": 0.25, "minutes": 2.5,
            "failed_checks": {"dice": 7}}


AUDITS = [{"generator": "demo_fold_0", "passed": False,
           "sentences": ["Diversity failed: <seeds>."]},
          {"generator": "demo_fold_1", "passed": None, "sentences": ["Not audited: too few."]}]


@pytest.fixture(scope="module")
def report():
    rows = case_rows()
    return Report("Benchmark of Dataset900_Toy", {"fold 0": compare(rows, CONTEXT, 30)},
                  {"fold 0": ["6 patients."]}, {"fold 0": rows},
                  [TRAINING], AUDITS, ["lgesynth train 900 2d 0 -tr <X>"],
                  {"settings": {"split of fold 0": "5p1it"}}, {"python": "3.x"},
                  "2 cores", "2026-01-01")


def test_the_report_is_one_well_formed_file_without_outside_references(report, tmp_path):
    picture = tmp_path / "sample.png"
    imsave(picture, np.zeros((4, 4)))
    path = write_report(tmp_path / "report.html", replace(report, pictures={"A scar": picture}))
    assert pictures_of(path.read_text()) == 1
    assert [p.name for p in tmp_path.iterdir() if ".part" in p.name] == []


def test_it_holds_verdict_arms_differences_trainings_cases_and_provenance(report, tmp_path):
    text = write_report(tmp_path / "report.html", report).read_text()
    assert report.comparisons["fold 0"].verdict[0] in text
    assert text.index("No evidence") < text.index("<table>")
    for arm in ("real", "real+filter", "paint", "paint+filter"):
        assert f"<tr><td>{arm}</td>" in text
    shown, folded = text.split("Paired differences after the volume filter")
    assert "paint+filter − real+filter" in folded and "paint − real<" in shown
    assert "paint+filter − real+filter" not in shown[shown.index("Paired differences"):]
    for given in ("0.312", "17 cases", "55 slices in the pool", "0.25<small>of 40", "dice 7",
                  "2 cores", "Every patient (24 rows)",
                  "<td>demo_fold_0</td><td>failed</td>",
                  '<td class="text">Diversity failed: &lt;seeds&gt;.</td>',
                  "<td>demo_fold_1</td><td>none</td>"):
        assert given in text
    # forests of Dice-TP and slice AUROC, three pairs, four volumes
    assert text.count("<svg") == 2 + 3 + 4
    assert "currentColor" in text


def test_who_lacks_a_surface_distance_is_counted_and_every_earlier_statement_told(report, tmp_path):
    """An arm that misses the hardest scars has the better distances of those it finds."""
    rows = [{**row, "hd95_mm": 9.5 if row["case"] in ("<p0>", "<p1>") else None}
            for row in case_rows()]
    text = write_report(tmp_path / "report.html", replace(
        report, comparisons={"fold 0": compare(rows, CONTEXT, 30)},
        before={"fold 0": ["of two arms.", "of three arms."]})).read_text()
    everything = text[text.index("All metrics"):]
    cell = r"HD95<small>mm</small></td><td>9\.500<small>[^<]*\(n = 2\)"
    assert re.search(cell, everything)
    assert "<td>HD95, mm</td><td>+0.000</td>" in text
    for said in ("of two arms.", "of three arms."):
        assert f"Stated before each run: {said}" in text


def test_text_from_files_is_escaped(report, tmp_path):
    text = write_report(tmp_path / "report.html", report).read_text()
    assert "&lt;p0&gt;" in text and "<p0>" not in text and "-tr &lt;X&gt;" in text


def test_markdown_has_a_line_an_arm_and_the_values_of_the_rows(report):
    rows = report.comparisons["fold 0"].rows
    lines = markdown_table(rows).splitlines()
    assert len(lines) == 2 + 4 and len({line.count("|") for line in lines}) == 1
    row = next(r for r in rows if (r["arm"], r["metric"]) == ("paint", "dice_tp"))
    paint = next(line for line in lines if line.startswith("| paint |"))
    assert f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in paint
    assert "| 0 2 0 4 |" in paint and "| – |" in paint     # counts; no patient has no-reflow


def test_an_arm_s_dose_curve_has_what_else_it_was_told():
    rows = [{"arm": arm, "metric": metric, "value": value, "low": None, "high": None}
            for arm in ("real", "real:n=20", "lgesynth:p=0.25,f=1.0", "lgesynth:p=1.0,f=1.0",
                        "lgesynth:p=1.0,f=1.0,n=20", "nnUNetTrainerX")
            for metric, value in (("dice_tp", 0.5), ("no_reflow_dice", None),
                                  ("slice_auroc", None))]
    drawn = doses(rows)
    probability, patients = (part[:part.index("</svg>")] for part in drawn.split("<svg")[1:])
    labels = [sorted(set(re.findall(r">(real|lgesynth[^<]*|nnUNet[^<]*)<", part)))
              for part in (probability, patients)]
    assert labels == [["lgesynth:f=1.0", "lgesynth:f=1.0,n=20"], ["lgesynth:p=1.0,f=1.0", "real"]]
    ticks = [re.findall(r">([\d.]+|all)<", part) for part in (probability, patients)]
    assert {"0", "0.25", "1"} <= set(ticks[0]) and {"20", "all"} <= set(ticks[1])


def test_a_dose_that_two_arms_share_has_both():
    """`lgesynth` injects with its own probability of 0.5, `lgesynth:p=0.5` without the cap."""
    rows = [{"arm": arm, "metric": metric, "value": value if metric == "dice_tp" else None,
             "low": None, "high": None}
            for arm, value in (("real", 0.5), ("lgesynth", 0.61), ("lgesynth:p=0.5", 0.42))
            for metric in ("dice_tp", "no_reflow_dice", "slice_auroc")]
    with_both = doses(rows)
    assert with_both != doses([r for r in rows if r["arm"] != "lgesynth"])
    assert with_both != doses([{**r, "value": r["value"] and 0.55} if r["arm"] == "lgesynth" else r
                               for r in rows])


def test_undefined_numbers_are_dashes_not_errors(tmp_path):
    rows = [r for r in case_rows() if r["case"] == "<p5>" and r["arm"] == "real"]
    comparison = compare(rows, CONTEXT, 30)
    path = write_report(tmp_path / "report.html", Report(
        "One patient", {"fold 0": comparison}, {}, {"fold 0": rows}, [], [], [], {}, {}, "", ""))
    text = path.read_text()
    assert "<td>–</td>" in text and "nan" not in text.lower().replace("finance", "")
    assert "No comparison" in text


def test_the_plots_show_what_the_rows_hold(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{**row, "arm": arm, "no_reflow_dice": 0.2, "lesions": [1, 2, 0],
             "segments": [[1, 0.2, 0.1], [7, 0.0, 0.3], [17, 0.5, 0.5]],
             "dice_tp": None if row["dice_tp"] is None else float(rng.random())}
            for arm in ("real", "lgesynth", "lgesynth:p=0.25", "synthetic-only", "real:n=20",
                        "lgesynth:n=20", "lgesynth:n=20+filter")
            for row in case_rows() if row["arm"] == "real"]
    comparison = compare(rows, CONTEXT, 30)
    text = write_report(tmp_path / "report.html", Report(
        "All", {"fold 0": comparison}, {"fold 0": ["6 patients can show little."]},
        {"fold 0": [r for r in rows if "+" not in r["arm"]]}, [], [], [], {}, {}, "", ""
    )).read_text()
    for heading in ("Differences from real", "Each patient, paired", "Dose", "Scar volume",
                    "AHA segments", "All metrics"):
        assert heading in text
    assert "Stated before the run: 6 patients can show little." in text
    dose = text[text.index("<h2>Dose"):text.index("<h2>Scar volume")]
    assert dose.count("<svg") == 2 * 3 and "injection probability" in dose
    labels = set(re.findall(r">(real|lgesynth|synthetic-only|lgesynth:[^<]*)<", dose))
    assert labels == {"real", "lgesynth"}                       # synthetic-only is on its line
    for tick in (">0<", ">0.25<", ">0.5<", ">1<", ">20<", ">all<"):       # p = 0 is real
        assert tick in dose
    without = [{**r, "no_reflow_dice": None} for r in rows]
    write_report(tmp_path / "without.html", Report(
        "All", {"f": compare(without, CONTEXT, 30)}, {}, {"f": without}, [], [], [], {}, {},
        "", ""))
    text = text.replace("<wbr>", "")
    corrected = {reference: re.findall(rf">lgesynth:n=20 − {reference}</td></tr><tr><td>Dice-TP"
                                       r"</td>(?:<td>[^<]*</td>){4}<td>([^<]*)</td>", text)
                 for reference in ("real:n=20", "real")}
    assert float(corrected["real:n=20"][0]) <= 1 and corrected["real"] == ["–"]
    for metric, name in (("segment_kappa", "weighted kappa"), ("lesion_f1", "lesion-wise F1"),
                         ("volume_bias_ml", "volume bias")):
        row = next(r for r in comparison.rows if (r["arm"], r["metric"]) == ("real", metric))
        assert name in text and f"{row['value']:.3f}" in text
