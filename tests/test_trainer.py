"""Laws of the trainers, in real nnU-Net trainings of two epochs of two iterations."""

import ast
import errno
import json
import os
import pickle
import random
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from PIL import Image
from tiny_fold import in_3d
from tiny_inpaint import tiny_config
from tiny_nnunet import tiny_plans, write_tiny_model
from tiny_training import (
    CPU,
    enter_nnunet,
    output,
    rows,
    shorten_trainings,
    trainer_of,
    write_tiny_training,
)

from nnunet_lgesynth import precision
from nnunet_lgesynth.config import InjectionConfig, UserError
from nnunet_lgesynth.discovery import VARIABLE, list_trainers, trainers_folder
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.pool.engine import Engine
from nnunet_lgesynth.pool.generator import fit_generator
from nnunet_lgesynth.pool.store import read_manifest
from nnunet_lgesynth.processes import alone
from nnunet_lgesynth.trainer import LGESynthTrainer

DATASET = "Dataset116_EMIDECROI"


@pytest.fixture
def fold(tmp_path, monkeypatch, request):
    """A tiny fold to train on; with "regions" in the parameter its labels are overlapping regions,
    with "3d" it is of a 3D configuration."""
    kind = getattr(request, "param", "")
    enter_nnunet(monkeypatch, tmp_path)
    shorten_trainings(monkeypatch)
    fold = write_tiny_training(tmp_path, regions="regions" in kind)
    if "3d" in kind:
        fold = in_3d(fold, stages=3)
        (fold.folder.parent / "nnUNetPlans.json").write_text(json.dumps(fold.plans))
    return fold


def text_log(trainer) -> str:
    return "".join(p.read_text() for p in sorted(output(trainer).glob("training_log*.txt")))


class Told(list):
    """A logger beside nnU-Net's own, as W&B's is."""

    def log(self, key, value, step):
        self.append((key, value, step))

    def log_summary(self, key, value):
        self.append((key, value, None))

    def update_config(self, config):
        self.append(("config", config, None))


@contextmanager
def refusal():
    """How a user's mistake ends `nnUNetv2_train`: exit code 2, no traceback; the cause is kept."""
    with pytest.raises(SystemExit) as stopped:
        yield stopped
    assert stopped.value.code == 2 and isinstance(stopped.value.__cause__, UserError)


def weights(trainer) -> list[torch.Tensor]:
    return [w.clone() for w in trainer.network.state_dict().values()]


def test_every_trainer_is_found_by_nnunet_itself_and_is_a_thin_file():
    os.environ.setdefault(VARIABLE, str(trainers_folder()))
    for name, _ in list_trainers():
        path = trainers_folder() / f"{name}.py"
        code = path.read_text()
        classes = [n for n in ast.parse(code).body if isinstance(n, ast.ClassDef)]
        assert 3 <= len(code.splitlines()) <= 12 and [c.name for c in classes] == [name]
        assert issubclass(recursive_find_trainer_class_by_name(name), LGESynthTrainer)


