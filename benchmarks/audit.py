"""What `lgesynth audit` finds for a fold's generators, as result rows: no patients, no pictures.

    python -m benchmarks.audit -d 116 -f 0 -device cpu --generators paint FOLDER -o audit_fold0.json

`near` is the share of painted scars that lie suspiciously near to one training patient, `near_real`
that of real scars beside the other patients, `near_allowed` the most with which the audit is
passed; `spread`, `slope` and `inside` as in `nnunet_lgesynth.benchmark.audit`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import exit_code, result_file, testset
from nnunet_lgesynth.benchmark.audit import Audit, audit
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.generators.fitted import preset_of
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.generator import load_inpainter, usable_device


def main() -> None:
    parser = testset.fold_parser(__doc__)
    parser.add_argument("--generators", nargs="+", required=True,
                        help='"paint" or fitted fold folders')
    parser.add_argument("-n", type=testset.count, default=40, help="scars")
    parser.add_argument("-o", type=result_file, required=True, help="JSON file of the rows")
    arguments = parser.parse_args()
    fold = testset.open_fold(arguments)
    device = usable_device(arguments.device)
    about = {**testset.about("audit", fold, arguments.device),
             "split": f"training, fold {fold.fold}"}
    rows = []
    for name in arguments.generators:
        generator = Painter() if name == "paint" else load_inpainter(Path(name), fold, device)
        preset = None if name == "paint" else preset_of(Path(name))
        found = audit(fold, generator, arguments.n, seed=0)
        rows += numbers(found, {**about, "arm": preset or name, "preset": preset,
                                "versions": {**about["versions"], "generator": found.hash}})
        write_json(arguments.o, rows)
        print(rows[-1]["arm"], "passed" if found.passed else "FAILED")


def numbers(found: Audit, here: dict) -> list[dict]:
    """The rows of one audit."""
    near, varied = found.memorisation, found.diversity
    n, real = len(near.samples), len(near.reals)
    rows = [number_row(here, "near", near.flagged / n, n=n, unit="fraction"),
            number_row(here, "near_allowed", near.allowed / n, n=n, unit="fraction"),
            number_row(here, "near_real", near.real_flagged / real, n=real, unit="fraction")]
    rows += [number_row(here, name, getattr(varied, name), n=found.config.requests,
                        unit=f"at least {bound}") for name, bound in varied.bounds.items()]
    return [*rows, number_row(here, "audit_passed", float(found.passed), n=n, unit="0 or 1")]


if __name__ == "__main__":
    sys.exit(exit_code("audit", main))
