"""The commands that compute for long, `fit`, `train` and `benchmark`, and `export`."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from nnunet_lgesynth.cli_flags import budget_flags, device_flag, fold_flags, fold_name
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.presets import PRESETS, limited, seeded

__all__ = ["add_benchmark", "add_export", "add_fit", "add_train", "benchmark", "fit", "train"]


def add_fit(commands) -> None:
    parser = commands.add_parser("fit", help="fit the inpainter on a fold's training cases")
    fold_flags(parser)
    parser.add_argument("--preset", default="gpu-2d", choices=sorted(PRESETS))
    parser.add_argument("--reward", metavar="DIR", help=(
        "fold folder of the nnU-Net that judges (default: the stock trainer's, same fold)"))
    parser.add_argument("--start", metavar="DIR", help=(
        "take VAE, U-Net and text encoder from this fitted fold folder instead of fitting them, "
        "and its ControlNet where that would come out the same"))
    parser.add_argument("--text-encoder", metavar="PATH", help="transformers model: path or hub id")
    parser.add_argument("--seed", type=int, default=0, help=(
        "another seed makes a generator of its own, <preset>-seed<N> (default 0)"))
    parser.add_argument("--patients", type=int, metavar="N", help=(
        "fit on N of the fold's training patients, the same ones as lgesynth train --patients N"))
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    parser.add_argument("--dry-run", action="store_true", help="check everything, fit nothing")
    device_flag(parser)
    parser.set_defaults(run=fit)


def fit(arguments) -> int:
    from nnunet_lgesynth.pool.generator import fit_generator

    config = seeded(limited(PRESETS[arguments.preset], arguments.patients), arguments.seed)
    if arguments.text_encoder:
        config = dataclasses.replace(config, text_encoder=arguments.text_encoder)
    folder = fit_generator(arguments.d, arguments.c, arguments.f, arguments.p, config,
                           arguments.reward, arguments.device, arguments.resume,
                           arguments.dry_run, arguments.start)
    print(f"{'Would write' if arguments.dry_run else 'Fitted'} {folder}")
    return 0


NNUNET_FLAGS = ("pretrained_weights", "num_gpus")


def add_train(commands) -> None:
    parser = commands.add_parser("train", help="nnUNetv2_train with the plugin's trainers found",
                                 epilog="Every other flag goes to nnUNetv2_train.")
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("fold", type=fold_name)
    parser.add_argument("-tr", default="nnUNetTrainerLGESynth", metavar="TRAINER")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    budget_flags(parser)
    for flag in NNUNET_FLAGS:        # named here, or -p would take them for its own
        parser.add_argument(f"-{flag}")
    parser.add_argument("--seed", type=int, help="fixes initial weights and pool draws")
    parser.add_argument("--probability", type=float, help="injection probability (default 0.5)")
    parser.add_argument("--fade", type=float, metavar="SHARE", help=(
        "over this last share of the epochs the probability falls to 0 (default: it stays)"))
    parser.add_argument("--no-reflow-share", type=float, metavar="SHARE", help=(
        "of the requested scars that hold a no-reflow core (default: as in the fold's real ones)"))
    parser.add_argument("--patients", type=int, metavar="N", help=(
        "train on N of the fold's training patients: with and without scar as in all, and a part "
        "of any larger N"))
    parser.add_argument("--generator", metavar="DIR", help="fold folder of a fitted generator")
    device_flag(parser)
    parser.set_defaults(run=train)


def train(arguments) -> int:
    from nnunet_lgesynth.dataset.case import Fold
    from nnunet_lgesynth.discovery import add_to_environment, find_trainer, list_trainers
    from nnunet_lgesynth.pool.generator import usable_device

    if arguments.tr in dict(list_trainers()):      # nnU-Net would fail later, less readably
        Fold.open(arguments.dataset, arguments.configuration, arguments.fold, arguments.p)
        usable_device(arguments.device)
    add_to_environment()
    given = {f: v for f in ("epochs", "iterations", "warm_up", "seed", "probability", "patients",
                             "fade", "no_reflow_share", "half", "generator")
             if (v := getattr(arguments, f)) is not None}
    find_trainer(arguments.tr, [f"--{f.replace('_', '-')}" for f in given])
    os.environ.update({f"LGESYNTH_{f.upper()}": str(v) for f, v in given.items()})
    from nnunetv2.run.run_training import run_training_entry

    before = sys.argv
    sys.argv = ["nnUNetv2_train", arguments.dataset, arguments.configuration, str(arguments.fold),
                "-tr", arguments.tr, *arguments.rest]
    for flag in ("p", "device", *NNUNET_FLAGS):
        if (value := getattr(arguments, flag)) is not None:
            sys.argv += [f"-{flag}", value]
    if "--c" in sys.argv and _has_ended(arguments):
        sys.argv[sys.argv.index("--c")] = "--val"       # --c would start synthesis for no epoch
    try:
        run_training_entry()
    except SystemExit as stop:
        if isinstance(stop.__cause__, UserError):    # the trainer has logged it, see there
            raise stop.__cause__ from None
        raise
    finally:
        sys.argv = before
    return 0


def _has_ended(arguments) -> bool:
    """Whether nothing but the validation may be left to do."""
    from nnunet_lgesynth.dataset.case import dataset_name, fold_folder, nnunet_path

    folder = fold_folder(nnunet_path("nnUNet_results"), dataset_name(arguments.dataset),
                         arguments.tr, arguments.p, arguments.configuration, arguments.fold)
    return (folder / "checkpoint_final.pth").is_file()


def add_benchmark(commands) -> None:
    parser = commands.add_parser("benchmark", help="train what is missing, compare the arms")
    fold_flags(parser, fold=False)
    parser.add_argument("--arms", nargs="+", default=["real", "paint", "lgesynth"],
                        metavar="ARM", help=(
                            "real, paint, lgesynth, synthetic-only or any trainer's name; "
                            "lgesynth:p=0.25,n=20 injects with probability 0.25 and trains on 20 "
                            "patients"))
    parser.add_argument("--folds", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many, counted from 0")
    parser.add_argument("--preset", default="gpu-2d", choices=sorted(PRESETS))
    parser.add_argument("--images", metavar="DIR", help="external test images")
    parser.add_argument("--labels", metavar="DIR", help="their labels")
    parser.add_argument("--ensemble", action="store_true", help=(
        "predict the external images with all folds together, too"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plan", action="store_true", help=(
        "train nothing, print the missing commands, which go on where they were interrupted"))
    only.add_argument("--collect", action="store_true", help=(
        "train nothing, record and report what has ended"))
    parser.add_argument("-o", required=True, metavar="DIR", help="output folder")
    budget_flags(parser)
    device_flag(parser)
    parser.set_defaults(run=benchmark)


def benchmark(arguments) -> int:
    from nnunet_lgesynth.benchmark.run import benchmark as compare

    outcome = compare(
        arguments.d, arguments.c, arguments.arms, arguments.folds, arguments.seeds,
        Path(arguments.o), plans=arguments.p, preset=arguments.preset, device=arguments.device,
        epochs=arguments.epochs, iterations=arguments.iterations, images=arguments.images,
        labels=arguments.labels, plan_only=arguments.plan, jobs=arguments.jobs,
        warm_up=arguments.warm_up, ensemble=arguments.ensemble, half=bool(arguments.half),
        collect_only=arguments.collect)
    print("\n".join(outcome["plan"]) if arguments.plan else
          f"{outcome['verdict']}\nReport: {outcome['report']}")
    return 0


def add_export(commands) -> None:
    parser = commands.add_parser(
        "export", help="a trained model as a folder that plain nnU-Net predicts with")
    fold_flags(parser, fold=False)
    parser.add_argument("-f", nargs="+", required=True, type=fold_name, metavar="FOLD",
                        help="folds, or 'all'")
    parser.add_argument("-tr", default="nnUNetTrainerLGESynth", metavar="TRAINER")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE",
                        help="which checkpoint (default checkpoint_final.pth)")
    parser.add_argument("-o", required=True, metavar="DIR", help="new model folder")
    parser.set_defaults(run=export_model)


def export_model(arguments) -> int:
    from nnunet_lgesynth.export import export

    folder = export(arguments.d, arguments.c, arguments.f, arguments.tr, arguments.p, arguments.o,
                    arguments.chk)
    print(f"Wrote {folder}; predict with: nnUNetv2_predict_from_modelfolder -m {folder} "
          f"-f {' '.join(map(str, arguments.f))} -i IMAGES -o PREDICTIONS")
    return 0
