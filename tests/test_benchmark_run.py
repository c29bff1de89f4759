"""A benchmark of fabricated trainings: what it records, claims, refuses and reports."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time

import pytest
from toy_benchmark import (
    NAME,
    ROLES,
    TRUTH,
    fill_pool,
    finish,
    fold_folder,
    go,
    write_generator,
)

from nnunet_lgesynth.benchmark.power import smallest_effects
from nnunet_lgesynth.benchmark.records import read_rows
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import DatasetInfo, write_info
from nnunet_lgesynth.processes import alone


def test_finished_trainings_go_through_to_a_report(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    fill_pool(workspace, "paint")
    outcome = go(workspace)
    rows = {(r["arm"], r["metric"]): r for r in json.loads(outcome["results"].read_text())}
    real = (2 * 12 / (20 + 12) + 2 * 6 / (14 + 6)) / 2      # 8 voxels missed in both patients
    assert rows["real", "dice_tp"]["value"] == pytest.approx(real, abs=1e-6)
    assert rows["paint", "dice_tp_diff_vs_real"]["value"] > 0
    assert rows["paint", "injected_fraction"]["value"] == 0.4
    assert ("paint", "qc_pass_own") not in rows          # no judge saw them
    assert rows["real+filter", "dice"]["n"] == 4
    assert rows["real", "dice"]["split"] == "validation, fold 0"
    assert str(workspace) not in outcome["results"].read_text()
    assert outcome["verdict"].startswith("No evidence")       # two patients prove nothing
    text = outcome["report"].read_text()
    assert outcome["verdict"] in text and "data:image/png;base64," in text
    assert "Share of 2 real scar slices found as well by the real-only model: 1.000" in text
    told = (workspace / "out" / "report.md").read_text()
    assert "| paint |" in told and "| paint − real | Dice-TP |" in told and "4 patients" in told
    before = read_rows(outcome["cases"])
    assert len(before) == 2 * 2 * len(TRUTH)
    go(workspace)
    assert read_rows(outcome["cases"]) == before


def test_seeds_of_another_day_are_added_up(workspace):
    finish(workspace, "real", 8, 0.0)
    assert go(workspace, ["real"])["rows"][0]["seeds"] == [0]
    finish(workspace, "real", 2, 0.0, seed=1)
    assert go(workspace, ["real"], seeds=2)["rows"][0]["seeds"] == [0, 1]


def test_results_of_another_machine_are_gone_on_with(workspace):
    finish(workspace, "paint", 2, 0.4)
    other_day = go(workspace, ["paint"])
    shutil.rmtree(workspace / "out" / "seed_0")
    assert go(workspace, ["paint"], plan_only=True)["plan"] == []
    finish(workspace, "real", 8, 0.0)
    outcome = go(workspace)
    rows = {(r["arm"], r["metric"]): r["value"] for r in outcome["rows"]}
    assert rows["paint", "dice_tp_diff_vs_real"] > 0
    assert rows["paint", "injected_fraction"] == 0.4
    kept = [r for r in read_rows(outcome["cases"]) if r["arm"] == "paint"]
    assert kept == [r for r in read_rows(other_day["cases"]) if r["arm"] == "paint"]
    assert len(go(workspace, seeds=2, plan_only=True)["plan"]) == 2      # seed 1 of both


@pytest.mark.skipif(shutil.which("false") is None, reason="no command that just fails")
def test_what_ended_is_recorded_though_a_later_training_fails(workspace, monkeypatch):
    finish(workspace, "real", 8, 0.0)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"paint_fold_0_seed_0 failed"):
        go(workspace)
    rows = read_rows(workspace / "out" / f"cases_{NAME}.jsonl")
    assert {r["arm"] for r in rows} == {"real", "real+filter"}


def test_an_arm_that_injected_nothing_is_refused(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.0)
    with pytest.raises(UserError, match=r"Arm paint.*not one training patch was injected"):
        go(workspace)
    assert not (workspace / "out" / "report.html").exists()


def test_other_settings_need_another_folder(workspace):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    with pytest.raises(UserError, match=r"epochs 2 -> 3"):
        go(workspace, ["real"], epochs=3)
    path = workspace / "out" / "benchmark.json"
    whole = json.loads(path.read_text())
    del whole["settings"]["half"]               # a folder that was begun before there was such
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"half None -> True"):
        go(workspace, ["real"], half=True)
    go(workspace, ["real"])


def test_a_mistyped_number_claims_no_folder(workspace, monkeypatch):
    monkeypatch.setattr("nnunet_lgesynth.benchmark.run.run_jobs", lambda *_: 1 / 0)
    for epochs in (20, 2):          # nothing was trained with the first
        with pytest.raises(ZeroDivisionError):
            go(workspace, ["real"], epochs=epochs)
    claimed = json.loads((workspace / "out" / "benchmark.json").read_text())["settings"]
    assert claimed["epochs"] == 2
    finish(workspace, "real", 8, 0.0)
    with pytest.raises(UserError, match=r"epochs 2 -> 3"):
        go(workspace, ["real"], epochs=3, plan_only=True)


def test_another_split_needs_another_folder(workspace):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    path = workspace / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.write_text(json.dumps([{"train": ["t0", "v0", "v1"], "val": ["t1", "v2", "v3"]}]))
    with pytest.raises(UserError, match=r"split of fold 0 \w+ -> "):
        go(workspace, ["real"])


def test_a_damaged_or_blocked_folder_is_named(workspace):
    (workspace / "out").write_text("")
    with pytest.raises(UserError, match="a file is in the way"):
        go(workspace, ["real"])
    (workspace / "out").unlink()
    finish(workspace, "real", 8, 0.0)
    (workspace / "out" / "benchmark.json").write_text("")
    with pytest.raises(UserError, match=r"benchmark\.json is damaged"):
        go(workspace, ["real"])
    (workspace / "out" / "benchmark.json").unlink()
    (workspace / "out" / f"cases_{NAME}.jsonl").write_text('{"arm": "real"}\n')
    with pytest.raises(UserError, match="a row without 'fold'"):
        go(workspace, ["real"])


def test_what_a_finished_training_was_recorded_with_stays(workspace, monkeypatch):
    finish(workspace, "real", 8, 0.0)
    before = read_rows(go(workspace, ["real"])["cases"])
    monkeypatch.setattr("nnunet_lgesynth.benchmark.collect.versions",
                        lambda: {"nnunet_lgesynth": "later"})
    assert read_rows(go(workspace, ["real"])["cases"]) == before


def test_a_pool_case_that_is_gone_is_left_out_of_the_pictures(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    fill_pool(workspace, "paint")
    shutil.rmtree(fold_folder(workspace, "paint") / "lgesynth_pool" / "cases")
    assert "data:image/png" not in go(workspace)["report"].read_text()


def test_what_the_patients_can_show_is_told_before_anything_is_trained(workspace, monkeypatch,
                                                                    capsys):
    def fail(*_, **__):
        raise UserError("no training here")
    monkeypatch.setattr("nnunet_lgesynth.benchmark.run.run_jobs", fail)
    with pytest.raises(UserError, match="no training here"):
        go(workspace)
    told = json.loads((workspace / "out" / "benchmark.json").read_text())["before"]["validation"]
    assert len(told) == 1 and told[0].endswith(
        ", real, paint, fold 0, 1 seed: 4 patients, 2 with scar, 1 with no-reflow; too few to show "
        "any difference in Dice-TP or no-reflow Dice.")
    truths = sorted((workspace / "nnUNet_preprocessed" / NAME / "gt_segmentations").glob("v*"))

    def effects(paths, times):                     # as many patients, of one stack each
        return smallest_effects([(f"{path}{k}", path) for k in range(times) for path in paths],
                                ROLES, ["real", "paint", "lgesynth"])
    some, all_ = effects(truths, 4), effects(truths, 12)
    assert "of the 6 tests of primary metrics each finds" in some
    assert "too few to show any in no-reflow Dice" in some and "too few" not in all_
    alone = [path for path in truths if path.name[:2] != "v1"]          # the one with no-reflow
    assert "of the 4 tests of primary metrics" in effects(alone, 12)
    stacks = [("one heart", path) for path in truths]
    assert smallest_effects(stacks, ROLES, ["real"]).startswith("1 patients, 1 with scar, 1 with")
    assert " in Dice-TP and " in all_ and " in no-reflow Dice (in standard" in all_
    assert told[0].partition(", ")[2] in capsys.readouterr().out


def test_recorded_arms_stay_in_report_and_correction(workspace):
    """Who names fewer in the end must not get a milder correction."""
    for arm, shift in (("real", 8), ("paint", 2)):
        finish(workspace, arm, shift, 0.4)
    first = go(workspace)
    second = go(workspace, ["real"])
    assert second["rows"][0]["command"] != first["rows"][0]["command"]
    assert [(r["arm"], r["metric"], r["value"]) for r in second["rows"]] == \
        [(r["arm"], r["metric"], r["value"]) for r in first["rows"]]
    stated = json.loads((workspace / "out" / "benchmark.json").read_text())["before"]["validation"]
    assert len(stated) == 1 and "real, paint, fold 0, 1 seed: 4 patients" in stated[0]
    finish(workspace, "real", 8, 0.0, seed=1)
    assert "2 seeds: 4 patients" in go(workspace, ["real"], seeds=2)["report"].read_text()
    stated = json.loads((workspace / "out" / "benchmark.json").read_text())["before"]["validation"]
    assert len(stated) == 2
    report = (workspace / "out" / "report.md").read_text()
    assert all(f"Stated before each run: {said}" in report for said in stated)


def test_an_arm_without_its_reference_is_told_before_it_is_trained(workspace, capsys):
    finish(workspace, "paint", 2, 0.4)
    go(workspace, ["paint"])
    told = capsys.readouterr().out
    assert "Arm paint is compared with nothing: add real to --arms." in told
    assert "no arm is compared with another" in told


def test_a_plan_states_what_the_patients_can_show_before_its_commands_run(workspace, capsys):
    path = workspace / "out" / "benchmark.json"
    plan = go(workspace, plan_only=True)["plan"]
    told = capsys.readouterr()
    assert len(plan) == 2 and "4 patients, 2 with scar" in told.err and not told.out
    stated = json.loads(path.read_text())["before"]
    assert "no-reflow; too few" in stated["validation"][0]
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    go(workspace)
    assert json.loads(path.read_text())["before"] == stated
    with pytest.raises(UserError, match="preset demo -> gpu-2d"):
        go(workspace, preset="gpu-2d")


def test_what_was_trained_before_a_statement_is_told(workspace):
    """As where commands of an earlier --plan ran elsewhere."""
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    for _ in range(2):
        go(workspace)
        stated, = json.loads((workspace / "out" / "benchmark.json").read_text())["before"][
            "validation"]
        assert stated.endswith("Of these trainings 2 had ended before this was stated.")


def test_what_has_ended_is_reported_while_the_rest_has_not(workspace):
    with pytest.raises(UserError, match="no per-case rows"):
        go(workspace, collect_only=True)
    finish(workspace, "real", 8, 0.0)
    outcome = go(workspace, collect_only=True)
    missing = "Not ended yet, so in no number: paint, fold 0, seed 0."
    assert missing in outcome["sentences"] and missing in outcome["report"].read_text()
    assert outcome["verdict"].startswith("Preliminary, not all has ended. No comparison")
    finish(workspace, "paint", 2, 0.4)
    outcome = go(workspace, collect_only=True)
    assert not any("Not ended" in sentence for sentence in outcome["sentences"])
    assert outcome["verdict"].startswith("No evidence")
    assert {"real", "paint"} <= {r["arm"] for r in outcome["rows"]}


def test_a_row_that_is_there_twice_counts_once_and_two_that_differ_are_refused(workspace):
    """As where the files of two machines were put together."""
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "lgesynth", 2, 0.4)
    write_generator(workspace)
    first = go(workspace, ["real", "lgesynth"])
    for name in ("cases", "trainings"):
        path = workspace / "out" / f"{name}_{NAME}.jsonl"
        rows = read_rows(path)
        older = [{k: v for k, v in r.items() if k not in ("patient", "made_of")} for r in rows]
        path.write_text("".join(json.dumps(r) + "\n" for r in [
            *rows, *({**r, "date": "2026-01-01", "commit": "older"} for r in older)]))
    again = go(workspace, ["real", "lgesynth"])

    def values(outcome):
        return [(r["arm"], r["metric"], r["value"], r["n"]) for r in outcome["rows"]]
    assert values(again) == values(first)
    path = workspace / "out" / f"cases_{NAME}.jsonl"
    rows = read_rows(path)
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {**rows[0], "dice": 0.123}]))
    with pytest.raises(UserError, match=(
            r"two rows for real, 0, 0, \w+, validation, v0 that differ in dice: of two")):
        go(workspace, ["real", "lgesynth"])


def test_a_recorded_training_is_not_recorded_again_where_it_is_repeated_as_judge(workspace,
                                                                                monkeypatch):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    shutil.rmtree(workspace / "out" / "seed_0")              # results from elsewhere
    jobs = []
    monkeypatch.setattr("nnunet_lgesynth.benchmark.run.run_jobs",
                        lambda found, *_: jobs.extend(found))
    go(workspace, ["real", "lgesynth"])
    assert [(job.name, job.training and job.training.arm) for job in jobs] == [
        ("real_fold_0_seed_0", None), ("fit_demo_fold_0", None),
        ("lgesynth_fold_0_seed_0", "lgesynth")]


def test_scars_by_a_generator_of_another_preset_are_refused(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "lgesynth", 2, 0.4)
    fill_pool(workspace, "lgesynth")                         # by generator abc
    write_generator(workspace, hash="abc")
    with pytest.raises(UserError, match=r"painted by generator abc, and \S+roi-cpu\S+ holds none; "
                                        "put it back, name the --preset"):
        go(workspace, ["lgesynth", "real"], preset="roi-cpu")
    rows = read_rows(workspace / "out" / f"cases_{NAME}.jsonl")
    assert {r["arm"] for r in rows} == {"real", "real+filter"}            # which had ended, too
    shutil.rmtree(workspace / "out" / "audits", ignore_errors=True)
    for name in ("benchmark.json", f"cases_{NAME}.jsonl", f"trainings_{NAME}.jsonl"):
        (workspace / "out" / name).unlink()
    write_generator(workspace, hash="def")
    with pytest.raises(UserError, match=r"by generator abc, but \S+demo\S+ holds def; name"):
        go(workspace, ["real", "lgesynth"])
    write_generator(workspace, hash="abc")
    assert "lgesynth" in {r["arm"] for r in go(workspace, ["real", "lgesynth"])["rows"]}


def test_a_pool_of_two_generators_is_no_arms(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "lgesynth", 2, 0.4)
    fill_pool(workspace, "lgesynth")
    write_generator(workspace, hash="def")
    path = fold_folder(workspace, "lgesynth") / "lgesynth_pool" / "manifest.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first.replace('"abc"', '"def"'), *others]) + "\n")
    with pytest.raises(UserError, match="by generator abc, def: another one was fitted while it"):
        go(workspace, ["real", "lgesynth"])


def test_a_recorded_arm_whose_trainer_is_not_found_here_is_not_dropped(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    go(workspace)
    path = workspace / "out" / f"cases_{NAME}.jsonl"
    path.write_text(path.read_text().replace('"arm": "paint', '"arm": "nnUNetTrainerElsewhere'))
    with pytest.raises(UserError, match="finds no trainer 'nnUNetTrainerElsewhere'"):
        go(workspace, ["real"])


def test_what_has_begun_to_train_fixes_the_settings(workspace):
    go(workspace, ["real"], plan_only=True)
    go(workspace, ["real"], plan_only=True, epochs=3)        # nothing has begun
    folder = fold_folder(workspace, "real")
    folder.mkdir(parents=True)
    (folder / "lgesynth.jsonl").write_text('{"epoch": 0}\n')
    with pytest.raises(UserError, match="epochs 3 -> 2"):
        go(workspace, ["real"], plan_only=True)


def test_a_training_on_other_patients_of_the_fold_is_not_this_arms(workspace):
    finish(workspace, "real", 8, 0.0, seed="0_n2")
    go(workspace, ["real:n=2"])
    path = workspace / "out" / f"trainings_{NAME}.jsonl"
    row, = read_rows(path)
    split = row["made_of"]["split of fold 0, n=2"]
    assert split == row["made_of"]["split of fold 0"]        # the fold has two
    row["made_of"]["split of fold 0, n=2"] = "0ther"
    path.write_text(json.dumps(row) + "\n")
    for arms in (["real:n=2"], ["paint"]):                   # it is reported beside others, too
        with pytest.raises(UserError, match=r"other data \(split of fold 0, n=2 0ther -> "):
            go(workspace, arms, plan_only=True)


def test_provenance_tells_every_command_as_from_the_start_and_every_hash(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    finish(workspace, "lgesynth", 4, 0.4)
    write_generator(workspace)
    outcome = go(workspace, ["real", "lgesynth"])
    go(workspace, ["paint"])                               # the others are recorded
    whole = json.loads((workspace / "out" / "benchmark.json").read_text())
    verbs = [line.split(" -m nnunet_lgesynth ")[1].split()[0] for line in whole["commands"][1:]]
    assert verbs == ["train", "train", "fit", "train"]
    assert not [line for line in whole["commands"] if "--val" in line or "--c " in line]
    assert set(whole["hashes"]["arms"]) == {"real", "paint", "lgesynth"}
    assert "split of fold 0" in whole["hashes"]["settings"]
    assert whole["hashes"]["arms"]["real"] in outcome["report"].read_text()


def test_rows_of_another_split_are_no_rows_of_this_one(workspace):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    path = workspace / "out" / f"trainings_{NAME}.jsonl"
    row = json.loads(path.read_text())
    row["made_of"]["split of fold 0"] = "0ther"
    path.write_text(json.dumps(row) + "\n")
    (workspace / "out" / "benchmark.json").unlink()          # as where the files alone were copied
    with pytest.raises(UserError, match=r"other data \(split of fold 0 0ther -> \w+\)"):
        go(workspace, ["real"], plan_only=True)


def test_folds_that_share_a_patient_are_refused(workspace):
    path = workspace / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.write_text(json.dumps([{"train": ["t0", "t1"], "val": ["v0", "v1"]},
                                {"train": ["t0", "t1"], "val": ["v1", "v2"]}]))
    with pytest.raises(UserError, match=r"Folds 0 and 1 both validate on v1"):
        go(workspace, ["real"], folds=[0, 1], plan_only=True)


def test_other_plans_or_meanings_of_labels_need_another_folder(workspace):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    plans = workspace / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    told = plans.read_text()
    plans.write_text(told.replace('"batch_size": 2', '"batch_size": 4'))
    with pytest.raises(UserError, match=r"plans of 2d \w+ -> \w+"):
        go(workspace, ["real"])
    plans.write_text(told)
    write_info(workspace / "nnUNet_raw" / NAME, DatasetInfo(dataclasses.replace(
        ROLES, no_reflow=None)))
    with pytest.raises(UserError, match=r"meaning of labels .*no_reflow=4 .* -> "):
        go(workspace, ["real"])


def test_one_benchmark_at_a_time_writes_into_a_folder(workspace):
    finish(workspace, "real", 8, 0.0)
    with alone(workspace / "out", "benchmark"), pytest.raises(
            UserError, match="Another benchmark is writing"):
        go(workspace, ["real"])
    assert go(workspace, ["real"])["results"].is_file()


def test_a_statement_of_an_earlier_version_is_kept(workspace):
    finish(workspace, "real", 8, 0.0)
    go(workspace, ["real"])
    path = workspace / "out" / "benchmark.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "before": {"validation": "4 patients."}}))
    go(workspace, ["real"])
    assert json.loads(path.read_text())["before"]["validation"][0] == "4 patients."


def test_a_generator_is_audited_once_for_the_report(workspace):
    """Here one that cannot be loaded: it is told, and tried again where no audit can be read."""
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "lgesynth", 2, 0.4)
    fill_pool(workspace, "lgesynth")
    write_generator(workspace, hash="abc")

    def audits() -> str:
        go(workspace, ["real", "lgesynth"])
        return (workspace / "out" / "report.md").read_text().partition("Audit of the generators")[2]
    assert "- demo_fold_0: Not audited: " in audits()
    path = workspace / "out" / "audits" / "demo_fold_0" / "audit.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"passed": True, "hash": "abc", "sentences": ["All is well."], "notes": []}
    for text, said in ((json.dumps(told), "All is well."), ("{", "Not audited: "),
                       (json.dumps({**told, "hash": "of another fit"}), "Not audited: ")):
        path.write_text(text)
        assert f"- demo_fold_0: {said}" in audits()


def test_an_arm_recorded_under_two_names_is_reported_under_one(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "paint", 2, 0.4)
    go(workspace)
    path = workspace / "out" / f"cases_{NAME}.jsonl"
    rows = read_rows(path)
    more = [{**r, "arm": r["arm"].replace("paint", name)} for r in rows if "paint" in r["arm"]
            for name in ("nnUNetTrainerLGEPaint", "of another version")]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, *more]))
    assert {r["arm"] for r in go(workspace, ["real"])["rows"]} == {
        "real", "real+filter", "paint", "paint+filter"}


def test_an_arm_recorded_under_its_other_name_does_not_block_this_one(workspace):
    finish(workspace, "real", 8, 0.0)
    finish(workspace, "lgesynth", 2, 0.4)
    go(workspace, ["real", "lgesynth"])
    assert len(go(workspace, ["real", "lgesynth:g=demo"], plan_only=True)["plan"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be caught there")
def test_sigterm_ends_a_benchmark_in_order(workspace, monkeypatch):
    monkeypatch.setattr("nnunet_lgesynth.benchmark.run.run_jobs",
                        lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(10))
    with pytest.raises(SystemExit) as stopped:
        go(workspace, ["real"])
    assert stopped.value.code == 128 + signal.SIGTERM
    with alone(workspace / "out", "benchmark"):          # it has let go of its folder
        pass
