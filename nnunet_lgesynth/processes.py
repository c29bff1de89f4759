"""How a process of ours ends when it is told to, and that it writes alone where it writes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import make_folder

__all__ = ["alone", "sigterm_as_exit"]


@contextmanager
def alone(folder: str | Path, what: str) -> Iterator[None]:
    """Within this no other `what` (benchmark, training, fit) of the plugin writes into the folder:
    two would spoil each other's checkpoints. It lasts as long as this process, however that ends:
    forked workers, which may outlive a killed training, let go of it (filelock 4 does so). A
    benchmark that is killed leaves its trainings behind, which hold their own folders."""
    lock = FileLock(make_folder(folder) / f"{what}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another {what} is writing into {folder}; wait until it has ended, or end "
                        "it, or choose another folder.") from None
    except (OSError, NotImplementedError) as error:      # some network file systems
        print(f"{folder} cannot be locked ({error}); see to it that no other {what} writes there.",
              file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Within this SIGTERM (a cluster's time limit, `kill`) ends the process as Ctrl-C would, with
    all that it started. By default Python would leave its children behind: nnU-Net's workers wait
    for ever, a benchmark's training goes on."""
    if threading.current_thread() is not threading.main_thread():    # no other may set a handler
        yield
        return
    owner = os.getpid()

    def end(number, _):
        if os.getpid() != owner:         # a forked worker, which has nothing to put in order
            os._exit(128 + number)
        raise SystemExit(128 + number)
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
