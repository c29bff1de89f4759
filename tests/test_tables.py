"""Laws of the tables of result rows: a goal is reached by the seeds that reach it, by no others."""

import json

import pytest

from benchmarks.tables import GOALS, goals, main, tertiles


def row(arm, metric, value, low=None, high=None, part=""):
    return {"arm": arm, "metric": metric, "value": value, "low": low, "high": high, "n": 10,
            "split": "validation, fold 0" + (f", {part} burdens" if part else "")}


ROWS = [row("real", "dice_pass_own", 0.5), row("real", "dice_pass_own", 0.7, part="small"),
        row("paint", "dice_pass_own", 0.4),
        row("plain", "feature_distance_diff_vs_paint", -9, -12, -5),
        row("full", "dice_pass_own", 0.56), row("full", "dice_pass_own", 0.8, part="small"),
        row("full-seed1", "dice_pass_own", 0.62),
        row("full", "dice_pass_independent", 0.42), row("full-seed1", "dice_pass_independent", 0.5),
        row("full", "changed_outside", 0), row("full-seed1", "changed_outside", 1),
        row("full", "feature_distance_diff_vs_paint", -4, -8, -1),
        row("full-seed1", "feature_distance_diff_vs_paint", -4, -8, 1),
        row("full", "feature_distance_diff_vs_plain", -4, -8, -1),
        row("full-other", "dice_pass_own", 0.99)]


def cells(goal):
    title = next(g.title for g in GOALS if g.metric == goal)
    lines = [line for line in goals(ROWS, "full", "plain").splitlines() if title in line]
    return [c.strip() for c in lines[0].strip("|").split("|")][1:]


def test_a_goal_tells_the_seeds_and_what_others_have():
    assert cells("dice_pass_own") == ["0.500", "0.400", "-", "0.590 (0.560 to 0.620)", "1 of 2"]
    assert cells("dice_pass_independent")[3:] == ["0.460 (0.420 to 0.500)", "1 of 2"]


def test_ratios_are_of_one_seed_each():
    assert cells("dice_pass_own_to_real") == ["1.000", "0.800", "-", "1.180 (1.120 to 1.240)",
                                              "2 of 2"]
    assert cells("dice_pass_independent_to_own")[3:] == ["0.778 (0.750 to 0.806)", "1 of 2"]


def test_a_difference_counts_by_its_upper_bound_and_a_missing_one_does_not():
    assert cells("feature_distance_diff_vs_paint") == ["-", "-", "-5.000",
                                                       "0.000 (-1.000 to 1.000)", "1 of 2"]
    assert cells("feature_distance_diff_vs_plain")[3:] == ["-1.000 (-1.000 to -1.000)", "1 of 1"]
    assert cells("changed_outside")[4] == "1 of 2" and cells("seam_auc")[3:] == ["-", "0 of 0"]


def test_tertiles_hold_the_parts_alone():
    heading, _, real, full = tertiles(ROWS).splitlines()
    assert real.startswith("| small | real | 0.700 |") and full.startswith("| small | full | 0.8")
    assert heading.count("|") == real.count("|")


def test_the_tables_of_a_file_are_printed_and_no_other_file_is_taken(tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    main([str(path), "--preset", "full", "--plain", "plain"])
    assert goals(ROWS, "full", "plain") in capsys.readouterr().out
    for name, text in ("none.json", None), ("text.json", "{"):
        if text:
            (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main([str(tmp_path / name)])
        assert stopped.value.code == 2 and "benchmarks.generator" in capsys.readouterr().err
