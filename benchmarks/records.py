"""Results of arms measured at different times, kept beside each other in one file.

`<name>.json` holds the numbers; `<name>.csv` one line a drafted request and judge, from which other
intervals and comparisons than the numbers' can be computed without the generators.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from nnunet_lgesynth.config import write_json, write_text

__all__ = ["FIELDS", "beside", "of_requests", "write"]

FIELDS = ("arm", "judge", "request", "case", "z", "burden", "dice", "found", "accepted",
          "found_burden", "burden_error", "segment_jaccard", "transmurality_error",
          "asked_contrast", "contrast")


def of_requests(arm: str, judge: str, found: Sequence[dict]) -> list[dict]:
    """Lines of an arm's judged drafts, in the order of the test set."""
    return [{"arm": arm, "judge": judge, "request": k,
             **{name: _short(row[name]) for name in FIELDS[3:]}} for k, row in enumerate(found)]


def _short(value):
    if isinstance(value, str):
        return value
    return int(value) if float(value).is_integer() else round(float(value), 5)


def beside(earlier: list[dict], rows: list[dict]) -> list[dict]:
    """The rows with the earlier ones of other arms, each arm at its place."""
    places = list(dict.fromkeys(r["arm"] for r in earlier + rows))
    measured = {r["arm"] for r in rows}
    kept = [r for r in earlier if r["arm"] not in measured]
    return sorted(kept + rows, key=lambda r: places.index(r["arm"]))


def write(path: Path, rows: list[dict], lines: list[dict]) -> None:
    """Write numbers and lines beside those that the files hold of other arms."""
    write_json(path, beside(json.loads(path.read_text()) if path.exists() else [], rows))
    table, text = path.with_suffix(".csv"), io.StringIO(newline="")
    earlier = csv.DictReader(table.read_text().splitlines()) if table.exists() else ()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(beside(list(earlier), lines))
    write_text(table, text.getvalue())
