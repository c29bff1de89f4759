"""Laws of the tables of result rows: a goal is reached by the seeds that reach it, by no others."""

import json
import math

import pytest

from benchmarks.tables import GOALS, differences, goals, main, markdown, tertiles
from nnunet_lgesynth.config import UserError


def row(arm, metric, value, low=None, high=None, part="", device="cpu, 2 CPU cores, Linux"):
    return {"benchmark": "generator", "arm": arm, "metric": metric, "value": value, "low": low,
            "high": high, "n": 10, "device": device,
            "split": "validation, fold 0" + (f", {part} burdens" if part else "")}


ROWS = [row("real", "dice_pass_own", 0.5), row("real", "dice_pass_own", 0.7, part="small"),
        row("paint", "dice_pass_own", 0.4),
        row("plain", "feature_distance_diff_vs_paint", -9, -12, -5),
        row("full", "dice_pass_own", 0.56), row("full", "dice_pass_own", 0.8, part="small"),
        row("full-seed1", "dice_pass_own", 0.62),
        row("full", "dice_pass_independent", 0.42), row("full-seed1", "dice_pass_independent", 0.5),
        row("full", "changed_outside", 0), row("full-seed1", "changed_outside", 1),
        row("full", "feature_distance_diff_vs_paint", -4, -8, -1),
        row("full-seed1", "feature_distance_diff_vs_paint", -2, -8, 1),
        row("full", "feature_distance_diff_vs_plain", -4, -8, -1),
        row("full", "shortcut_auc", 0.5),
        row("full-other", "dice_pass_own", 0.99), row("full-seed1-other", "dice_pass_own", 0.99)]


def cells(metric, rows=ROWS):
    title = next(g.title for g in GOALS if g.metric == metric)
    lines = [line for line in goals(rows, "full", "plain").splitlines() if title in line]
    return [c.strip() for c in lines[0].strip("|").split("|")][1:]


def test_a_goal_tells_the_seeds_and_what_others_have():
    assert cells("dice_pass_own") == ["0.500", "0.400", "-", "0.590 (0.560 to 0.620)", "1 of 2"]
    assert cells("dice_pass_independent")[3:] == ["0.460 (0.420 to 0.500)", "1 of 2"]
    assert cells("changed_outside")[4] == "1 of 2"


def test_ratios_are_of_one_seed_each():
    assert cells("dice_pass_own_to_real") == ["1.000", "0.800", "-", "1.180 (1.120 to 1.240)",
                                              "2 of 2"]
    assert cells("dice_pass_independent_to_own")[3:] == ["0.778 (0.750 to 0.806)", "1 of 2"]


def test_what_has_no_interval_is_held_against_the_other_arms_value():
    rows = [*ROWS, row("paint", "ssim_crop", 0.7, 0.6, 0.8), row("plain", "ssim_crop", 0.8),
            row("full", "ssim_crop", 0.75), row("full-seed1", "ssim_crop", 0.6)]
    assert cells("ssim_crop_less_paint", rows) == [
        "-", "-", "0.100", "-0.025 (-0.100 to 0.050)", "1 of 2"]
    assert cells("ssim_crop_less_plain", rows)[1:] == [
        "-0.100", "-", "-0.125 (-0.200 to -0.050)", "0 of 2"]


def test_a_difference_counts_by_its_upper_bound():
    assert cells("feature_distance_diff_vs_paint") == [
        "-", "-", "-9.000 (-12.000, -5.000)", "-3.000 (-4.000 to -2.000), upper bounds to 1.000",
        "1 of 2"]


def test_a_seed_that_was_not_measured_does_not_count_as_one_that_reaches_the_goal():
    assert cells("feature_distance_diff_vs_plain")[4] == "1 of 2, 1 not measured"
    assert cells("shortcut_auc")[3:] == ["0.500 (0.500 to 0.500)", "0 of 2, 1 not measured"]
    assert cells("seam_auc")[3:] == ["-", "0 of 2, 2 not measured"]