def test_painted_scars_reach_a_real_training_and_it_continues(fold, monkeypatch):
    trainer, told = trainer_of(fold, "nnUNetTrainerLGEPaint"), Told()
    trainer.logger.loggers.append(told)
    trainer.run_training()
    found = rows(trainer)
    assert [(v, step) for k, v, step in told if k == "lgesynth/injected_fraction"] == [
        (r["injected_fraction"], r["epoch"]) for r in found]
    assert {"lgesynth/synthesis_share", "train_losses"} <= {key for key, _, _ in told}
    picture = np.asarray(Image.open(output(trainer) / "lgesynth.png"))
    assert picture.std() > 5 and not list(output(trainer).glob("*.part*"))
    assert [r["epoch"] for r in found] == [0, 1]
    assert all(r["injected_fraction"] > 0 and r["probability"] == 1 for r in found)
    assert found[1]["patches"] == 4 and found[0]["seconds_waited"] > 0 == found[1]["seconds_waited"]
    expected = {"pool_scarred_cases", "pool_healthy_cases", "pool_scarred_slices", "drafted",
                "accepted", "seconds_synthesis", "synthesis_share", "seconds_epoch", "memory_mb",
                "pool_age_minutes", "unique_slices_served", "device", "versions"}
    assert all(expected <= set(r) for r in found)
    log = text_log(trainer)
    assert log.count("LGE synthesis: injected fraction") == 2
    assert log.count("Waiting until the pool holds 2 scarred cases") == 1
    assert trainer.engine._process is None                  # it has ended with the training
    assert (output(trainer) / "checkpoint_final.pth").is_file()
    pool = output(trainer) / "lgesynth_pool"
    before = read_manifest(pool)
    assert [r["kind"] for r in before].count("scar") == 2
    pickle.loads(pickle.dumps(trainer.dataloader_train.data_loader._data))

    # As after a kill in the second epoch: one checkpoint, one epoch's row too many, half a line.
    state = torch.load(output(trainer) / "checkpoint_final.pth", weights_only=False)
    state["current_epoch"] = 1
    state["logging"] = {k: v[:1] for k, v in state["logging"].items()}
    torch.save(state, output(trainer) / "checkpoint_latest.pth")
    (output(trainer) / "checkpoint_final.pth").unlink()
    with open(output(trainer) / "lgesynth.jsonl", "a") as file:
        file.write('{"epoch": 2, "pro')
    monkeypatch.setenv("LGESYNTH_EPOCHS", "3")
    again = trainer_of(fold, "nnUNetTrainerLGEPaint", continued=True)
    assert again.current_epoch == 1
    again.run_training()
    assert all(torch.isfinite(w).all() for w in weights(again))
    assert [r["epoch"] for r in rows(again)] == [0, 1, 2]
    # what the environment said, for the benchmark that records it
    assert [r["told"]["epochs"] for r in rows(again)] == [2, 3, 3]
    assert rows(again)[-1]["told"]["patients"] is None
    assert rows(again)[0] == found[0] and rows(again)[1] != found[1]
    assert rows(again)[1]["injected_fraction"] > 0          # the pool was kept
    assert read_manifest(pool)[:len(before)] == before


def test_a_full_disk_costs_no_earlier_checkpoint(fold, monkeypatch):
    trainer = trainer_of(fold, "nnUNetTrainerLGEReal")
    trainer.initialize()
    path = output(trainer) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def full(state, file):
        Path(file).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="cannot be written") as error:
        trainer.save_checkpoint(str(path))
    assert error.value.filename == str(path) and error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and not list(output(trainer).glob("*.part"))


def test_a_training_that_runs_is_not_begun_again(fold):
    """As by a benchmark whose predecessor was killed and left its training behind."""
    trainer = trainer_of(fold, "nnUNetTrainerLGEPaint")
    with alone(output(trainer), "training"), pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == 2 and "ERROR: Another training is writing" in text_log(trainer)
    assert not (output(trainer) / "lgesynth_pool").exists()
    with alone(output(trainer), "training"), pytest.raises(SystemExit):
        trainer.perform_actual_validation()


def test_on_several_gpus_one_rank_writes_checkpoints(fold):
    trainer = trainer_of(fold, "nnUNetTrainerLGEReal")
    partial = output(trainer) / "checkpoint_latest.pth.part"
    partial.write_bytes(b"half, by rank 0")
    trainer.local_rank = 1
    trainer.save_checkpoint(str(output(trainer) / "checkpoint_latest.pth"))
    assert partial.is_file() and not (output(trainer) / "checkpoint_latest.pth").exists()


def test_the_real_only_twin_makes_no_pool_and_logs_fraction_0(fold):
    trainer = trainer_of(fold, "nnUNetTrainerLGEReal")
    trainer.run_training()
    assert [(r["epoch"], r["injected_fraction"]) for r in rows(trainer)] == [(0, 0.0), (1, 0.0)]
    assert not (output(trainer) / "lgesynth_pool").exists() and trainer.engine is None
    assert type(trainer.dataloader_train.data_loader._data) is trainer.dataset_class


