"""The overhead benchmark trains both arms for real and tells what was seen, late iterations too."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from tiny_training import enter_nnunet, write_tiny_training

from benchmarks import overhead
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.discovery import VARIABLE, trainers_folder

ABOUT = dict.fromkeys(("benchmark", "dataset", "split", "device", "seeds", "preset", "command",
                       "versions", "date"))


def seen(epochs: list[float], steps: list[float], **row) -> list[dict]:
    told = {"seconds_synthesis": 1.0, "drafted": 4, "accepted": 3, "memory_mb": 100,
            "memory_synthesis_mb": 50, "memory_gpu_synthesis_mb": 0} | row
    return [{"epoch": e, "iterations": steps, "row": told, "gpu": None} for e in epochs]


def test_rows_pair_the_epochs_and_leave_the_first_out():
    found = {"stock": seen([99, 10, 20, 10], [1.0] * 99 + [2.0]), "cores": 2, "delay": 1.5,
             "plugin": seen([99, 11, 21, 10.5], [1.0] * 98 + [2.0, 9.0])}
    found["plugin"][-1] = found["plugin"][-1] | {
        "row": found["plugin"][-1]["row"] | {"memory_mb": 107}}
    rows = {(r["arm"], r["metric"]): r for r in overhead.rows_of(found, ABOUT)}

    def value(arm, metric):
        return rows[arm, metric]["value"]
    assert value("plugin", "epoch_overhead_p50") == pytest.approx(0.05)
    low, high = (rows["plugin", "epoch_overhead_p50"][k] for k in ("low", "high"))
    assert low <= 0.05 <= high and rows["plugin", "epoch_overhead_p50"]["n"] == 3
    assert value("plugin", "late_iterations") == pytest.approx(0.01)
    assert value("stock", "late_iterations") == 0 and value("plugin", "iteration_p100") == 9
    assert value("plugin", "synthesis_share") == pytest.approx(3 / 42.5 / 2, abs=1e-6)
    assert value("plugin", "accepted_per_second") == pytest.approx(9 / 42.5, abs=1e-6)
    assert value("plugin", "host_memory_growth_mb") == 7
    assert value("plugin", "start_delay") == 1.5
    assert not any(metric == "gpu_memory_extra_gb" for _, metric in rows)
    assert set(rows["stock", "epoch_p50"]) == set(number_row({**ABOUT, "arm": "x"}, "x", 0.0, n=1))


def test_both_arms_train_in_turn(tmp_path, monkeypatch):
    enter_nnunet(monkeypatch, tmp_path)
    monkeypatch.setenv(VARIABLE, str(trainers_folder()))
    fold = write_tiny_training(tmp_path)
    out = tmp_path / "overhead.json"
    monkeypatch.setattr(sys, "argv", ["overhead", "-d", "116", "-f", "0", "-device", "cpu",
                                      "--pairs", "4", "--iterations", "3", "-o", str(out)])
    assert overhead.main() is None
    rows = {(r["arm"], r["metric"]): r for r in json.loads(out.read_text())}
    assert rows["plugin", "epoch_overhead_p50"]["n"] == 3
    assert all(rows[arm, "iteration_p50"]["n"] == 9 for arm in overhead.ARMS)
    assert rows["plugin", "iteration_p50"]["dataset"] == fold.dataset
    assert np.isfinite([r["value"] for r in rows.values()]).all()
    assert not list((tmp_path / "nnUNet_results").iterdir())     # nothing is left there
    assert torch.is_grad_enabled() and os.environ["nnUNet_results"] == str(
        tmp_path / "nnUNet_results")


@pytest.mark.parametrize("told", [["--pairs", "2"], ["--iterations", "0"]])
def test_too_little_to_measure_is_refused(tmp_path, monkeypatch, capsys, told):
    monkeypatch.setattr(sys, "argv", ["overhead", "-d", "116", "-f", "0", "-o",
                                      str(tmp_path / "x.json"), *told])
    assert overhead.exit_code("overhead", overhead.main) == 2
    assert "must be at least" in capsys.readouterr().err
