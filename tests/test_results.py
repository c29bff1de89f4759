"""Laws of the committed results: every number says where it comes from, and can be added to."""

import json
import math
import re
import shlex
from pathlib import Path
from statistics import median

import pytest
from scipy.stats import ks_2samp

from benchmarks import emidec as emidec_benchmark
from benchmarks import records
from benchmarks.soak import grows
from benchmarks.tables import (
    ABLATION,
    COLUMNS,
    FURTHER,
    PASS_RATES,
    cell,
    differences,
    goals,
    markdown,
    tertiles,
    whole,
)
from nnunet_lgesynth.anatomy.priors import PRIORS
from nnunet_lgesynth.benchmark.records import CASE_KEY, TRAINING_KEY, read_rows
from nnunet_lgesynth.benchmark.verdict import verdict
from nnunet_lgesynth.cli import _parser

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
ABLATIONS = ("generator_ablation_fold0.json", "generator_ablation2_fold0.json")
FIELDS = {"benchmark", "arm", "metric", "value", "low", "high", "n", "unit", "dataset", "split",
          "device", "seeds", "preset", "command", "versions", "date"}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda p: p.name)
def test_number_rows_are_complete(path):
    rows = json.loads(path.read_text())
    assert rows and all(set(r) == FIELDS for r in rows)
    for row in rows:
        numbers = [row[k] for k in ("value", "low", "high") if row[k] is not None]
        assert all(math.isfinite(n) for n in numbers)
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda p: p.name)
def test_recorded_rows_are_told_apart_and_belong_together(path):
    rows = read_rows(path)
    key = CASE_KEY if path.name.startswith("cases_") else TRAINING_KEY
    assert len({tuple(r[k] for k in key) for r in rows}) == len(rows) > 0
    if key is CASE_KEY:
        trainings = read_rows(path.with_name(path.name.replace("cases_", "trainings_")))
        known = {tuple(r[k] for k in TRAINING_KEY) for r in trainings}
        own = [r for r in rows if not r["arm"].endswith("+filter")]
        assert {tuple(r[k] for k in TRAINING_KEY) for r in own} == known


def test_the_docs_show_the_cores_that_were_measured():
    docs = (RESULTS.parents[1] / "docs" / "samples.md").read_text().partition("No-reflow cores")[2]
    found = {(r["arm"], r["metric"]): f"{r['value']:.3f}" for r in json.loads(
        (RESULTS / "cores_fold4.json").read_text())}
    for arm in ("paint", "roi-cpu-core-as-scar", "roi-cpu-drawn-core", "roi-cpu"):
        told = [found[arm, metric] for metric in (
            "accepted_share", "scar_asked", "core_asked", "scar_drafted", "core_drafted",
            "core_accepted", "scar_above_core_accepted")]
        assert f"| {arm} | {' | '.join(told)} |" in docs
    real = [found["real", f"{name}_measured"] for name in ("scar", "core", "scar_above_core")]
    assert f"| - | - | - | {real[0]} | {real[1]} | - | {real[2]} |" in docs


def test_the_docs_show_what_was_learnt_of_no_reflow():
    docs = (RESULTS.parents[1] / "docs" / "samples.md").read_text()
    found: dict[tuple[str, str], list] = {}
    for row in json.loads((RESULTS / "learnt_fold4.json").read_text()):
        found.setdefault((row["arm"], row["split"].partition(",")[0]), []).append(row)
    names = {"nnUNetTrainerLGEReal": "real", "nnUNetTrainerLGESynth": "lgesynth:p=1,f=1,c=1"}
    assert len(found) == 6
    for (arm, where), (no_reflow, scar, dice) in found.items():
        numbers = " | ".join(f"{r['value']:.3f}" for r in (no_reflow, scar, dice))
        assert f"| {names[arm]} | {where} | {numbers} | {dice['n']} |" in docs


def emidec() -> list[dict]:
    """The committed numbers of the EMIDEC benchmark."""
    return json.loads((RESULTS / "emidec_roi.json").read_text())


def frozen() -> emidec_benchmark.Settings:
    """The settings of the recorded rows' command."""
    flags = _parser().parse_args(shlex.split(emidec()[0]["command"])[1:])
    return emidec_benchmark.settings(flags.folds, flags.seeds)


