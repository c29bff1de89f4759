"""Laws of the engine: its process fills the pool within a budget while the training goes on, what
was served and drafted is counted, and nothing that happens to the process ends the training."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import psutil
import pytest
import torch
from waiting import PATIENCE, until

from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool import background
from nnunet_lgesynth.pool.attach import POOL_FOLDER, attach
from nnunet_lgesynth.pool.background import MOST_CREDIT, Budget
from nnunet_lgesynth.pool.engine import RESTARTS, Engine
from nnunet_lgesynth.pool.store import read_manifest
from nnunet_lgesynth.pool.studio import Studio

INJECTION = InjectionConfig(probability=0.8, pool_cases=4, refresh_cases=2, budget=1.0, seed=1,
                            ratio_cap=100)
CPU = torch.device("cpu")


@pytest.fixture
def start(fold, tmp_path, log):
    """A factory: what a trainer gets when its data loaders are made."""
    engines = []

    def make(injection=INJECTION, rank=0, world=1, generator="paint", epoch=0, qc=None):
        training = type(fold.cases_folder(fold.folder))(str(fold.folder), list(fold.train))
        engine, dataset = attach(
            generator, injection, fold.plans, "2d", 0, fold.dataset_json, fold.folder, training,
            list(fold.val), tmp_path / "fold_0", CPU, log.append, rank, world, qc, epoch)
        engines.append(engine)
        return engine, dataset
    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def alone(monkeypatch):
    """Engines without their process, for what the training's side does by itself."""
    monkeypatch.setattr(Engine, "_start", lambda self: None)


def fill(fold, folder, cases: int, injection=INJECTION) -> Studio:
    """Put so many cases of each kind into a pool."""
    studio = Studio(fold, Painter(), None, injection, folder, lambda _: None)
    while min(studio.kept.values()) < cases:
        studio.draft()
    return studio


def serve(dataset, times: int) -> None:
    """Cut whole stacks, as a loader would its patches."""
    for k in range(times):
        dataset.load_case(dataset.identifiers[k % len(dataset.identifiers)])[0][:]


def test_a_training_begins_at_once_and_the_pool_fills_while_it_runs(start, log, tmp_path):
    engine, dataset = start()
    assert len(log) == 1 and "WARNING: the pool is empty" in log[0]
    serve(dataset, 20)
    first = engine.epoch_row()
    assert (first["probability"], first["patches"], first["injected_patches"]) == (0.0, 20, 0)
    assert first["synthesis_share"] is not None and first["memory_mb"] > 0
    until(lambda: min(engine.counts()["pool_scarred_cases"],
                      engine.counts()["pool_healthy_cases"]) == 4, engine.tend)
    serve(dataset, 100)
    row = engine.epoch_row()
    assert row["probability"] == 0.8 and 0.5 < row["injected_fraction"] < 1
    assert row["drafted"] >= row["accepted"] > 0 < row["seconds_synthesis"]
    assert row["memory_synthesis_mb"] > 100 and 0 <= row["pool_age_minutes"] < 10
    assert 0 < row["real_burden"] < 1 and row["pool_burden"] is not None
    with engine.asleep():
        engine.start_epoch(1)                            # a full pool is renewed, but not yet
        sleep(1)
        assert len(read_manifest(engine.folder)) == 8
    until(lambda: len(read_manifest(engine.folder)) == 12, engine.tend)
    assert engine.counts()["pool_scarred_cases"] == 4 and len(log) == 1
    assert json.loads(json.dumps([first, row])) == [first, row]
    seeds = [r["seed"] for r in read_manifest(engine.folder)]
    engine.close()
    other = fill(engine.order.fold, tmp_path / "alone", 4)       # as if drafted one by one
    assert seeds[:8] == [r["seed"] for r in read_manifest(other.pool.folder)]


