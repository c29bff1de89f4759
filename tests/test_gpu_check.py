"""Laws of `benchmarks.gpu_check`: complete rows, and nothing that fails costs what was measured.

The whole command is run in small: on the CPU the parts that take seconds, on CUDA all of them.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
import torch
from test_results import FIELDS
from tiny_fold import write_tiny_fold
from tiny_nnunet import write_tiny_model

from benchmarks import gpu_check, gpu_drafts, gpu_pass_rate, gpu_sizes
from nnunet_lgesynth.generators.inpaint.train import fit
from nnunet_lgesynth.judge.segmenter import Segmenter

ROOT = Path(__file__).parents[1]
QUICK = ("throughput", "memory", "agreement")
TRIAL = ["-device", "cpu", "--tiny"]


@pytest.fixture
def check():
    about = {"benchmark": "gpu_check", "dataset": "phantom", "seeds": [0], "device": "cpu",
             "command": "", "versions": {}, "date": "2026-01-01"}
    return gpu_sizes.Check(gpu_sizes.TINY, torch.device("cpu"), about, perf_counter() + 480)


def refuse_incomplete(rows):
    assert rows
    for row in rows:
        assert set(row) == FIELDS and row["value"] is not None and row["n"] >= 1, row
        assert all(math.isfinite(row[k]) for k in ("value", "low", "high") if row[k] is not None)
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]


def metrics_by_part(rows) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {}
    for row in rows:
        parts.setdefault(row["benchmark"].removeprefix("gpu_check "), set()).add(row["metric"])
    return parts


def test_the_command_in_small_on_a_cpu(tmp_path):
    out = tmp_path / "rows.json"
    assert gpu_check.main([*TRIAL, "--parts", *QUICK, "-o", str(out)]) == 0
    rows = json.loads(out.read_text())
    refuse_incomplete(rows)
    found = metrics_by_part(rows)
    assert set(found) == set(QUICK)
    assert {"seconds_per_draft", "speed_ratio"} <= found["throughput"]
    assert found["memory"] == {"seconds_per_training_step", "seconds_per_batch_drawn"}
    trained = [r["split"] for r in rows if r["metric"] == "seconds_per_training_step"]
    assert all(any(f"training of {stage}," in s for s in trained)
               for stage in ("vae", "unet", "controlnet", "reward"))
    same = [r for r in rows if r["arm"] == "cpu float32 against cpu float32"]
    assert len(same) == 2 and all(r["value"] == 0 for r in same)
    assert str(tmp_path) not in out.read_text()


def test_one_part_again_leaves_the_others_rows(tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    other = {"benchmark": "gpu_check throughput", "metric": "kept"}
    out.write_text(json.dumps([other, {"benchmark": "gpu_check agreement", "metric": "old"}]))
    monkeypatch.setattr(gpu_check, "_measure", lambda part: gpu_drafts.agreement)
    assert gpu_check.main([*TRIAL, "--parts", "agreement", "-o", str(out)]) == 0
    first, *rest = json.loads(out.read_text())
    assert first == other
    refuse_incomplete(rest)
    assert "old" not in {r["metric"] for r in rest}


def test_a_part_that_breaks_off_costs_no_other(tmp_path, monkeypatch, capsys):
    def broken(check):
        yield from list(gpu_drafts.agreement(check))[:1]
        raise RuntimeError("lost: '/home/someone/cache/file.so' is gone")

    monkeypatch.setattr(gpu_check, "_measure", lambda part: {
        "throughput": broken, "agreement": gpu_drafts.agreement}[part])
    out = tmp_path / "rows.json"
    assert gpu_check.main([*TRIAL, "--parts", "throughput", "agreement", "-o", str(out)]) == 1
    rows = json.loads(out.read_text())
    refuse_incomplete([rows[0], *rows[2:]])
    lost = rows[1]
    assert set(lost) == FIELDS and lost["value"] is None and lost["metric"] == "completed"
    assert "RuntimeError: lost: 'file.so' is gone" in lost["split"] and "/" not in lost["split"]
    assert {r["benchmark"] for r in rows[2:]} == {"gpu_check agreement"}
    assert "--parts throughput" in capsys.readouterr().err


def test_a_failing_compilation_is_a_row(check, monkeypatch):
    def refused(*arguments, **settings):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **settings: refused)
    plain, lost = gpu_drafts.compiled(check)
    refuse_incomplete([plain])
    assert lost["value"] is None and "failed: RuntimeError: no compiler" in lost["split"]
    late = list(gpu_drafts.compiled(replace(check, deadline=perf_counter())))
    assert [r["value"] for r in late] == [None] and "little time was left" in late[0]["split"]


def test_pass_rates_of_a_fitted_generator(check, tmp_path, without_pictures):
    fold = write_tiny_fold(tmp_path / "data", cases=8)
    judge = Segmenter.load_fold(write_tiny_model(tmp_path / "results"), "cpu")
    folder = tmp_path / "LGESynth_tiny__nnUNetPlans__2d" / "fold_0"
    fit(fold, check.plan.fitted, folder, "cpu", judge)
    rows = list(gpu_pass_rate.compare(check, fold, folder, judge))
    refuse_incomplete(rows)
    arms = {r["arm"]: r for r in rows if r["metric"] == "seconds_per_accepted"}
    assert set(arms) == {f"tiny, {p}" for p in (gpu_sizes.precision(check.device), "float32")}
    assert all(r["n"] == check.plan.requests for r in arms.values())
    assert {"qc_pass_own", "draft_difference_max"} <= {r["metric"] for r in rows}
    assert "fitted in 2+2+2+1 steps" in rows[0]["split"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_without_a_gpu_one_sentence_says_so(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert gpu_check.main(["-o", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert "no CUDA GPU" in said and "\n" not in said and not out.exists()


def test_hours_on_a_cpu_are_refused(tmp_path, capsys):
    assert gpu_check.main(["-device", "cpu", "-o", str(tmp_path / "rows.json")]) == 2
    assert "add --tiny" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU that PyTorch can use")
def test_the_command_in_small_on_cuda(tmp_path):
    out = tmp_path / "rows.json"
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_check", "-device", "cuda",
                           "--tiny", "-o", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())
    refuse_incomplete(rows)
    found = metrics_by_part(rows)
    assert set(found) == set(gpu_check.PARTS)
    assert "gpu_memory_peak_gb" in found["memory"]
    assert {"qc_pass_own", "seconds_per_accepted"} <= found["pass_rate"]
    assert all("cuda" in r["device"] for r in rows)