def test_the_readme_shows_the_tables_of_the_committed_numbers():
    rows, text = emidec(), (RESULTS.parents[1] / "README.md").read_text()
    assert emidec_benchmark.tables(rows) in text
    assert f"**{verdict(rows)[0]}**" in text
    docs = (RESULTS.parents[1] / "docs" / "benchmark.md").read_text()
    folds = " ".join(map(str, frozen().folds))
    assert f"python -m benchmarks.emidec --folds {folds}`" in " ".join(text.split())
    assert f"--folds {folds} --preset" in text
    for flag in ("--arms real paint:p=1,f=1,c=1 lgesynth:p=1,f=1,c=1", "--preset roi-cpu",
                 "--epochs 30 --iterations 50 --warm-up 64 --half"):
        assert flag in docs and flag in text


def test_the_committed_numbers_are_of_the_frozen_settings_and_follow_from_the_recorded_patients():
    rows, again = emidec(), emidec_benchmark.numbers(frozen())
    assert len(rows) == len(again)
    for row, mine in zip(rows, again):
        for name, value in row.items():
            same = value is None or not isinstance(value, float)
            assert mine[name] == (value if same else pytest.approx(value, abs=1e-5))


def test_a_goal_is_reached_by_the_value_the_interval_and_the_test():
    def row(metric, value, low=None, high=None):
        return {"metric": metric, "value": value, "low": low, "high": high}

    goal = emidec_benchmark.GOALS[0]
    for value, low, p, reached in ((0.06, 0.01, 0.01, True), (0.04, 0.01, 0.01, False),
                                   (0.06, -0.01, 0.01, False), (0.06, 0.01, 0.25, False)):
        found = {r["metric"]: r for r in (row("dice_tp_diff_vs_real+filter", value, low, 0.1),
                                          row("dice_tp_p_vs_real+filter", p))}
        assert goal.reached(found, "+filter") == reached
        assert not goal.reached(found, "")
    auroc = next(g for g in emidec_benchmark.GOALS if g.metric == "slice_auroc")
    assert auroc.reached({"slice_auroc": row("slice_auroc", 0.98)}, "+filter")
    assert not auroc.reached({"slice_auroc": row("slice_auroc", 0.96)}, "")


def by_arm(rows: list[dict]) -> dict[str, dict[str, float]]:
    arms: dict[str, dict[str, float]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["metric"]] = row["value"]
    return arms