def test_a_warm_up_is_waited_for(start, log):
    engine, dataset = start(replace(INJECTION, budget=0.001, grace=0, warm_up=2))
    assert engine.counts()["pool_scarred_cases"] == 2 and dataset.probability("scar") == 0
    serve(dataset, 60)
    row = engine.epoch_row()
    assert row["injected_fraction"] > 0.2 and row["seconds_waited"] > 0
    assert ["Waiting until" in text for text in log] == [True]
    assert engine.epoch_row()["seconds_waited"] == 0


def test_a_warm_up_in_lanes_makes_the_cases_of_one_lane(fold, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "_alive", lambda _: True)

    def warmed(lanes) -> dict:
        studio = Studio(fold, Painter(), None, INJECTION, tmp_path / str(lanes), lambda _: None)
        background._warm_up(studio, 3, lanes, 0, lambda *_: None)
        return {(r["kind"], r["number"]): r["seed"] for r in read_manifest(studio.pool.folder)}
    one, many = warmed(1), warmed(4)
    shared = one.keys() & many.keys()
    assert len(shared) >= 4 and {k: one[k] for k in shared} == {k: many[k] for k in shared}
    assert sum(kind == "scar" for kind, _ in many) >= 3


def test_a_process_that_dies_is_started_again_and_the_pool_goes_on(start, log, fold, tmp_path):
    fill(fold, tmp_path / "fold_0" / POOL_FOLDER, 2)
    engine, dataset = start(epoch=3)
    assert not log                                       # the pool is that of the training
    psutil.Process(engine._process.pid).kill()
    until(lambda: log, engine.tend)
    assert "has ended" in log[0] and "goes on with the pool" in log[0] and "again" in log[0]
    serve(dataset, 40)
    assert engine.epoch_row()["injected_fraction"] > 0
    engine.start_epoch(4)
    until(lambda: engine.counts()["pool_scarred_cases"] == 4, engine.tend)
    for epoch in range(5, 5 + RESTARTS):
        if engine._process is not None:
            psutil.Process(engine._process.pid).kill()
        until(lambda: engine._pipe is None, engine.tend)
        engine.start_epoch(epoch)
    assert engine._process is None and "not started again" in log[-1]
    assert len(log) == 1 + RESTARTS


def test_a_process_that_hangs_is_ended_with_the_training(start):
    engine, _ = start()
    process = psutil.Process(engine._process.pid)
    process.suspend()                                    # it hears of no gentle signal now
    begun = monotonic()
    engine.close()
    assert monotonic() - begun < 10 and not process.is_running()


def test_a_restarted_process_that_cannot_begin_costs_no_training(start, log, fold, tmp_path):
    fill(fold, tmp_path / "fold_0" / POOL_FOLDER, 2)
    engine, dataset = start(replace(INJECTION, warm_up=2), epoch=7)
    psutil.Process(engine._process.pid).kill()
    until(lambda: engine._pipe is None, engine.tend)
    for identifier in fold.train:
        for path in fold.folder.glob(f"{identifier}*"):
            path.rename(path.with_name(f"moved_{path.name}"))
    engine.start_epoch(8)
    until(lambda: engine._pipe is None, engine.tend)
    assert "gave up (" in log[-1] and "goes on with the pool" in log[-1]
    assert dataset.injection.warm_up == 2 and engine.counts()["pool_scarred_cases"] >= 2


def test_a_network_that_fails_in_the_trainings_process_costs_no_training(start, log):
    class Broken:
        remote, seconds = None, 0.0

        def tend(self):
            raise RuntimeError("cuDNN error")

        def clear(self):
            pass
    engine, dataset = start()
    engine.server = Broken()
    engine.tend()
    assert "failed (RuntimeError: cuDNN error)" in log[-1] and "goes on with the pool" in log[-1]
    assert engine._process is None
    engine.tend()                                        # nobody to serve now
    serve(dataset, 4)
    assert engine.epoch_row()["patches"] == 4


