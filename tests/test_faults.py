"""Laws of a training that is hurt, in real trainings: it ends as stock nnU-Net ends or goes on,
leaves no process behind, and what it leaves on disk can be continued."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import sleep

import psutil
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from tiny_training import (
    INJECTION,
    enter_nnunet,
    output,
    rows,
    shorten_trainings,
    trainer_of,
    write_tiny_training,
)
from waiting import PATIENCE, until

from nnunet_lgesynth.config import InjectionConfig, UserError
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.attach import POOL_FOLDER
from nnunet_lgesynth.pool.store import read_manifest, whole_lines
from nnunet_lgesynth.pool.studio import Studio
from nnunet_lgesynth.trainer import LGESynthTrainer

PAINT, REAL = "nnUNetTrainerLGEPaint", "nnUNetTrainerLGEReal"


@pytest.fixture
def fold(tmp_path, monkeypatch):
    """A tiny fold to train on."""
    enter_nnunet(monkeypatch, tmp_path)
    shorten_trainings(monkeypatch)
    return write_tiny_training(tmp_path)


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; in a container nobody may collect what its parent left."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_worker(training: psutil.Process) -> None:
    """Kill the process that augments for `training`: forked, so of the same command."""
    worker = next(p for p in training.children() if p.cmdline() == training.cmdline())
    until(lambda: worker.status() == psutil.STATUS_SLEEPING)   # killed with a lock in its hand it
    worker.kill()                                              # would stop stock nnU-Net as well


def terminate(training: psutil.Process) -> None:
    training.terminate()


def press_ctrl_c(training: psutil.Process) -> None:
    os.killpg(training.pid, signal.SIGINT)


def train_and_hurt(flags, told: Path, hurt, folder: Path, epochs: int) -> int:
    """Train into `folder` by a process of its own, `hurt` it once so many epochs are over, and wait
    until all its processes have ended; returns its exit code."""
    command = [sys.executable, str(Path(__file__).with_name("train_process.py")), "116", "2d", "0",
               "-tr", PAINT, "-device", "cpu", *flags]
    with open(told, "w") as file, subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True) as process:
        try:
            until(lambda: process.poll() is not None or finished(folder) >= epochs)
            training = psutil.Process(process.pid)
            family = training.children(recursive=True)
            assert len(family) >= 3                     # two augment, one fills the pool
            hurt(training)
            code = process.wait(PATIENCE)
        finally:
            process.kill()
    until(lambda: all(gone(p) for p in family))
    return code


def finished(folder: Path) -> int:
    """The epochs until the last of which a training has written a row."""
    path = folder / "lgesynth.jsonl"
    told = whole_lines(path.read_bytes(), ["epoch"]) if path.is_file() else []
    return told[-1]["epoch"] + 1 if told else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX only")
def test_a_training_that_is_hurt_leaves_no_process_and_goes_on_with_its_epoch(fold, tmp_path,
                                                                            monkeypatch):
    """One training, hurt in each of its parts at an arbitrary moment."""
    folder = tmp_path / "nnUNet_results" / fold.dataset / f"{PAINT}__nnUNetPlans__2d" / "fold_0"
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    for name, value in (("EPOCHS", "19"), ("ITERATIONS", "20")):   # with a checkpoint every epoch
        monkeypatch.setenv(f"LGESYNTH_{name}", value)
    epoch, kept = 0, []
    for hurt, code, said, flags in ((kill_worker, 1, "no longer alive", ["--warm-up", "2"]),
                                    (terminate, 128 + signal.SIGTERM, "", ["--c"]),
                                    (press_ctrl_c, 130, "lgesynth: interrupted.", ["--c"])):
        told = tmp_path / f"{hurt.__name__}.txt"
        assert train_and_hurt(flags, told, hurt, folder, epoch + 2) == code, told.read_text()
        assert said in told.read_text()
        assert int(re.search(r"Epoch (\d+)", told.read_text())[1]) == epoch
        state = torch.load(folder / "checkpoint_latest.pth", weights_only=False)
        assert state["current_epoch"] - finished(folder) in (0, 1)        # 1: its row came too late
        records = read_manifest(folder / POOL_FOLDER)
        assert len(records) >= 2 and records[:len(kept)] == kept
        cases = fold.cases_folder(folder / POOL_FOLDER / "cases")
        assert all(cases.load_case(r["identifier"])[0][:].any() for r in records)
        assert not list(folder.glob("*.part*"))
        epoch, kept = state["current_epoch"], records
    monkeypatch.setenv("LGESYNTH_EPOCHS", str(epoch + 1))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(LGESynthTrainer, "injection", InjectionConfig())
    last = trainer_of(fold, PAINT, continued=True)
    last.run_training()
    epochs = [r["epoch"] for r in rows(last)]
    assert epochs[-1] == epoch and epochs == sorted(set(epochs)) and len(epochs) >= epoch - 2
    assert rows(last)[-1]["probability"] > 0 and (folder / "checkpoint_final.pth").is_file()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the training is forked to be killed")
def test_a_kill_while_a_checkpoint_is_written_leaves_the_earlier_one(fold):
    trainer = trainer_of(fold, REAL)
    trainer.initialize()
    path = output(trainer) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    for k in range(10):
        child = os.fork()
        if child == 0:
            try:
                while True:                          # until it is killed
                    trainer.current_epoch += 1
                    trainer.save_checkpoint(str(path))
            finally:
                os._exit(1)                          # a failing one must not run the other tests
        sleep(0.02 + 0.003 * k)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        state = torch.load(path, weights_only=False)
        assert state["network_weights"].keys() == trainer.network.state_dict().keys()
    assert state["current_epoch"] > 1                # some were written in whole


def real_only_part(fold, monkeypatch) -> Path:
    """The first epoch of a training that injects, as one without pool and rows left it."""
    monkeypatch.setenv("LGESYNTH_EPOCHS", "1")
    first = trainer_of(fold, REAL)
    first.run_training()
    (output(first) / "lgesynth.jsonl").unlink()
    model = output(first).parent
    model.rename(model.with_name(model.name.replace(REAL, PAINT)))
    monkeypatch.setenv("LGESYNTH_EPOCHS", "2")
    return model.with_name(model.name.replace(REAL, PAINT)) / "fold_0"


def test_a_checkpoint_without_pool_and_rows_goes_on_with_an_empty_pool(fold, monkeypatch):
    folder = real_only_part(fold, monkeypatch)
    assert not (folder / POOL_FOLDER).exists()
    monkeypatch.setenv("LGESYNTH_ITERATIONS", "12")      # few patches may all miss the scars
    trainer = trainer_of(fold, PAINT, continued=True)
    assert trainer.current_epoch == 1 and output(trainer) == folder
    trainer.run_training()
    row, = rows(trainer)
    assert row["epoch"] == 1 and row["pool_scarred_cases"] == 2 and row["injected_fraction"] > 0


def test_a_removed_case_is_refused_while_the_split_names_it_and_then_not_served(fold, monkeypatch,
                                                                             log):
    injection = replace(INJECTION, pool_cases=8, warm_up=0)
    monkeypatch.setattr(LGESynthTrainer, "injection", injection)
    monkeypatch.setenv("LGESYNTH_ITERATIONS", "30")
    pool = real_only_part(fold, monkeypatch) / POOL_FOLDER
    studio = Studio(fold, Painter(), None, injection, pool, log.append)
    while min(studio.kept.values()) < 4:
        studio.draft()
    source = {r["identifier"]: r["source"] for r in read_manifest(pool)}
    removed = source["scar_000000"]
    assert {removed} < set(source.values())
    for path in fold.folder.glob(f"{removed}*"):
        path.unlink()

    trainer = trainer_of(fold, PAINT, continued=True)
    with pytest.raises(SystemExit) as refused:
        trainer.run_training()
    assert refused.value.code == 2 and isinstance(refused.value.__cause__, UserError)
    assert re.search(rf"1 of its cases are not in .* \(first: {removed}\).*splits_final.json",
                     str(refused.value.__cause__))

    split = {"train": [i for i in fold.train if i != removed], "val": list(fold.val)}
    (fold.folder.parent / "splits_final.json").write_text(json.dumps([split]))
    read, load = [], nnUNetDatasetBlosc2.load_case
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", lambda self, identifier: read.append(
        (Path(self.source_folder), identifier)) or load(self, identifier))
    trainer = trainer_of(fold, PAINT, continued=True)
    trainer.run_training()
    served = {source.get(name) for folder, name in read if folder == pool / "cases"}
    assert served and removed not in served
    assert rows(trainer)[-1]["injected_fraction"] > 0
