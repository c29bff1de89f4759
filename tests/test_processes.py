"""Laws of processes: who writes into a folder writes there alone, as long as it lives."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import until

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.processes import alone

HOLDER = """
import multiprocessing, sys, time
from nnunet_lgesynth.processes import alone
with alone(sys.argv[1], "training"):
    worker = multiprocessing.get_context(sys.argv[2]).Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)
"""


def refused(folder) -> bool:
    try:
        with alone(folder, "training"):
            return False
    except UserError as error:
        assert f"Another training is writing into {folder}; wait until" in str(error)
        return True


def test_a_folder_is_held_within_and_let_go_after(tmp_path):
    with alone(tmp_path, "training"):
        assert refused(tmp_path)
        with alone(tmp_path, "fit"):                    # another matter
            pass
    assert not refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX only")
def test_workers_that_outlive_a_killed_training_do_not_hold_its_folder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), "fork"],
                          stdout=subprocess.PIPE, text=True) as holder:
        worker = psutil.Process(int(holder.stdout.readline()))
        try:
            assert refused(tmp_path)                    # though the worker has let go
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            until(lambda: not refused(tmp_path))
            assert worker.is_running()
        finally:
            worker.kill()
