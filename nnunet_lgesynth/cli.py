"""The command line, with nnU-Net's flag names; the only place that prints.

Exit code 0 only when a command did what it said; 1 where an audit is failed; 2, with one readable
line, for a user's mistake.
Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib
import json
import os
import sys
from pathlib import Path

from nnunet_lgesynth import __version__
from nnunet_lgesynth.cli_flags import fold_name
from nnunet_lgesynth.cli_samples import add_anatomy, add_audit, add_preview, add_synthesize
from nnunet_lgesynth.cli_train import (
    add_benchmark,
    add_export,
    add_fit,
    add_train,
    benchmark,
    fit,
    train,
)
from nnunet_lgesynth.config import UserError

__all__ = ["main"]

USER_ERRNO = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM, errno.EFBIG,
              errno.EIO, errno.ENOTDIR, errno.EISDIR)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not train:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        if arguments.run in (fit, train, benchmark):
            from nnunet_lgesynth.dataset.case import nnunet_path

            _ = nnunet_path("nnUNet_preprocessed"), nnunet_path("nnUNet_results")
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"lgesynth: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in USER_ERRNO:
            raise
        where = error.filename or os.environ.get("nnUNet_results", "the output folder")
        resume = ", then go on: a training with --c, a fit with --resume" \
            if arguments.run in (fit, train, benchmark) else ""
        print(f"lgesynth: error: {where}: {error.strerror}; free space or correct the permissions"
              f"{resume}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lgesynth: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lgesynth", description=(
        "Synthetic myocardial scars for nnU-Net: fit, train, compare with real-only."))
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_convert, _add_roles, _add_doctor, add_anatomy, _add_trainers,
                add_fit, add_synthesize, add_train, add_benchmark, add_audit, add_preview,
                add_export):
        add(commands)
    return parser


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="the whole path, small, on a built-in phantom")
    parser.add_argument("-o", default="lgesynth_demo", metavar="DIR", help="output folder")
    parser.set_defaults(run=_demo)


def _demo(arguments) -> int:
    from nnunet_lgesynth.demo import run_demo

    outcome = run_demo(Path(arguments.o), log=lambda text: print(text, flush=True))
    print(f"{outcome['verdict']}\nReport: {outcome['report']}")
    return 0


def _add_convert(commands) -> None:
    parser = commands.add_parser("convert", help="make an nnU-Net dataset of a public one")
    parser.add_argument("source", choices=sorted(CONVERTERS), help="which public dataset")
    parser.add_argument("-i", required=True, metavar="SRC", help="folder that holds it")
    parser.add_argument("-d", required=True, type=int, metavar="ID", help="new dataset id")
    parser.add_argument("--roi", type=int, metavar="PIXELS", help="LV-centred crop of this size")
    parser.add_argument("--spacing", type=float, metavar="MM", help="in-plane pixel of the crop")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    parser.set_defaults(run=_convert)


CONVERTERS = {"emidec": "nnunet_lgesynth.dataset_conversion.Dataset115_EMIDEC",
              "myops": "nnunet_lgesynth.dataset_conversion.Dataset117_MyoPS"}


def _convert(arguments) -> int:
    from nnunet_lgesynth.dataset.case import nnunet_path
    from nnunet_lgesynth.dataset.raw import Region

    if (arguments.roi is None) != (arguments.spacing is None):
        raise UserError("--roi and --spacing belong together: give both or neither.")
    if not 1 <= arguments.d <= 999:
        raise UserError(f"-d must lie in 1..999 (nnU-Net's dataset ids), not {arguments.d}.")
    region = None if arguments.roi is None else Region(arguments.roi, arguments.spacing)
    converter = importlib.import_module(CONVERTERS[arguments.source])
    folder = converter.convert(Path(arguments.i), nnunet_path("nnUNet_raw"), arguments.d, region,
                               arguments.overwrite)
    print(f"Wrote {folder}\nNext: nnUNetv2_plan_and_preprocess -d {arguments.d} -c 2d "
          "--verify_dataset_integrity")
    return 0


def _add_roles(commands) -> None:
    parser = commands.add_parser("roles", help="tell what a dataset's labels mean")
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    for role in ("cavity", "myocardium", "scar", "no-reflow", "rv"):
        parser.add_argument(f"--{role}", metavar="LABEL", help="label name or value")
    parser.add_argument("--channel", metavar="NAME", help="name or index of the LGE channel")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_roles)


def _roles(arguments) -> int:
    from nnunet_lgesynth.dataset.roles import set_roles

    told = {r: getattr(arguments, r) for r in ("cavity", "myocardium", "scar", "no_reflow", "rv")
            if getattr(arguments, r) is not None}
    path, roles = set_roles(arguments.d, told, arguments.channel)
    found = dataclasses.asdict(roles)
    print(json.dumps(found) if arguments.json else "\n".join(
        [f"Wrote {path}", *(f"  {name:12} {value}" for name, value in found.items())]))
    return 0


def _add_doctor(commands) -> None:
    parser = commands.add_parser("doctor", help="what is wrong with the set-up, and the remedy")
    parser.add_argument("-d", metavar="DATASET", help="dataset id or name")
    parser.add_argument("-c", default="2d", metavar="CONFIG")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-f", default=0, type=fold_name, metavar="FOLD")
    parser.add_argument("-device", default=None, choices=("cuda", "cpu", "mps"))
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments) -> int:
    from nnunet_lgesynth.doctor import examine

    findings = examine(arguments.d, arguments.c, arguments.p, arguments.f, arguments.device)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(f) for f in findings], indent=1))
    else:
        for f in findings:
            print(f"{f.status:8} {f.check:22} {f.message}")
            if f.remedy:
                print(f"{'':32}remedy: {f.remedy}")
    return 2 if any(f.status == "error" for f in findings) else 0


def _add_trainers(commands) -> None:
    parser = commands.add_parser("trainers", help="the trainers, one line each")
    parser.add_argument("--path", action="store_true",
                        help="only their folder, for nnUNet_extTrainer")
    parser.set_defaults(run=_trainers)


def _trainers(arguments) -> int:
    from nnunet_lgesynth.discovery import list_trainers, trainers_folder

    print(trainers_folder() if arguments.path else
          "\n".join(f"{name:28} {line}" for name, line in list_trainers()))
    return 0
