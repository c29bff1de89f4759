"""How a process of ours ends when it is told to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["sigterm_as_exit"]


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
