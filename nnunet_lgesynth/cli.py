"""The command line, with nnU-Net's flag names; the only place that prints.

Exit code 0 only when a command did what it said; 2, with one readable line, for a user's mistake.
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
from nnunet_lgesynth.config import PRESETS, UserError

__all__ = ["main"]

USER_ERRNO = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM, errno.EFBIG,
              errno.EIO, errno.ENOTDIR, errno.EISDIR)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not _train:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        if arguments.run in (_fit, _train, _benchmark):
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
        print(f"lgesynth: error: {where}: {error.strerror}; free space or correct the permissions, "
              "then go on: a training with --c, a fit with --resume.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lgesynth: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lgesynth", description=(
        "Synthetic myocardial scars for nnU-Net: fit, train, compare with real-only."))
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_convert, _add_roles, _add_doctor, _add_trainers, _add_fit,
                _add_train, _add_benchmark):
        add(commands)
    return parser


def _fold_flags(parser, fold: bool = True) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-c", default="2d", metavar="CONFIG", help="configuration (default 2d)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    if fold:
        parser.add_argument("-f", required=True, type=_fold, metavar="FOLD",
                            help="fold number or 'all'")


def _device_flag(parser) -> None:
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"),
                        help="where to compute (default cuda)")


def _budget_flags(parser) -> None:
    parser.add_argument("--epochs", type=int, help="instead of nnU-Net's 1000, in every arm")
    parser.add_argument("--iterations", type=int, help="per epoch, instead of 250")


def _fold(text: str) -> int | str:
    if text == "all" or text.isdigit():
        return text if text == "all" else int(text)
    raise argparse.ArgumentTypeError(f"a fold is a number or 'all', not {text!r}")


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


CONVERTERS = {"emidec": "nnunet_lgesynth.dataset_conversion.Dataset115_EMIDEC"}


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
    parser.add_argument("-f", default=0, type=_fold, metavar="FOLD")
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


def _add_fit(commands) -> None:
    parser = commands.add_parser("fit", help="fit the inpainter on a fold's training cases")
    _fold_flags(parser)
    parser.add_argument("--preset", default="gpu-2d", choices=sorted(PRESETS))
    parser.add_argument("--reward", metavar="DIR", help=(
        "fold folder of the nnU-Net that judges (default: the stock trainer's, same fold)"))
    parser.add_argument("--text-encoder", metavar="PATH", help="transformers model: path or hub id")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    parser.add_argument("--dry-run", action="store_true", help="check everything, fit nothing")
    _device_flag(parser)
    parser.set_defaults(run=_fit)


def _fit(arguments) -> int:
    from nnunet_lgesynth.pool.generator import fit_generator

    config = PRESETS[arguments.preset]
    if arguments.text_encoder:
        config = dataclasses.replace(config, text_encoder=arguments.text_encoder)
    folder = fit_generator(arguments.d, arguments.c, arguments.f, arguments.p, config,
                           arguments.reward, arguments.device, arguments.resume,
                           arguments.dry_run)
    print(f"{'Would write' if arguments.dry_run else 'Fitted'} {folder}")
    return 0


NNUNET_FLAGS = ("pretrained_weights", "num_gpus")


def _add_train(commands) -> None:
    parser = commands.add_parser("train", help="nnUNetv2_train with the plugin's trainers found",
                                 epilog="Every other flag goes to nnUNetv2_train.")
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("fold", type=_fold)
    parser.add_argument("-tr", default="nnUNetTrainerLGESynth", metavar="TRAINER")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    _budget_flags(parser)
    for flag in NNUNET_FLAGS:        # named here, or -p would take them for its own
        parser.add_argument(f"-{flag}")
    parser.add_argument("--seed", type=int, help="fixes initial weights and pool draws")
    parser.add_argument("--probability", type=float, help="injection probability (default 0.5)")
    parser.add_argument("--generator", metavar="DIR", help="fold folder of a fitted generator")
    _device_flag(parser)
    parser.set_defaults(run=_train)


def _train(arguments) -> int:
    from nnunet_lgesynth.dataset.case import Fold
    from nnunet_lgesynth.discovery import add_to_environment, find_trainer, list_trainers
    from nnunet_lgesynth.pool.generator import usable_device

    if arguments.tr in dict(list_trainers()):      # nnU-Net would fail later, less readably
        Fold.open(arguments.dataset, arguments.configuration, arguments.fold, arguments.p)
        usable_device(arguments.device)
    add_to_environment()
    given = {f: v for f in ("epochs", "iterations", "seed", "probability", "generator")
             if (v := getattr(arguments, f)) is not None}
    find_trainer(arguments.tr, [f"--{f}" for f in given])
    os.environ.update({f"LGESYNTH_{f.upper()}": str(v) for f, v in given.items()})
    from nnunetv2.run.run_training import run_training_entry

    before = sys.argv
    sys.argv = ["nnUNetv2_train", arguments.dataset, arguments.configuration, str(arguments.fold),
                "-tr", arguments.tr, *arguments.rest]
    for flag in ("p", "device", *NNUNET_FLAGS):
        if (value := getattr(arguments, flag)) is not None:
            sys.argv += [f"-{flag}", value]
    try:
        run_training_entry()
    except SystemExit as stop:
        if isinstance(stop.__cause__, UserError):    # the trainer has logged it, see there
            raise stop.__cause__ from None
        raise
    finally:
        sys.argv = before
    return 0


def _add_benchmark(commands) -> None:
    parser = commands.add_parser("benchmark", help="train what is missing, compare the arms")
    _fold_flags(parser, fold=False)
    parser.add_argument("--arms", nargs="+", default=["real", "paint", "lgesynth"],
                        metavar="ARM", help="real, paint, lgesynth or any trainer's name")
    parser.add_argument("--folds", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many, counted from 0")
    parser.add_argument("--preset", default="gpu-2d", choices=sorted(PRESETS))
    parser.add_argument("--images", metavar="DIR", help="external test images")
    parser.add_argument("--labels", metavar="DIR", help="their labels")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--plan", action="store_true", help="only print the commands")
    parser.add_argument("-o", required=True, metavar="DIR", help="output folder")
    _budget_flags(parser)
    _device_flag(parser)
    parser.set_defaults(run=_benchmark)


def _benchmark(arguments) -> int:
    from nnunet_lgesynth.benchmark.run import benchmark

    outcome = benchmark(
        arguments.d, arguments.c, arguments.arms, arguments.folds, arguments.seeds,
        Path(arguments.o), plans=arguments.p, preset=arguments.preset, device=arguments.device,
        epochs=arguments.epochs, iterations=arguments.iterations, images=arguments.images,
        labels=arguments.labels, plan_only=arguments.plan, jobs=arguments.jobs)
    print("\n".join(outcome["plan"]) if arguments.plan else
          f"{outcome['verdict']}\nReport: {outcome['report']}")
    return 0
