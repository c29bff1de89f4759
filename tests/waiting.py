"""Waiting for what other processes do, without end in no case."""

from time import monotonic, sleep

__all__ = ["PATIENCE", "until"]

PATIENCE = 180           # seconds; a process imports torch first, and machines may be busy


def until(reached, tend=lambda: None) -> None:
    """Wait until `reached()`; `tend` is called in between, as an engine's is after iterations."""
    deadline = monotonic() + PATIENCE
    while not reached():
        assert monotonic() < deadline, "it did not get there"
        tend()
        sleep(0.02)
