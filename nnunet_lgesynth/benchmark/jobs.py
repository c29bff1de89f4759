"""Runs the plan's jobs, several at a time and each on a GPU of its own where there are several."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

from nnunet_lgesynth.benchmark.plan import Job
from nnunet_lgesynth.benchmark.records import Training
from nnunet_lgesynth.config import UserError

__all__ = ["run_jobs", "visible_gpus"]

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    told = [gpu for gpu in os.environ.get(VISIBLE, "").split(",") if gpu]
    return told or [str(k) for k in range(torch.cuda.device_count())]


def run_jobs(jobs: Sequence[Job], logs: Path, parallel: int = 1,
             record: Callable[[Training], None] | None = None, gpus: Sequence[str] = ()) -> None:
    """Run jobs stage by stage, `parallel` at a time, output to `logs/<name>.log`; `record` is
    called with each training that ended. Of `gpus` each job sees one, the jobs that run at a time
    different ones as far as they go.

    After a failure the jobs that run are awaited, none is started, and `UserError` names the log.
    Where this process is told to end, they are told so, too.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: set[subprocess.Popen] = set()
    slots: SimpleQueue[dict[str, str]] = SimpleQueue()
    for slot in range(parallel):
        slots.put({VISIBLE: gpus[slot % len(gpus)]} if gpus else {})
    with tqdm(total=len(jobs), desc="benchmark", unit="job", disable=not jobs) as bar:
        for stage in sorted({job.stage for job in jobs}):
            with ThreadPoolExecutor(parallel) as pool:
                waiting = [pool.submit(_run_job, j, logs, slots, running)
                           for j in jobs if j.stage == stage]
                try:
                    for done in as_completed(waiting):
                        job = done.result()
                        if record is not None and job.training is not None:
                            record(job.training)
                        bar.set_postfix_str(job.name)
                        bar.update()
                except BaseException as error:
                    for future in waiting:
                        future.cancel()
                    if not isinstance(error, Exception):       # Ctrl-C, SIGTERM
                        for process in list(running):
                            process.terminate()
                    raise


def _run_job(job: Job, logs: Path, slots: SimpleQueue, running: set[subprocess.Popen]) -> Job:
    log, slot = logs / f"{job.name}.log", slots.get()
    # what the shell sets for single trainings must not change an arm unseen
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LGESYNTH_")}
    try:
        with open(log, "a") as file:
            file.write(f"$ {job.line()}\n")
            file.flush()
            with subprocess.Popen(job.argv, env={**inherited, **slot, **job.env}, stdout=file,
                                  stderr=subprocess.STDOUT) as process:
                running.add(process)
                code = process.wait()
                running.discard(process)
    finally:
        slots.put(slot)
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]
        raise UserError(f"{job.name} failed with exit code {code} ({last.strip()[:300]}); see "
                        f"{log}, then run the benchmark again: it goes on where it stopped.")
    return job
