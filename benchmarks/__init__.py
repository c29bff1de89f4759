"""What the plugin measures of itself; each part runs as `python -m benchmarks.<part>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nnunet_lgesynth.config import UserError

__all__ = ["exit_code", "result_file"]


def exit_code(name: str, work: Callable[..., int | None], *arguments) -> int:
    """What a benchmark ends with: its own code (none is 0), 2 for a user's mistake."""
    try:
        return work(*arguments) or 0
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2


def result_file(text: str) -> Path:
    """The type of `-o`: a file in a folder that exists, so that hours of work do not end there."""
    path = Path(text)
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: its folder does not exist; "
                                         "make it, or name another file")
    return path
