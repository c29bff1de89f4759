"""The base trainer: stock nnU-Net whose training set answers part of its cases from a pool.

Only the narrowest hooks are used: the training set is wrapped, the engine is listened to after each
iteration, one row an epoch goes to `lgesynth.jsonl` (of further GPUs to `lgesynth_rank1.jsonl`,
...). With `generator = None` nothing is wrapped at all. Settings come from class attributes; these
environment variables change them for one run, the same way in every arm: LGESYNTH_EPOCHS,
LGESYNTH_ITERATIONS, LGESYNTH_SEED, LGESYNTH_PATIENTS, LGESYNTH_PROBABILITY, LGESYNTH_WARM_UP,
LGESYNTH_FADE, LGESYNTH_NO_REFLOW_SHARE, LGESYNTH_HALF (1: half precision on the CPU, too),
LGESYNTH_GENERATOR (a generator's fold folder). `lgesynth train` sets them from its flags.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import time

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.dataset.splits import split_hash
from nnunet_lgesynth.files import write_text
from nnunet_lgesynth.precision import halve_on_cpu
from nnunet_lgesynth.processes import alone, sigterm_as_exit
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["LGESynthTrainer"]

LOG_FILE, FIGURE = "lgesynth.jsonl", "lgesynth.png"     # of rank 0
NO_CAP = 1e9           # of the ratio of synthetic to real cases
VALIDATION_SHARE = 5   # stock nnU-Net validates 50 iterations for 250 of training


class LGESynthTrainer(nnUNetTrainer):
    """Trains like `nnUNetTrainer`; `generator` names who paints: None, "paint" or "lgesynth"."""

    generator: str | None = None
    injection = InjectionConfig()
    qc = QCConfig()

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # noqa: B008 (nnU-Net's signature)
        super().__init__(plans, configuration, fold, dataset_json, device)
        with self._in_one_sentence():
            self._obey_environment()
        self.engine = None

    def _obey_environment(self) -> None:
        epochs = environment_number("LGESYNTH_EPOCHS", int, 1)
        iterations = environment_number("LGESYNTH_ITERATIONS", int, 1)
        probability = environment_number("LGESYNTH_PROBABILITY", float, 0)
        warm_up = environment_number("LGESYNTH_WARM_UP", int, 0)
        fade = environment_number("LGESYNTH_FADE", float, 0)
        share = environment_number("LGESYNTH_NO_REFLOW_SHARE", float, 0)
        self.half = True if environment_number("LGESYNTH_HALF", int, 0) else None
        self.seed = environment_number("LGESYNTH_SEED", int, 0)
        self.patients = environment_number("LGESYNTH_PATIENTS", int, 2)
        self._told = {"epochs": epochs, "iterations": iterations, "probability": probability,
                      "fade": fade, "warm_up": warm_up, "no_reflow_share": share, "half": self.half,
                      "seed": self.seed, "patients": self.patients}
        if epochs is not None:
            self.num_epochs = epochs
            self.save_every = min(self.save_every, max(1, epochs // 10))
        if iterations is not None:
            self.num_iterations_per_epoch = iterations
            self.num_val_iterations_per_epoch = max(1, iterations // VALIDATION_SHARE)
        if probability is not None:
            self.injection = dataclasses.replace(self.injection, probability=probability,
                                                 ratio_cap=NO_CAP)      # it is what was asked for
        self.injection = dataclasses.replace(self.injection, **{
            name: value for name in ("fade", "no_reflow_share", "warm_up", "seed")
            if (value := self._told[name]) is not None})

    @contextmanager
    def _in_one_sentence(self):
        """A user's mistake ends the process with its sentence and exit code 2: raised further,
        `nnUNetv2_train` would show a traceback."""
        try:
            yield
        except UserError as error:
            self.print_to_log_file(f"ERROR: {error}")
            raise SystemExit(2) from error

    @property
    def injects(self) -> bool:
        return self.generator is not None and self.injection.probability > 0

    def run_training(self):
        try:
            with sigterm_as_exit(), self._in_one_sentence(), self._alone():
                super().run_training()
        finally:
            self._stop_synthesis()

    def perform_actual_validation(self, save_probabilities: bool = False):
        with self._in_one_sentence(), self._alone():
            super().perform_actual_validation(save_probabilities)

    def _alone(self):
        """One training, or validation of one, writes into the folder: its first rank answers."""
        return alone(self.output_folder, "training") if self.local_rank == 0 else nullcontext()

    def _stop_synthesis(self) -> None:
        if self.engine is not None:
            self.engine.end()

    def initialize(self):
        if self.seed is not None and not self.was_initialized:
            torch.manual_seed(self.seed)     # initial weights, the same on every rank
            np.random.seed([self.seed, self.local_rank])
        super().initialize()
        if self.half and self.device.type == "cpu":
            with self._in_one_sentence():
                halve_on_cpu(self.network.module if self.is_ddp else self.network)

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net does, but in one rename: a disk that is full costs no earlier checkpoint."""
        if self.local_rank != 0:         # nnU-Net calls it on every rank, one writes
            return
        partial = Path(f"{filename}.part")
        try:
            super().save_checkpoint(str(partial))
            if partial.is_file():        # unless checkpointing is disabled
                os.replace(partial, filename)
        except RuntimeError as error:    # how torch reports it
            raise OSError(errno.ENOSPC, f"cannot be written ({error})", filename) from error
        finally:
            partial.unlink(missing_ok=True)

    def do_split(self):
        """As nnU-Net does; with LGESYNTH_PATIENTS only so many of the training cases are kept."""
        train, val = super().do_split()
        if self.patients is not None:
            train = list(Fold.of_training(
                self.plans_manager.plans, self.configuration_name, self.fold, self.dataset_json,
                Path(self.preprocessed_dataset_folder), train, val).subset(self.patients).train)
            self.print_to_log_file(f"Trains on {len(train)} cases: {', '.join(train)}")
        return train, val

    def get_tr_and_val_datasets(self):
        training, validation = super().get_tr_and_val_datasets()
        self._split = split_hash(training.identifiers, validation.identifiers)
        if not self.injects:
            if self.generator is not None:
                self.print_to_log_file("WARNING: injection probability 0, this is a real-only run.")
            return training, validation
        from nnunet_lgesynth.pool.attach import attach

        self.engine, training = attach(
            generator=self.generator, injection=self.injection, plans=self.plans_manager.plans,
            configuration=self.configuration_name, fold=self.fold, dataset_json=self.dataset_json,
            preprocessed=Path(self.preprocessed_dataset_folder), training=training,
            validation_identifiers=validation.identifiers, output=Path(self.output_folder),
            device=self.device, log=self.print_to_log_file, rank=self.local_rank,
            world=dist.get_world_size() if self.is_ddp else 1, qc=self.qc,
            epoch=self.current_epoch, epochs=self.num_epochs)
        return training, validation

    def on_train_start(self):
        super().on_train_start()
        self._origin = {"device": machine(self.device.type), "versions": versions(),
                        "split": self._split, "told": self._told}
        _drop_rows_from(self._rows_file, self.current_epoch)

    @property
    def _rows_file(self) -> Path:
        """Each rank writes the rows of its own pool, and no other file's."""
        name = LOG_FILE.replace(".", f"_rank{self.local_rank}.") if self.local_rank else LOG_FILE
        return Path(self.output_folder) / name

    def on_train_end(self):
        super().on_train_end()           # which writes the last checkpoint
        self._stop_synthesis()

    def on_epoch_start(self):
        super().on_epoch_start()
        if self.engine is not None:
            self.engine.start_epoch(self.current_epoch)

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch)
        if self.engine is not None:
            self.engine.tend()
        return result

    def on_epoch_end(self):
        super().on_epoch_end()
        first = self.local_rank == 0
        if not first and self.engine is None:      # it has nothing of its own to tell
            return
        row = {"epoch": self.current_epoch - 1, "probability": 0.0, "patches": None,
               "injected_patches": 0, "injected_fraction": 0.0, **self._origin}
        if self.engine is not None:
            row.update(self.engine.epoch_row())
            if first:
                self.print_to_log_file(self.engine.describe(row))
        if first:
            self._tell_loggers(row)
        stamps = [self.logger.get_value(f"epoch_{e}_timestamps", step=-1) for e in ("start", "end")]
        row.update(seconds_epoch=round(stamps[1] - stamps[0], 3), time=round(time(), 1))
        try:
            with open(self._rows_file, "a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            # not into nnU-Net's log, which lies on the same disk
            warnings.warn(f"No row of {self._rows_file.name} for this epoch ({error}).",
                          stacklevel=2)
        due = self.current_epoch % self.save_every == 0 or self.current_epoch >= self.num_epochs
        if self.engine is not None and first and due:
            self._draw()

    def _tell_loggers(self, row: dict) -> None:
        """Hand an epoch's numbers to the loggers that nnU-Net was configured with (W&B)."""
        for logger in self.logger.loggers:
            for key, value in row.items():
                if isinstance(value, (int, float)) and key != "epoch":
                    logger.log(f"lgesynth/{key}", value, row["epoch"])

    def _draw(self) -> None:
        """The figure of all epochs so far; seldom, since drawing takes part of a second."""
        from nnunet_lgesynth.pool.figure import draw_epochs

        folder = Path(self.output_folder)
        try:
            draw_epochs(_rows(folder / LOG_FILE), folder / FIGURE)
        except OSError as error:
            warnings.warn(f"No {FIGURE} ({error}).", stacklevel=2)


def _drop_rows_from(path: Path, epoch: int) -> None:
    """Forget the epochs that are trained again, after `--c` or from the start, and half rows."""
    if not path.is_file():
        return
    write_text(path, "".join(json.dumps(r) + "\n" for r in _rows(path) if r["epoch"] < epoch))


def _rows(path: Path) -> list[dict]:
    from nnunet_lgesynth.pool.store import whole_lines

    return whole_lines(path.read_bytes(), ("epoch",))


def environment_number(name: str, kind: type, minimum: float):
    """An environment variable as a number of `kind`, None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or value < minimum:
        raise UserError(f"{name} must be a number of at least {minimum} ({kind.__name__}), not "
                        f"{text!r}; correct or unset it.")
    return value
