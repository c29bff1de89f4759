"""Every number that needs a GPU, in one run: `make gpu-check`, planned for 8 minutes on an H100.

    python -m benchmarks.gpu_check -device cuda -o benchmarks/results/gpu_check.json

    throughput   seconds a draft by batch, in half precision, float32 and channels_last
    memory       peak GPU memory of drafting and of a training step of each stage, seconds a step
    agreement    drafts of the same seeds: CUDA against CPU, half precision against float32
    pass_rate    a judge and a generator made on the analytic phantom: pass rate, seconds an
                 accepted draft, in half precision and in float32
    compile      seconds a draft with torch.compile; left out where the time is up

Two sizes are measured: the preset `roi-cpu`, and `gpu-2d` at 256 x 256 pixels. All data are made on
the spot; nothing is downloaded. The file is written after every row, so an interrupted run
keeps what it has measured. `--parts` runs some parts alone and leaves the others' rows in the file
as they are. What fails (out of memory, a compilation) leaves a row without a value, whose `split`
tells why. `--tiny -device cpu` tries all of it in small, which measures nothing.

On a machine without a package registry, with the dependencies of setup.cfg in place:

    python -m pip install --no-deps --no-build-isolation -e .
    python -m benchmarks.gpu_check -device cuda -o gpu_check.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from time import perf_counter

import torch

from benchmarks import exit_code, result_file
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.provenance import machine, versions

PARTS = ("throughput", "memory", "agreement", "pass_rate", "compile")
BENCHMARK = "gpu_check"


def main(argv: list[str] | None = None) -> int:
    """Measure; 0 if every part came to its end, 1 if one did not, 2 for a user's mistake."""
    return exit_code("gpu_check", _checked, _arguments(argv))


def _arguments(argv: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--minutes", type=float, default=8.0,
                        help="no compilation begins near their end")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few patients")
    parser.add_argument("-o", type=result_file, required=True, help="JSON file of the rows")
    return parser.parse_args(argv)


def _checked(arguments) -> int:
    _refuse(arguments)
    return _run(arguments)


def _refuse(arguments) -> None:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("This machine has no CUDA GPU that PyTorch can use, so there is nothing "
                        "to measure; run it on one, or add -device cpu --tiny for a trial.")
    if arguments.device == "cpu" and not arguments.tiny:
        raise UserError("On a CPU these sizes would take hours; add --tiny for a trial.")


def _run(arguments) -> int:
    from benchmarks.gpu_sizes import FULL, TINY, Check

    device = torch.device(arguments.device)
    about = {"dataset": "phantom", "seeds": [0], "device": machine(arguments.device),
             "command": _command(arguments), "versions": versions(),
             "date": date.today().isoformat()}
    check = Check(TINY if arguments.tiny else FULL, device, about,
                  perf_counter() + 60 * arguments.minutes)
    parts = [p for p in PARTS if p in arguments.parts]
    rows = _kept(arguments.o, parts)
    failed = []
    for part in parts:
        begin = perf_counter()
        mine = dataclasses.replace(check, about={**about, "benchmark": f"{BENCHMARK} {part}"})
        for row in _rows(part, mine, failed):
            rows.append(row)
            write_json(arguments.o, rows)
            print(_line(row), flush=True)
        print(f"{part}: {perf_counter() - begin:.0f} s", flush=True)
    for part in failed:
        print(f"gpu_check: {part} did not come to its end; again with: --parts {part}",
              file=sys.stderr)
    return 1 if failed else 0


def _rows(part: str, check, failed: list[str]) -> Iterator[dict]:
    """A part's rows; where it breaks off, the last one tells why and `failed` names the part."""
    from benchmarks.gpu_sizes import free, told

    try:
        yield from _measure(part)(check)
    except Exception as error:      # it must not cost the other parts
        traceback.print_exc()
        failed.append(part)
        here = {**check.about, "arm": part, "preset": None, "split": f"failed: {told(error)}"}
        yield number_row(here, "completed", None, n=0)
    free()


def _measure(part: str) -> Callable:
    """What measures a part; imported when its turn comes, so that none costs another."""
    if part == "memory":
        from benchmarks.gpu_training import memory

        return memory
    if part == "pass_rate":
        from benchmarks.gpu_pass_rate import pass_rate

        return pass_rate
    from benchmarks import gpu_drafts

    return {"throughput": gpu_drafts.throughput, "agreement": gpu_drafts.agreement,
            "compile": gpu_drafts.compiled}[part]


def _kept(path: Path, parts: list[str]) -> list[dict]:
    """Rows of the file that other parts have written before."""
    if len(parts) == len(PARTS) or not path.is_file():
        return []
    mine = {f"{BENCHMARK} {part}" for part in parts}
    return [row for row in json.loads(path.read_text()) if row["benchmark"] not in mine]


def _command(arguments) -> str:
    """The command, without this machine's folders."""
    parts = [] if tuple(arguments.parts) == PARTS else ["--parts", *arguments.parts]
    words = ["python -m benchmarks.gpu_check -device", arguments.device, *parts,
             *["--tiny"] * arguments.tiny, "-o", arguments.o.name]
    return " ".join(words)


def _line(row: dict) -> str:
    value = "-" if row["value"] is None else f"{row['value']:.6g}"
    return f"{row['arm']:44} {row['split']:80} {row['metric']:26} {value:>12} {row['unit']}"


if __name__ == "__main__":
    sys.exit(main())
