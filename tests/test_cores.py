"""Laws of the measurement of no-reflow cores."""

from tiny_fold import write_tiny_fold
from tiny_nnunet import write_tiny_model

from benchmarks.cores import measure, rows_of


def test_the_painters_cores_are_as_dark_as_asked(tmp_path):
    found = measure(write_tiny_fold(tmp_path), write_tiny_model(tmp_path), [], 6, "cpu")
    paint = found["generators"]["paint"]
    assert paint["asked"]["slices"] == paint["drafted"]["slices"] == 6
    assert abs(paint["drafted"]["core"] - paint["asked"]["core"]) < 0.15
    assert found["real"]["slices"] > 0 and found["real"]["scar_above_core"] > 0
    about = dict.fromkeys(("benchmark", "dataset", "split", "device", "seeds", "command",
                           "versions", "date"))
    rows = {(r["arm"], r["metric"]): r for r in rows_of(found, about)}
    assert rows["paint", "core_drafted"]["value"] == paint["drafted"]["core"]
    assert rows["real", "core_measured"]["unit"] == "normalised"
