"""Results of arms measured at different times, kept beside each other in two files.

`<name>.json` holds the numbers; `<name>.csv` a line for every draft and judge, and for every real
scar slice (arm "real"), from which other intervals and comparisons can be computed without the
generators.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import part_of
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import write_json, write_text

__all__ = ["FIELDS", "beside", "of_slices", "read", "refuse_others", "write"]

FIELDS = ("arm", "judge", "request", "case", "z", "burden", "dice", "found", "accepted",
          "found_burden", "burden_error", "segment_jaccard", "transmurality_error",
          "asked_contrast", "contrast")


def of_slices(arm: str, judge: str, found: Sequence[dict]) -> list[dict]:
    """Lines of an arm's judged slices, in the order of the test set; what real ones lack is
    empty."""
    return [{"arm": arm, "judge": judge, "request": k,
             **{name: _short(row.get(name)) for name in FIELDS[3:]}} for k, row in enumerate(found)]


def _short(value):
    if value is None or isinstance(value, str):
        return value
    return int(value) if float(value).is_integer() else round(float(value), 5)


def read(path: Path) -> tuple[list[dict], list[dict]]:
    """Numbers and lines that the files hold; `UserError` where they do not belong together."""
    if path.suffix != ".json":
        raise UserError(f"{path} must end with .json: its lines go into a .csv of the same name.")
    table = path.with_suffix(".csv")
    rows = json.loads(path.read_text()) if path.exists() else []
    lines = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    arms = ({r.get("arm") for r in part} - {"real"} for part in (rows, lines))
    if len(set(map(frozenset, arms))) > 1 or any(set(line) != set(FIELDS) for line in lines):
        raise UserError(f"{path} and {table.name} do not hold the same arms; name another file, or "
                        "move both away.")
    return rows, lines


def refuse_others(path: Path, about: dict, requests: int) -> None:
    """Raise `UserError` where the file holds rows of another test set or other judges than what is
    to be measured `about` so many requests."""
    def key(row: dict) -> tuple:
        judges = {k: v for k, v in row["versions"].items() if k.startswith("judge_")}
        return row["dataset"], row["split"].removesuffix(f", {part_of(row)}"), judges

    rows, _ = read(path)
    if any(key(r) != key(about) for r in rows) or any(
            r["n"] != requests for r in rows if r["metric"] == "changed_outside"):
        raise UserError(f"{path} holds rows of another fold, number of requests or judges; name "
                        "another file, or move it away.")


def beside(earlier: list[dict], rows: list[dict]) -> list[dict]:
    """The rows with the earlier ones of other arms, each arm at its place."""
    places = list(dict.fromkeys(r["arm"] for r in earlier + rows))
    measured = {r["arm"] for r in rows}
    kept = [r for r in earlier if r["arm"] not in measured]
    return sorted(kept + rows, key=lambda r: places.index(r["arm"]))


def write(path: Path, rows: list[dict], lines: list[dict]) -> None:
    """Write numbers and lines beside those that the files hold of other arms."""
    earlier_rows, earlier_lines = read(path)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(beside(earlier_lines, lines))
    write_json(path, beside(earlier_rows, rows))
    write_text(path.with_suffix(".csv"), text.getvalue())
