"""Files and folders, written whole or not at all, whatever stops the process; and JSON read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_lgesynth.config import UserError

__all__ = ["make_folder", "new_folder", "read_json", "replacing", "write_json", "write_text"]


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents; `UserError` where a file is in the way."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path} cannot be a folder: a file is in the way; name another "
                        "place.") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL):
            raise
        raise UserError(f"{path} cannot be a folder ({error.strerror}); name another place.") \
            from error
    return path


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` once the block ends, and never where it fails;
    `UserError` where `path` is there already and not an empty folder."""
    path = Path(path).resolve()
    if path.is_file() or (path.exists() and any(path.iterdir())):
        raise UserError(f"{path} is not an empty folder; name a new one with -o, or move it away.")
    make_folder(path.parent)
    partial = make_folder(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part"))
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write in the place of `path`, with its ending: a reader sees the old or the new
    one, never a part of it."""
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, remedy: str) -> dict:
    """A JSON file that the command `remedy` writes; `UserError` where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; run: {remedy}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); write it anew: {remedy}") from error