BOUNDS = {"dice_pass_own": 0.6, "dice_pass_own_to_real": 1.1, "dice_pass_independent": 0.5,
          "dice_pass_independent_to_own": 0.8, "qc_pass_own": 0.6, "qc_pass_independent": 0.5,
          "qc_pass_independent_to_own": 0.8, "changed_outside": 0, "burden_error": 0.15,
          "segment_jaccard": 0.8, "transmurality_error": 0.15, "feature_distance_diff_vs_paint": 0,
          "feature_distance_diff_vs_plain": 0, "frechet_distance_less_paint": 0,
          "frechet_distance_less_plain": 0, "ssim_crop_less_paint": 0, "ssim_crop_less_plain": 0,
          "rmse_crop_less_paint": 0, "rmse_crop_less_plain": 0, "shortcut_auc": 0.6,
          "seam_auc": 0.6, "seconds_per_accepted": 1}
OPEN = {m for m in BOUNDS if m.startswith("feature_distance") or m.endswith("auc")}


@pytest.mark.parametrize("goal", GOALS, ids=lambda g: g.metric)
def test_every_goal_ends_where_it_is_set(goal):
    """Upper bounds must be below it, values may be at it."""
    bound, up = BOUNDS[goal.metric], -1 if math.isinf(goal.least) else 1

    def reached(value):
        numbers = (-99, None, value) if goal.metric in OPEN else (value, None, 99)
        return goal.reached(row("x", goal.metric, *numbers))

    assert reached(bound + up * 1e-6) and not reached(bound - up * 1e-6)
    assert reached(bound) == (goal.metric not in OPEN)


def test_all_goals_have_their_bound_here_and_speed_is_meant_on_two_cores():
    assert set(BOUNDS) == {g.metric for g in GOALS}
    speed = GOALS[-1]
    assert speed.reached(row("x", speed.metric, 0.5))
    assert not speed.reached(row("x", speed.metric, 0.5, device="cuda, 16 CPU cores"))


def test_an_arm_measured_twice_has_no_goals():
    with pytest.raises(UserError, match="two rows of full, dice_pass_own"):
        goals([*ROWS, row("full", "dice_pass_own", 0.9)], "full", "plain")


def test_tertiles_hold_the_parts_alone():
    heading, _, real, full = tertiles(ROWS).splitlines()
    assert real.startswith("| small | real | 10 | 0.700 |")
    assert full.startswith("| small | full | 10 | 0.8")
    assert heading.count("|") == real.count("|")


def test_intervals_are_left_out_on_demand():
    columns = {"gain": "feature_distance_diff_vs_paint"}
    assert "| plain | -9.000 (-12.000, -5.000) |" in markdown(ROWS, columns)
    assert "| plain | -9.000 |" in markdown(ROWS, columns, bounds=False)


def test_differences_are_turned_to_the_arm_that_was_measured_first():
    rows = [*ROWS, row("less", "dice_pass_own_diff_vs_full", -0.1, -0.2, 0.0),
            row("less", "dice_pass_own_diff_vs_paint", 0.3, 0.2, 0.4)]
    _, _, *found = differences(rows, "full").splitlines()
    assert found == ["| paint | - | - | - | - | 4.000 (1.000, 8.000) |",
                     "| plain | - | - | - | - | 4.000 (1.000, 8.000) |",
                     "| less | -0.100 (-0.200, 0.000) | - | - | - | - |"]


def test_the_tables_of_a_file_are_printed(tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    main([str(path), "--preset", "full", "--plain", "plain"])
    told = capsys.readouterr().out
    assert goals(ROWS, "full", "plain") in told and tertiles(ROWS) in told
    assert differences(ROWS, "full") in told


@pytest.mark.parametrize("text, told", [
    (None, "No such file"), ("{", "no file of result rows"), ("[1]", "no file of result rows"),
    (json.dumps([{**ROWS[0], "benchmark": "anatomy"}]), "another benchmark"),
    (json.dumps(ROWS), "no arm roi-cpu; it has full, ")])
def test_no_other_file_is_taken(tmp_path, capsys, text, told):
    path = tmp_path / "rows.json"
    if text:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main([str(path)])
    assert stopped.value.code == 2 and told in capsys.readouterr().err
