"""Flags that several commands share, with nnU-Net's names."""

from __future__ import annotations

import argparse

__all__ = ["budget_flags", "device_flag", "fold_flags", "fold_name"]


def fold_flags(parser, fold: bool = True) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-c", default="2d", metavar="CONFIG", help="configuration (default 2d)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    if fold:
        parser.add_argument("-f", required=True, type=fold_name, metavar="FOLD",
                            help="fold number or 'all'")


def device_flag(parser) -> None:
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"),
                        help="where to compute (default cuda)")


def budget_flags(parser) -> None:
    parser.add_argument("--epochs", type=int, help="instead of nnU-Net's 1000, in every arm")
    parser.add_argument("--iterations", type=int, help="per epoch, instead of 250")
    parser.add_argument("--half", action="store_const", const=1, help=(
        "train in half precision on a CPU that has bfloat16, as nnU-Net does on CUDA"))
    parser.add_argument("--warm-up", type=int, metavar="CASES", help=(
        "scarred cases that a training with synthesis waits for before it begins (default 0)"))


def fold_name(text: str) -> int | str:
    if text == "all" or text.isdigit():
        return text if text == "all" else int(text)
    raise argparse.ArgumentTypeError(f"a fold is a number or 'all', not {text!r}")
