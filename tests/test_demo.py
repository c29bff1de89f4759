"""The demo's own path, small: phantom, conversion, nnU-Net's planning, two arms, report.

The inpainter's arm is left to `make demo` and, in process, to test_trainer; here run the commands.
"""

import json

from pages import pictures_of

from nnunet_lgesynth import demo
from nnunet_lgesynth.demo import FEATURES, run_demo

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer",
             "nnUNet_n_proc_DA", "nnUNet_compile")


def test_the_demo_ends_in_a_report_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")       # set by the demo; undone after the test
    monkeypatch.setattr(demo, "PROCESSES", 1)       # each imports nnU-Net first
    monkeypatch.setattr(demo, "WARM_UP", 4)
    # of some hundred patches; few may all miss the scars
    size = {"patients": 6, "arms": ("real", "paint"), "epochs": 2, "iterations": 10}
    said = []
    outcome = run_demo(tmp_path, said.append, **size)
    page = outcome["report"].read_text()
    assert pictures_of(page) == 2                # patients that gained and lost, the pool's samples
    assert page.index(outcome["verdict"]) < page.index("<table>")
    assert "Stated before the run" in page
    for heading in ("Arms", "Paired differences", "Scar found or not", "Each patient, paired",
                    "Scar volume", "AHA segments", "All metrics", "What was injected"):
        assert heading in page
    plans = next(tmp_path.glob("nnUNet_preprocessed/*/nnUNetPlans.json"))
    network = json.loads(plans.read_text())["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert network["features_per_stage"] == FEATURES
    rows = {(r["arm"], r["metric"]): r["value"] for r in outcome["rows"]}
    assert rows["real", "injected_fraction"] == 0 < rows["paint", "injected_fraction"]
    logs = {p: p.stat().st_mtime_ns for p in (tmp_path / "benchmark" / "logs").iterdir()}
    assert run_demo(tmp_path, said.append, **size)["rows"] == outcome["rows"]
    assert {p: p.stat().st_mtime_ns for p in logs} == logs       # nothing was trained again
    assert sum("phantom patients" in line for line in said) == 1