def realism_table(arms) -> str:
    """Each cell: distance to the validation scars / to the training scars."""
    columns = {"bull's-eye correlation": "bulls_eye_correlation", "burden": "ks_burden",
               "transmurality": "ks_transmurality", "angular extent": "ks_extent",
               "slices": "ks_slice_share", "no-reflow": "ks_no_reflow"}
    lines = [f"| prior | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in ("train", *PRIORS):
        cells = [f"{arms[name][m]:.2f} / {arms[name][f'{m}_to_train']:.2f}"
                 for m in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def control_table(arms) -> str:
    columns = {"burden error, % of the myocardium": ("mask_burden_error", 100, ".3f"),
               "transmurality error": ("mask_transmurality_error", 1, ".3f")}
    lines = [f"| | {', median (95th percentile) | '.join(columns)}, median (95th percentile) | "
             "segments outside | refused |", "|---|---|---|---|---|"]
    for name in ("stack", "one slice"):
        cells = [f"{arms[name][f'{m}_median'] * k:{f}} ({arms[name][f'{m}_p95'] * k:{f}})"
                 for m, k, f in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | "
                     f"{arms[name]['segments_outside_request']:.0f} | "
                     f"{arms[name]['requests_refused']:.0%} |")
    return "\n".join(lines)


def speed_and_angle(rows: list[dict]) -> str:
    arms = by_arm(rows)
    flat, stack = ([arms[n][f"milliseconds_per_mask_{what}"] for n in PRIORS]
                   for what in ("2d", "stack"))
    read = next(r["n"] for r in rows if r["metric"] == "insertion_angle_error")
    return (f"One core draws and paints a 2D mask of 96 x 96 pixels in {min(flat):.1f} to "
            f"{max(flat):.1f} ms of CPU time, a stack's in {min(stack):.0f} to {max(stack):.0f} "
            f"ms;\nthe anatomy of a case takes {1000 * arms['anatomy']['seconds_per_case']:.0f} "
            "ms. The time grows with the wall's pixels. The angle estimated from the image is off "
            f"by\n{arms['image']['insertion_angle_error']:.0f} degrees on average from {read} "
            "insertions read by eye, the dataset's convention by "
            f"{arms['dataset']['insertion_angle_error']:.0f}. All of it:\n"
            "`python -m benchmarks.anatomy -d 116 -f 4 -o anatomy_fold4.json`.")


def test_the_docs_show_the_committed_measures_of_control():
    rows = json.loads((RESULTS / "anatomy_fold4.json").read_text())
    arms = by_arm(rows)
    text = (RESULTS.parents[1] / "docs" / "control.md").read_text()
    assert realism_table(arms) in text and control_table(arms) in text
    assert speed_and_angle(rows) in text
    told = arms["stack"]
    sentence = (f"none left its segments ({told['requests_refused']:.0%} more were refused), the "
                f"median error is {told['mask_burden_error_median']:.3%} of the myocardium and "
                f"{told['mask_transmurality_error_median']:.3f} of the wall's thickness")
    readme = (RESULTS.parents[1] / "README.md").read_text()
    assert sentence in " ".join(readme.split())


def curve_table(rows: list[dict]) -> str:
    lines = [f"| reward steps | {' | '.join(PASS_RATES)} |", "|---" * (len(PASS_RATES) + 1) + "|"]
    for split in dict.fromkeys(r["split"] for r in whole(rows)):
        name = split.partition("reward step ")[2] or "real scar slices"
        mine = {r["metric"]: r for r in rows if r["split"] == split}
        cells = [cell(mine[m], bounds=False) if "dice" in m or "step" in split else "-"
                 for m in PASS_RATES.values()]        # nothing tells new scar from old in real ones
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


AUDIT = {"near a training patient": "near", "allowed": "near_allowed",
         "real scars near another patient": "near_real", "seeds differ": "spread",
         "contrast followed": "slope", "place followed": "inside"}


def samples_page() -> str:
    return (RESULTS.parents[1] / "docs" / "samples.md").read_text()


def test_the_docs_show_how_the_frozen_recipe_does():
    rows = json.loads((RESULTS / "generator_fold0.json").read_text())
    text = samples_page()
    assert goals(rows, "roi-cpu", "roi-cpu-plain-seed1") in text
    assert markdown(rows) in text and tertiles(rows) in text
    assert differences(rows, "paint") in text and differences(rows, "roi-cpu-plain-seed1") in text
    assert markdown(rows, FURTHER, bounds=False) in text


def test_the_docs_tell_how_the_requests_differ_from_the_real_scars_of_fold_0():
    _, lines = records.read(RESULTS / "generator_fold0.json")
    text = " ".join(samples_page().split())

    def of(arm, judge, name):
        return [float(x[name]) for x in lines if (x["arm"], x["judge"]) == (arm, judge)]

    asked, real = of("roi-cpu", "own", "burden"), of("real", "own", "burden")
    assert (f"Kolmogorov-Smirnov distance of {ks_2samp(asked, real).statistic:.2f}; medians "
            f"{median(asked):.2f} and {median(real):.2f}") in text
    off = [median(of(arm, judge, "burden_error")) for judge in ("own", "independent")
           for arm in ("roi-cpu", "real")]
    assert "{:.2f} of drafts and {:.2f} of real scars, the independent one {:.2f} and {:.2f}" \
        .format(*off) in text


def test_the_docs_show_what_each_part_of_the_recipe_brings():
    text = samples_page()
    for name in ABLATIONS:
        rows = json.loads((RESULTS / name).read_text())
        assert markdown(rows, ABLATION) in text and differences(rows, "roi-cpu") in text
        assert markdown(rows, FURTHER, bounds=False) in text
    audited = json.loads((RESULTS / "audit_fold0.json").read_text())
    assert markdown(audited, AUDIT) in text


@pytest.mark.parametrize("name", ["generator_fold0.json", *ABLATIONS])
def test_the_pass_rates_are_those_of_the_recorded_slices(name):
    rows, lines = records.read(RESULTS / name)
    for row in whole(rows):
        kind, _, judge = row["metric"].partition("_pass_")
        if kind in ("dice", "qc") and judge in ("own", "independent"):
            name = "found" if kind == "dice" else "accepted"
            mine = [float(x[name]) for x in lines
                    if (x["arm"], x["judge"]) == (row["arm"], judge)]
            assert len(mine) == row["n"] and row["value"] == pytest.approx(
                sum(mine) / len(mine), abs=1e-5)


def test_the_docs_show_how_the_recipe_was_chosen():
    rows = json.loads((RESULTS / "generator_fold4.json").read_text())
    text, columns = samples_page(), {k: v for k, v in COLUMNS.items() if "in place" not in k}
    assert markdown(rows, columns, bounds=False) in text
    assert markdown([r for r in rows if r["arm"] != "real"], FURTHER, bounds=False) in text
    text = " ".join(text.split())
    curve = json.loads((RESULTS / "reward_curve_fold4.json").read_text())
    assert " ".join(curve_table(curve).split()) in text


def test_no_result_tells_of_the_machines_folders():
    for path in RESULTS.iterdir():
        assert not re.search(r'[" ](/|[A-Z]:\\)', path.read_text()), path.name


def test_the_readme_tells_how_long_the_demo_took():
    minutes = {r["arm"]: r["value"] for r in json.loads((RESULTS / "demo.json").read_text())}
    text = (RESULTS.parents[1] / "README.md").read_text()
    assert f"about {minutes['demo']:.0f} minutes on 2 cores, {minutes['install']:.0f} more" in text


COSTS = {"epoch over stock, median (bootstrap)": ("plugin", "epoch_overhead_p50"),
         "iteration, median: stock, s": ("stock", "iteration_p50"),
         "plugin, s": ("plugin", "iteration_p50"),
         "99th percentile: stock, s": ("stock", "iteration_p99"),
         "of the plugin, s": ("plugin", "iteration_p99"),
         "later than twice stock's 99th percentile": ("plugin", "late_iterations"),
         "share of synthesis": ("plugin", "synthesis_share"),
         "accepted slices a second": ("plugin", "accepted_per_second"),
         "first batch later by, s": ("plugin", "start_delay")}


VERDICTS = {"exchangeable": "false verdicts, arms exchangeable",
            "half_equal": "the same, half of the patients unchanged",
            "slice_auroc": "the same, slice AUROC",
            "skewed": "the same, few patients change by much in one direction",
            "shared": "the same, all patients of a fold share one network's luck",
            "effect": "stated effect found"}


def cost_table(files: dict[str, str]) -> str:
    """A column a file of `benchmarks.overhead`, a line a cost."""
    found = {name: {(r["arm"], r["metric"]): r for r in json.loads((RESULTS / file).read_text())}
             for name, file in files.items()}
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {told} | {' | '.join(cell(rows[key]) for rows in found.values())} |"
              for told, key in COSTS.items()]
    return "\n".join(lines)


def test_the_docs_tell_what_synthesis_costs_a_training():
    text = (RESULTS.parents[1] / "docs" / "training.md").read_text()
    assert cost_table({"2d": "overhead_cpu.json", "3d_fullres": "overhead_3d_cpu.json"}) in text
    soak = {r["metric"]: r for r in json.loads((RESULTS / "soak.json").read_text())}
    for metric in ("host_memory_growth", "epoch_growth"):
        value, low, high = (100 * soak[metric][k] for k in ("value", "low", "high"))
        assert f"{value:.1f} % ({low:.1f}, {high:.1f})" in text
    assert not grows(list(soak.values()))


def verdict_table(file: str) -> str:
    """A line a scenario of `benchmarks.verdicts`, a column a number of patients."""
    found = {(r["arm"], r["split"]): r for r in json.loads((RESULTS / file).read_text())}
    splits = list(dict.fromkeys(split for _, split in found))
    lines = [f"| | {' | '.join(splits)} |", "|---" * (len(splits) + 1) + "|"]
    lines += [f"| {told} | {' | '.join(cell(found[arm, split]) for split in splits)} |"
              for arm, told in VERDICTS.items()]
    return "\n".join(lines)


def test_the_docs_tell_how_often_a_verdict_is_wrong():
    text = (RESULTS.parents[1] / "docs" / "benchmark.md").read_text()
    assert verdict_table("verdicts.json") in text
    rows = json.loads((RESULTS / "verdicts.json").read_text())
    assert all(r["n"] >= 2000 and r["low"] <= 0.05 for r in rows
               if r["arm"] in ("exchangeable", "half_equal", "slice_auroc"))
    assert all(r["low"] <= 0.8 <= r["high"] + 0.01 for r in rows if r["arm"] == "effect")


def test_the_docs_tell_that_no_second_seed_is_recorded():
    trainings = read_rows(RESULTS / "trainings_Dataset116_EMIDECROI.jsonl")
    text = " ".join((RESULTS.parents[1] / "docs" / "benchmark.md").read_text().split())
    told = "all recorded trainings of one fold and arm began with the same weights" in text
    assert told == ({r["seed"] for r in trainings} == {0})