def test_probability_0_is_real_only_and_says_so(fold, monkeypatch):
    monkeypatch.setenv("LGESYNTH_PROBABILITY", "0")
    trainer = trainer_of(fold, "nnUNetTrainerLGEPaint")
    training, _ = trainer.get_tr_and_val_datasets()
    assert type(training) is trainer.dataset_class
    assert "injection probability 0, this is a real-only run" in text_log(trainer)
    assert not (output(trainer) / "lgesynth_pool").exists()


def recorded(fold, name: str, monkeypatch) -> tuple[list[list], list[torch.Tensor]]:
    """The batches of a training, augmented, and the weights it ends with; all random streams start
    alike."""
    seen = []
    trainer = trainer_of(fold, name)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 2
    trainer.num_val_iterations_per_epoch = 1

    def step(batch, train=trainer.train_step):
        target = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        seen.append([batch["data"].clone(), *(t.clone() for t in target)])
        return train(batch)
    monkeypatch.setattr(trainer, "train_step", step)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    trainer.run_training()
    return seen, weights(trainer)


def test_without_injection_batches_and_weights_are_those_of_stock_nnunet(fold, monkeypatch):
    """And until the first sample enters, whatever the probability: generator, pool and the process
    that fills it draw nothing from nnU-Net's random streams."""
    monkeypatch.delenv("LGESYNTH_SEED")
    batches, expected = recorded(fold, "nnUNetTrainer", monkeypatch)
    assert len(batches) == 4 and not torch.equal(batches[0][0], batches[1][0])

    def alike(found, ended):
        return all(torch.equal(a, b) for one, other in zip(found, batches, strict=True)
                   for a, b in zip(one, other, strict=True)) and \
            all(torch.equal(a, b) for a, b in zip(ended, expected, strict=True))
    assert not alike(*recorded(fold, "nnUNetTrainerLGEPaint", monkeypatch))
    monkeypatch.setattr(LGESynthTrainer, "injection", InjectionConfig(budget=1e-9, grace=0))
    assert alike(*recorded(fold, "nnUNetTrainerLGEPaint", monkeypatch))
    monkeypatch.setenv("LGESYNTH_PROBABILITY", "0")
    for name in ("nnUNetTrainerLGEReal", "nnUNetTrainerLGEPaint"):
        assert alike(*recorded(fold, name, monkeypatch))


def test_part_of_the_patients_is_trained_on_and_all_validation_cases_stay(fold, monkeypatch):
    monkeypatch.setenv("LGESYNTH_PATIENTS", "3")
    trainer = trainer_of(fold, "nnUNetTrainerLGEPaint")
    trainer.run_training()
    training = trainer.dataloader_train.data_loader._data
    expected = fold.subset(3).train
    assert training.identifiers == list(expected) and training.scarred == fold.subset(3).scarred()
    assert trainer.dataloader_val.data_loader._data.identifiers == list(fold.val)
    assert {r["split"] for r in rows(trainer)} == {fold.subset(3).split_hash}
    sources = {r["source"] for r in read_manifest(output(trainer) / "lgesynth_pool")}
    assert sources <= set(expected)
    monkeypatch.setenv("LGESYNTH_PATIENTS", "99")
    with refusal() as refused:
        trainer_of(fold, "nnUNetTrainerLGEPaint").run_training()
    assert "must lie in 2..4" in str(refused.value.__cause__)


def test_with_probability_1_nothing_real_is_served(fold, monkeypatch):
    monkeypatch.setattr(LGESynthTrainer, "injection", InjectionConfig(pool_cases=4, warm_up=4))
    monkeypatch.setenv("LGESYNTH_PROBABILITY", "1")
    trainer = trainer_of(fold, "nnUNetTrainerLGEPaint")
    trainer.run_training()
    assert [r["probability"] for r in rows(trainer)] == [1, 1]


def test_without_a_generator_the_command_that_fits_one_is_named(fold):
    trainer = trainer_of(fold, "nnUNetTrainerLGESynth")
    with refusal() as refused:
        trainer.run_training()
    said = r"No generator is fitted.*run: lgesynth fit -d "
    assert re.search(said, str(refused.value.__cause__)) and re.search(said, text_log(trainer))
    assert not (output(trainer) / "lgesynth_pool").exists()