def test_an_earlier_pool_that_cannot_be_removed_is_refused(start, alone, fold, tmp_path,
                                                          monkeypatch):
    fill(fold, tmp_path / "fold_0" / POOL_FOLDER, 1)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)       # as its rights would have it
    with pytest.raises(UserError, match="cannot be removed"):
        start()


def test_what_is_wrong_with_the_fold_is_heard_of_by_the_training(start, fold):
    for identifier in fold.train:                        # a scar in every slice: nowhere to paint
        case = fold.read(identifier)
        for path in fold.folder.glob(f"{identifier}*"):
            path.unlink()
        fold.write(replace(case, labels=np.where(case.labels == 2, 3, case.labels)), fold.folder)
    engine, _ = start()
    with pytest.raises(UserError, match=r"nothing to paint into|no measurable scar|None of the"):
        until(lambda: False, engine.tend)
    assert engine._process is None


CHILD = """
    import multiprocessing, os, signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)      # background jobs ignore it
    sys.path[:0] = [{tests!r}]
    def hold(): time.sleep(300)
    if __name__ == "__main__":
        import torch
        from pathlib import Path
        from nnunet_lgesynth.config import InjectionConfig
        from nnunet_lgesynth.pool.attach import attach
        from tiny_fold import write_tiny_fold
        fold = write_tiny_fold({folder!r})
        training = type(fold.cases_folder(fold.folder))(str(fold.folder), list(fold.train))
        engine, _ = attach("paint", InjectionConfig(budget=1.0), fold.plans, "2d", 0,
                           fold.dataset_json, fold.folder, training, list(fold.val),
                           Path({folder!r}) / "fold_0", torch.device("cpu"), print)
        worker = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
        worker.start()
        print("pids", engine._process.pid, worker.pid, flush=True)
        time.sleep(300)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX only")
def test_the_process_ends_with_its_training_when_that_is_killed(tmp_path):
    """Also while a worker of the training lives on, which holds the pipe open. (SIGTERM and Ctrl-C:
    test_faults.)"""
    script = tmp_path / "training.py"
    script.write_text(textwrap.dedent(CHILD.format(tests=str(Path(__file__).parent),
                                                   folder=str(tmp_path))))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL) as training:
        line = next(text for text in training.stdout if text.startswith("pids"))
        pool, worker = (psutil.Process(int(pid)) for pid in line.split()[1:])
        deadline = monotonic() + PATIENCE
        while len(read_manifest(tmp_path / "fold_0" / POOL_FOLDER)) < 2:
            assert monotonic() < deadline
            sleep(0.05)
        training.kill()
        try:
            assert pool.wait(PATIENCE) is None or not pool.is_running()
        finally:
            training.kill()
            if worker.is_running():
                worker.kill()
    folder = tmp_path / "fold_0" / POOL_FOLDER
    for record in read_manifest(folder):                                # none was lost or halved
        assert (folder / "cases" / f"{record['identifier']}.pkl").is_file()


def test_the_budget_is_a_share_of_the_time_on_all_cores_and_does_not_pile_up():
    now, spent = [100.0], [7.0]
    budget = Budget(0.03, 4, grace=20.0, spent=lambda: spent[0], clock=lambda: now[0])
    assert budget.left == pytest.approx(20)
    spent[0] += 19
    now[0] += 50
    assert budget.left == pytest.approx(1 + 50 * 0.12)
    spent[0] += 10
    assert budget.left < 0
    now[0] += 1e6
    assert budget.left == pytest.approx(MOST_CREDIT)
    spent[0] += MOST_CREDIT - 1
    now[0] += 50                                      # asleep
    budget.forget(50)
    assert budget.left == pytest.approx(1)
    assert Budget(0.03, 4, grace=99.0, spent=lambda: 5.0, clock=lambda: 0.0).left == 99


def test_rows_count_slices_and_unique_samples(start, alone, fold, tmp_path):
    studio = fill(fold, tmp_path / "fold_0" / POOL_FOLDER, 4)
    engine, dataset = start(epoch=1)
    serve(dataset, 200)
    row = engine.epoch_row()
    slices = {k: sum(len(r["slices"]) for r in read_manifest(studio.pool.folder)
                     if r["kind"] == k) for k in ("scar", "healthy")}
    assert (row["pool_scarred_slices"], row["pool_healthy_slices"]) == tuple(slices.values())
    assert row["unique_cases_served"] == 8 and row["unique_slices_served"] == sum(slices.values())
    serve(dataset, 10)
    after = engine.epoch_row()
    assert after["patches"] == 10                       # an epoch's own, unique ones of all epochs
    assert after["unique_slices_served"] == row["unique_slices_served"]
    assert f"injected fraction {row['injected_fraction']:.3f} of 200 patches" in \
        engine.describe(row)


def test_a_new_training_starts_with_an_empty_pool_and_one_that_goes_on_keeps_it(start, alone, fold,
                                                                             tmp_path):
    fill(fold, tmp_path / "fold_0" / POOL_FOLDER, 2)
    assert start(epoch=1)[0].counts()["pool_scarred_cases"] == 2
    start(rank=1, world=2)                              # another rank drops its own pool only
    assert start(epoch=1)[0].counts()["pool_scarred_cases"] == 2
    engine, dataset = start()
    assert not any(engine.counts().values())
    serve(dataset, 4)
    assert engine.epoch_row()["patches"] == 4


def test_the_pools_scars_are_measured_as_they_are_served(start, alone, fold, tmp_path):
    fill(fold, tmp_path / "fold_0" / POOL_FOLDER, 2)
    engine, _ = start(epoch=1)
    found = engine.likeness()
    kept = [r for r in read_manifest(engine.folder) if r["kind"] == "scar"]
    for name in ("burden", "slice_share", "contrast"):
        assert found[f"pool_{name}"] == pytest.approx(
            np.mean([r["measured"][name] for r in kept]), abs=1e-4)
    roles = fold.info.roles
    labels = fold.cases_folder(engine.folder / "cases").load_case(kept[0]["identifier"])[1][0]
    ring = np.isin(labels, roles.wall)
    assert kept[0]["measured"]["burden"] == pytest.approx(
        np.isin(labels, roles.scars).sum() / ring.sum(), rel=0.05)


def test_a_pool_of_ten_thousand_is_read_once_served_and_renewed(start, alone, fold, tmp_path):
    """Of a long training; each record stands for files that were written for real."""
    folder = tmp_path / "fold_0" / POOL_FOLDER
    fill(fold, folder, 2)
    kept = read_manifest(folder)
    files = {r["identifier"]: list((folder / "cases").glob(f"{r['identifier']}*")) for r in kept}
    with open(folder / "manifest.jsonl", "a") as manifest:
        for k in range(10_000 - len(kept)):
            record = kept[k % len(kept)]
            name = f"{record['kind']}_{len(kept) + k:06d}"
            for path in files[record["identifier"]]:
                os.link(path, path.with_name(path.name.replace(record["identifier"], name)))
            manifest.write(json.dumps({**record, "identifier": name}) + "\n")
    engine, dataset = start(replace(INJECTION, pool_cases=5_000), epoch=1)
    begun = monotonic()
    serve(dataset, 100)
    row = engine.epoch_row()
    assert monotonic() - begun < 30                      # a reading a case would take minutes
    assert row["pool_scarred_cases"] == row["pool_healthy_cases"] == 5_000
    assert row["probability"] == 0.8 and 0.5 < row["injected_fraction"] < 1
    assert row["unique_cases_served"] > 40               # of 80 or so, nearly all of them others
    begun = monotonic()
    studio = fill(fold, folder, 5_001, engine.injection)             # its writer goes on, too
    assert monotonic() - begun < 30 and set(studio.kept.values()) == {5_001}
    assert engine.counts()["pool_scarred_cases"] == 5_000
    gone = next(r["identifier"] for r in kept if r["kind"] == "scar")         # the oldest
    assert not list((folder / "cases").glob(f"{gone}*"))


def test_each_rank_has_its_share_of_the_pool_in_a_folder_of_its_own(start, alone, tmp_path):
    injection = replace(INJECTION, pool_cases=5, refresh_cases=1)
    engines = [start(injection, rank, world=2)[0] for rank in range(2)]
    assert [e.folder.name for e in engines] == ["lgesynth_pool", "lgesynth_pool_rank1"]
    assert {e.injection.pool_cases for e in engines} == {3}
    assert [e.order.rank for e in engines] == [0, 1]


def test_an_epoch_that_cannot_be_told_is_said_and_survived(start, alone, log, monkeypatch):
    injection = replace(INJECTION, ramp_epochs=4)
    engine, _ = start(injection)
    engine.start_epoch(2)
    assert (engine.folder / "epoch.txt").read_text() == "2\n"
    log.clear()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("nnunet_lgesynth.pool.engine.tell_epoch", full)
    engine.start_epoch(3)
    engine.start_epoch(4)
    assert len(log) == 1 and "stays as it is" in log[0]


def test_scarred_identifiers_are_those_whose_labels_hold_scar(start, alone):
    assert start()[1].scarred == {"case_00", "case_02"}


def test_fold_all_trains_and_validates_on_the_same_cases(alone, fold, tmp_path, log):
    everything = sorted((*fold.train, *fold.val))
    training = type(fold.cases_folder(fold.folder))(str(fold.folder), everything)
    engine, dataset = attach("paint", INJECTION, fold.plans, "2d", "all", fold.dataset_json,
                             fold.folder, training, everything, tmp_path, CPU, log.append,
                             qc=QCConfig())
    assert engine.order.fold.fold == "all"
    assert dataset.scarred == {"case_00", "case_02", "case_04"}


def test_the_training_process_needs_no_diffusion_library():
    """Nor the other one what nnU-Net's trainer imports, which would take it seconds."""
    heavy = ("diffusers", "nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    code = f"import sys, nnunet_lgesynth.pool.attach; print({set(heavy)} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "set()"


def test_where_nothing_is_accepted_nothing_is_injected_and_drafting_keeps_its_budget(start, log):
    engine, dataset = start(InjectionConfig(probability=1.0, budget=0.4, grace=0.2),
                            qc=QCConfig(min_contrast_share=np.inf, max_level_change=-1.0))
    until(lambda: any("refused 40 samples in a row" in text for text in log), engine.tend)
    process = psutil.Process(engine._process.pid)
    begun, before = monotonic(), sum(process.cpu_times()[:2])
    sleep(3)
    share = (sum(process.cpu_times()[:2]) - before) / (monotonic() - begun)
    row = engine.epoch_row()
    assert share < 0.6                                   # of a core: it drafts on, but never spins
    assert row["probability"] == row["accepted"] == 0 == dataset.probability() < row["drafted"]
    assert engine._process is not None and sum("refused" in text for text in log) == 1


def test_a_pool_that_is_deleted_under_a_training_is_filled_and_served_again(start, log):
    engine, dataset = start(InjectionConfig(probability=1.0, pool_cases=4, budget=1.0,
                                            ratio_cap=1e9))
    until(lambda: engine.counts()["pool_scarred_cases"] == 4, engine.tend)
    dataset.load_case(dataset.identifiers[0])
    with engine.asleep():                                # wherever it is in its work, but once
        shutil.rmtree(engine.folder)
    dataset.load_case(dataset.identifiers[0])
    until(lambda: engine.counts()["pool_scarred_cases"] == 4, engine.tend)
    assert sum("was deleted" in text for text in log) == 1
    for identifier in 10 * dataset.identifiers:
        dataset.load_case(identifier)[0][:]
    assert engine.epoch_row()["injected_fraction"] > 0.5 and engine._process is not None
