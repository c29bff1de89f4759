"""Laws of the committed results: every number says where it comes from, and can be added to."""

import json
import math
import re
from pathlib import Path

import pytest

from nnunet_lgesynth.benchmark.collect import CASE_KEY, TRAINING_KEY, read_rows
from nnunet_lgesynth.benchmark.report import markdown_table

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
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


def test_the_readme_shows_the_table_of_the_committed_numbers():
    rows = json.loads((RESULTS / "emidec_roi_fold0.json").read_text())
    assert markdown_table(rows) in (RESULTS.parents[1] / "README.md").read_text()


def test_no_result_tells_of_the_machines_folders():
    for path in RESULTS.iterdir():
        assert not re.search(r'[" ](/|[A-Z]:\\)', path.read_text()), path.name