def test_a_fitted_inpainter_trains_and_its_drafts_are_judged(fold, tmp_path, monkeypatch,
                                                            without_pictures):
    """In the process, and, as on CUDA, with its networks in the training's; see test_server."""
    judge = Segmenter.load_fold(write_tiny_model(tmp_path / "nnUNet_results"), CPU).hash
    config = tiny_config(vae_steps=1, unet_steps=1, controlnet_steps=1, reward_steps=0)
    fit_generator(DATASET, "2d", 0, "nnUNetPlans", config, None, "cpu")
    trainer = trainer_of(fold, "nnUNetTrainerLGESynth")
    trainer.run_training()
    assert rows(trainer)[0]["drafted"] > 0
    made = json.loads((trainer.engine.order.generator / "config.json").read_text())["hash"]
    assert trainer.engine.generator == made and trainer.engine.server is None and all(
        r["generator"] == made and r["judge"] == judge
        for r in read_manifest(output(trainer) / "lgesynth_pool"))
    monkeypatch.setattr("nnunet_lgesynth.pool.attach.shares_device", lambda device: True)
    monkeypatch.setattr(Engine, "_start", lambda self: None)
    monkeypatch.setattr(Engine, "_wait_until_warm", lambda self: 0.0)
    served, state = trainer_of(fold, "nnUNetTrainerLGESynth"), torch.get_rng_state()
    served.get_tr_and_val_datasets()
    remote = served.engine.server.remote
    assert (remote.hash, remote.judge) == (made, judge) and served.engine.order.cores == 1
    assert torch.equal(torch.get_rng_state(), state)
    served._stop_synthesis()
    assert served.engine.server is None                  # nothing is held for the validation

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    monkeypatch.setattr("nnunet_lgesynth.pool.attach.load_found", full)
    with pytest.raises(UserError, match=r"no memory left for the inpainter .* smaller batch_size"):
        trainer_of(fold, "nnUNetTrainerLGESynth").get_tr_and_val_datasets()


def test_a_seed_fixes_initial_weights_in_every_arm(fold, monkeypatch):
    def initial(name):
        trainer = trainer_of(fold, name)
        trainer.initialize()
        return weights(trainer)

    def equal(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b))
    monkeypatch.setenv("LGESYNTH_SEED", "3")
    first = initial("nnUNetTrainerLGEReal")
    assert equal(first, initial("nnUNetTrainerLGEReal"))
    assert equal(first, initial("nnUNetTrainerLGEPaint"))
    assert trainer_of(fold, "nnUNetTrainerLGEPaint").injection.seed == 3
    monkeypatch.setenv("LGESYNTH_SEED", "4")
    assert not equal(first, initial("nnUNetTrainerLGEReal"))


def test_a_lost_row_does_not_end_a_training(fold, monkeypatch):
    trainer = trainer_of(fold, "nnUNetTrainerLGEReal")
    trainer.on_train_start()
    (output(trainer) / "lgesynth.jsonl").mkdir()            # cannot be written
    monkeypatch.setattr(stock.nnUNetTrainer, "on_epoch_end",
                        lambda self: setattr(self, "current_epoch", self.current_epoch + 1))
    monkeypatch.setattr(trainer.logger, "get_value", lambda *_, **__: 1.0)
    with pytest.warns(UserWarning, match="No row of lgesynth.jsonl"):   # the log may lie there too
        trainer.on_epoch_end()
    assert trainer.current_epoch == 1


def test_epochs_are_shortened_with_their_checkpoints_and_validation(fold, monkeypatch):
    monkeypatch.setenv("LGESYNTH_EPOCHS", "30")
    monkeypatch.setenv("LGESYNTH_ITERATIONS", "50")
    trainer = trainer_of(fold, "nnUNetTrainerLGEReal")
    assert (trainer.num_epochs, trainer.save_every) == (30, 3)
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (50, 10)
    for name in ("EPOCHS", "ITERATIONS"):
        monkeypatch.delenv(f"LGESYNTH_{name}")
    untouched = trainer_of(fold, "nnUNetTrainerLGEReal")
    assert (untouched.num_epochs, untouched.save_every) == (1000, 50)
    assert (untouched.num_iterations_per_epoch, untouched.num_val_iterations_per_epoch) == (250, 50)


def test_half_precision_on_the_cpu_is_what_was_asked_for(fold, monkeypatch):
    """The same weights in float32, other rounding; and logits that the loss takes in float32."""
    trainer = trainer_of(fold, "nnUNetTrainerLGEReal")
    trainer.initialize()
    image = torch.randn(2, trainer.num_input_channels, 32, 32)
    exact = trainer.network(image)[0]
    monkeypatch.setenv("LGESYNTH_HALF", "1")
    monkeypatch.setattr(precision, "half_precision", lambda device: torch.bfloat16)
    halved = trainer_of(fold, "nnUNetTrainerLGEReal")
    halved.initialize()
    halved.network.load_state_dict(trainer.network.state_dict())
    logits = halved.network(image)[0]
    assert logits.dtype == torch.float32 == next(halved.network.parameters()).dtype
    assert 0 < (logits - exact).abs().max() < 0.05 * exact.abs().max()
    halved.run_training()
    assert [row["told"]["half"] for row in rows(halved)] == [True, True]


def test_half_precision_is_refused_where_the_cpu_has_none(fold, monkeypatch):
    monkeypatch.setenv("LGESYNTH_HALF", "1")
    monkeypatch.setattr(precision, "half_precision", lambda device: None)
    with refusal() as refused:
        trainer_of(fold, "nnUNetTrainerLGEReal").initialize()
    assert "--half needs a CPU that multiplies bfloat16" in str(refused.value.__cause__)


@pytest.mark.parametrize("name, value", [
    ("EPOCHS", "0"), ("EPOCHS", "ten"), ("ITERATIONS", "1.5"), ("SEED", "-1"), ("SEED", ""),
    ("WARM_UP", "-1"), ("WARM_UP", "65"), ("PROBABILITY", "-0.1"),
    ("PROBABILITY", "1.1"), ("PROBABILITY", "nan"), ("NO_REFLOW_SHARE", "2"), ("FADE", "0"),
    ("PATIENTS", "1"), ("HALF", "yes")])
def test_numbers_from_the_environment_are_checked(fold, monkeypatch, name, value):
    monkeypatch.setenv(f"LGESYNTH_{name}", value)
    with refusal() as refused:
        trainer_of(fold, "nnUNetTrainerLGEPaint")
    assert re.search(f"LGESYNTH_{name}|probability|fade|warm_up|no_reflow_share",
                     str(refused.value.__cause__))


def test_residual_encoder_plans_and_fold_all_train(fold):
    plans = tiny_plans(architecture="resenc", stages=3, plans_name="nnUNetResEncUNetMPlans")
    plans["configurations"]["2d"]["data_identifier"] = "nnUNetPlans_2d"
    (fold.folder.parent / "nnUNetResEncUNetMPlans.json").write_text(json.dumps(plans))
    trainer = trainer_of(fold, "nnUNetTrainerLGEPaint", fold_number="all",
                         plans="nnUNetResEncUNetMPlans")
    trainer.run_training()
    assert output(trainer).name == "fold_all" and rows(trainer)[1]["injected_fraction"] > 0
    assert type(trainer.network).__name__ == "ResidualEncoderUNet"


@pytest.mark.parametrize("fold", ["regions", "3d regions"], indirect=True)
def test_region_based_training_is_injected(fold):
    trainer = trainer_of(fold, "nnUNetTrainerLGEPaint")
    trainer.run_training()
    assert trainer.label_manager.has_regions and rows(trainer)[1]["injected_fraction"] > 0
    name = read_manifest(output(trainer) / "lgesynth_pool")[0]["identifier"]
    cases = fold.cases_folder(output(trainer) / "lgesynth_pool" / "cases")
    assert (3, 4) in cases.load_case(name)[3]["class_locations"]
    assert all(torch.isfinite(w).all() for w in weights(trainer))


@pytest.mark.parametrize("fold", ["3d"], indirect=True)
def test_a_3d_training_meets_whole_lesions(fold):
    trainer = trainer_of(fold, "nnUNetTrainerLGEPaint")
    trainer.run_training()
    assert trainer.network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"].ndim == 5
    found = rows(trainer)
    assert all(r["injected_fraction"] > 0 for r in found) and found[1]["patches"] == 4
    assert found[0]["accepted"] > 0 and (output(trainer) / "checkpoint_final.pth").is_file()
    assert all(torch.isfinite(w).all() for w in weights(trainer))
    pool = output(trainer) / "lgesynth_pool"
    cases, records = fold.cases_folder(pool / "cases"), read_manifest(pool)
    assert {r["kind"] for r in records} == {"scar", "healthy"}
    for record in records:
        image, labels, _, properties = cases.load_case(record["identifier"])
        source, kept = fold.read(record["source"]), record["slices"]
        assert image.shape == (1, 5, 48, 48) and kept == sorted(map(int, record["verdicts"]))
        touched = np.flatnonzero((image[0] != source.image[0]).any(axis=(1, 2)))
        assert touched.tolist() == kept and touched.tolist() == sorted(map(int, record["changed"]))
        relabelled = (labels[0] != source.labels[0]).any(axis=(1, 2))
        assert np.flatnonzero(relabelled).tolist() == (kept if record["kind"] == "scar" else [])
        for value, where in properties["class_locations"].items():
            assert not len(where) or (labels[:][tuple(where.T)] == value).all()
        assert (len(properties["class_locations"][3]) > 0) == (labels[:] == 3).any()


def test_cascades_are_refused(fold):
    fold = in_3d(fold)
    plans = {**fold.plans, "continue_training": False}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres",
                                                     "previous_stage": "3d_lowres"}
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerLGEPaint")(
        plans, "3d_cascade_fullres", 0, fold.dataset_json, CPU)
    with pytest.raises(UserError, match=r"'3d_cascade_fullres' is the second stage of a cascade"):
        trainer.get_tr_and_val_datasets()


@contextmanager
def untouched(folder: Path):
    """Within this nothing may be written into `folder`: by its permissions, and, since some users
    need none, by what lies there before and after."""
    def found():
        return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
                for p in (folder, *folder.rglob("*"))}
    before, modes = found(), {p: p.stat().st_mode for p in (folder, *folder.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    try:
        yield
        assert found() == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_nnunetv2_train_runs_to_its_validation_on_data_that_is_read_only(fold, monkeypatch):
    """nnU-Net's own entry, validation included; that starts spawned processes, so it is slow."""
    monkeypatch.setenv("LGESYNTH_EPOCHS", "1")
    monkeypatch.setenv("LGESYNTH_ITERATIONS", "12")      # few patches may all miss the scars
    with untouched(fold.folder.parent):
        run_training(DATASET, "2d", "0", "nnUNetTrainerLGEPaint", device=CPU)
    folder = next(Path(os.environ["nnUNet_results"]).glob("*/nnUNetTrainerLGEPaint__*/fold_0"))
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert {Path(c["reference_file"]).name for c in summary["metric_per_case"]} == {
        f"{i}.nii.gz" for i in fold.val}
    assert json.loads((folder / "lgesynth.jsonl").read_text())["injected_fraction"] > 0
    assert len(read_manifest(folder / "lgesynth_pool")) >= 3


def test_nnunets_own_benchmark_runs_with_synthesis(fold, monkeypatch):
    """It asserts that there is CUDA and notes the GPU's name; all else runs on the CPU here."""
    name = "nnUNetTrainerLGESynthBenchmark_5epochs"
    monkeypatch.delenv("LGESYNTH_EPOCHS")
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        trainer = trainer_of(fold, name)
    assert trainer.generator == "lgesynth"
    trainer.generator = "paint"                             # which needs no fit
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    trainer.run_training()
    found, = json.loads((output(trainer) / "benchmark_result.json").read_text()).values()
    assert found["gpu_name"] == "a GPU" and found["fastest_epoch"] > 0
    assert len(rows(trainer)) == 5 and sum(r["injected_patches"] for r in rows(trainer)) > 0
    assert not list(output(trainer).glob("checkpoint*"))
