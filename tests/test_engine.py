"""Laws of the engine: it fills the pool between epochs, counts what was served, and never stops the
training for want of disk or of good samples."""

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_fold import write_tiny_fold

from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.engine import MAX_DRAFTS_PER_CASE, POOL_FOLDER, Engine, attach
from nnunet_lgesynth.pool.store import Pool, read_manifest

INJECTION = InjectionConfig(probability=0.8, pool_cases=4, cases_per_refill=2, seed=1)
CPU = torch.device("cpu")


class Blank(Painter):
    """A generator whose scars are never there, so that the quality control refuses them."""

    hash = "blank"

    def drafts(self, conditions, seeds):
        return [np.zeros((self.pixels, self.pixels), np.float32) for _ in conditions]


@pytest.fixture
def fold(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return write_tiny_fold(tmp_path)


@pytest.fixture
def log():
    return []


@pytest.fixture
def start(fold, tmp_path, log):
    """A factory: what a trainer gets when its data loaders are made."""
    def make(injection=INJECTION, rank=0, generator="paint", fresh=False):
        training = type(fold.cases_folder(fold.folder))(str(fold.folder), list(fold.train))
        return attach(generator, injection, fold.plans, "2d", 0, fold.dataset_json, fold.folder,
                      training, list(fold.val), tmp_path / "fold_0", CPU, log.append, rank,
                      fresh=fresh)
    return make


def engine_of(fold, folder, log, generator=None, injection=INJECTION) -> Engine:
    return Engine(fold, generator or Painter(), None, injection, folder, log.append)


def serve(dataset, times: int) -> None:
    """Cut whole stacks, as a loader would its patches."""
    for k in range(times):
        dataset.load_case(dataset.identifiers[k % len(dataset.identifiers)])[0][:]


def test_it_starts_empty_with_one_warning_and_the_probability_grows_with_the_pool(start, log):
    engine, dataset = start()
    assert len(log) == 1 and "WARNING: the pool is empty" in log[0]
    rows = []
    for epoch in range(3):
        serve(dataset, 60)
        rows.append(engine.epoch_row(refill=epoch < 2))
    assert [r["probability"] for r in rows] == [0.0, 0.4, 0.8]
    assert [r["patches"] for r in rows] == [60, 60, 60]
    assert rows[0]["injected_patches"] == 0
    assert 0.2 < rows[1]["injected_fraction"] < 0.6 < rows[2]["injected_fraction"] < 1
    assert [r["pool_scarred_cases"] for r in rows] == [0, 2, 4]     # that the epoch drew from
    assert [r["pool_healthy_cases"] for r in rows] == [0, 2, 4]
    assert rows[2]["drafted"] == rows[2]["accepted"] == 0
    assert rows[0]["drafted"] >= rows[0]["accepted"] > 0 < rows[0]["seconds_synthesis"]
    assert len(log) == 1 and json.loads(json.dumps(rows)) == rows


def test_rows_count_slices_and_unique_samples(start):
    engine, dataset = start()
    engine.refill()
    engine.refill()
    serve(dataset, 200)
    row = engine.epoch_row(refill=False)
    slices = {k: sum(len(r["slices"]) for r in read_manifest(engine.pool.folder)
                     if r["kind"] == k) for k in ("scar", "healthy")}
    assert (row["pool_scarred_slices"], row["pool_healthy_slices"]) == tuple(slices.values())
    assert row["unique_cases_served"] == 8 and row["unique_slices_served"] == sum(slices.values())
    serve(dataset, 10)
    after = engine.epoch_row(refill=False)
    assert after["patches"] == 10                       # an epoch's own, unique ones of all epochs
    assert after["unique_slices_served"] == row["unique_slices_served"]


def test_a_new_training_starts_with_an_empty_pool_and_one_that_goes_on_keeps_it(start):
    engine, _ = start()
    engine.refill()
    assert start()[0].counts()["pool_scarred_cases"] == 2
    assert start(fresh=True, rank=1) and start()[0].counts()["pool_scarred_cases"] == 2
    engine, dataset = start(fresh=True)
    assert set(engine.counts().values()) == {0}
    serve(dataset, 4)
    assert engine.epoch_row(refill=False)["patches"] == 4


def test_hearts_of_an_older_split_do_not_count(fold, tmp_path, log):
    engine = engine_of(fold, tmp_path / "pool", log)
    engine.refill()
    sources = {r["source"] for r in read_manifest(engine.pool.folder)}
    later = engine_of(replace(fold, train=tuple(set(fold.train) - sources) or ("case_01",)),
                      tmp_path / "pool", log)
    known = {r["source"] for r in later._records()}
    assert sources and known <= set(later.fold.train)
    assert sum(later.counts().values()) < sum(engine.counts().values())


def test_the_pools_scars_are_shown_beside_the_real_ones(start):
    engine, _ = start()
    empty = engine.likeness()
    assert empty["pool_burden"] is None and 0 < empty["real_burden"] < 1
    engine.refill()
    found = engine.likeness()
    kept = [r for r in read_manifest(engine.pool.folder) if r["kind"] == "scar"]
    assert found.items() <= engine.epoch_row(refill=False).items()
    for name in ("burden", "slice_share", "contrast"):
        assert found[f"real_{name}"] == empty[f"real_{name}"]
        assert found[f"pool_{name}"] == pytest.approx(
            np.mean([r["measured"][name] for r in kept]), abs=1e-4)
    roles = engine.fold.info.roles
    labels = engine.fold.cases_folder(engine.pool.cases).load_case(kept[0]["identifier"])[1][0]
    ring = np.isin(labels, roles.wall)
    assert kept[0]["measured"]["burden"] == pytest.approx(
        np.isin(labels, roles.scars).sum() / ring.sum(), rel=0.05)


def test_the_pass_rate_is_of_scars_and_healthy_wall_is_counted_apart(start):
    engine, _ = start()
    row = engine.epoch_row(refill=True)
    kept = {k: sum(len(r["verdicts"]) for r in read_manifest(engine.pool.folder)
                   if r["kind"] == k) for k in ("scar", "healthy")}
    assert row["drafted"] >= kept["scar"] and row["drafted_healthy"] >= kept["healthy"]
    assert (row["accepted"], row["accepted_healthy"]) == tuple(
        engine.counts()[f"pool_{k}_slices"] for k in ("scarred", "healthy"))
    engine.generator = Blank()                    # its scars are refused, its healthy wall is not
    engine._drafts = {k: engine._stream(k) for k in engine._drafts}
    row = engine.epoch_row(refill=True)
    assert row["accepted"] == 0 < row["drafted"]


def test_without_a_scar_free_case_a_warning_says_what_is_missing(fold, tmp_path, log):
    engine_of(fold, tmp_path / "a", log)
    assert not log
    engine = engine_of(replace(fold, train=("case_00", "case_02")), tmp_path / "b", log)
    assert len(log) == 1 and "no training case is free of scar" in log[0]
    assert engine.epoch_row(refill=True)["drafted_healthy"] == 0


def test_the_log_line_holds_the_injected_fraction(start):
    engine, dataset = start()
    engine.refill()
    serve(dataset, 40)
    row = engine.epoch_row(refill=True)
    assert f"injected fraction {row['injected_fraction']:.3f} of 40 patches" in engine.describe(row)


def test_the_pool_never_outgrows_its_size_and_keeps_one_healthy_case_a_scar(fold, tmp_path, log):
    engine = engine_of(fold, tmp_path / "pool", log,
                       injection=replace(INJECTION, pool_cases=5, cases_per_refill=3))
    for _ in range(4):
        engine.epoch_row(refill=True)
    counts = engine.counts()
    assert counts["pool_scarred_cases"] == counts["pool_healthy_cases"] == 5


def test_manifest_records_tell_how_a_sample_came_about(start, fold):
    engine, _ = start()
    engine.refill()
    records = read_manifest(engine.pool.folder)
    assert {r["kind"] for r in records} == {"scar", "healthy"}
    for record in records:
        assert record["generator"] == Painter().hash and record["source"] in fold.train
        assert record["spec"]["shape"] == "sector" and isinstance(record["seed"], int)
        accepted = {int(z) for z, v in record["verdicts"].items() if v["accepted"]}
        assert accepted == set(record["slices"]) == {int(z) for z in record["changed"]}
        assert set(record["captions"]) == set(record["verdicts"])


def test_a_continued_training_draws_what_it_would_have_drawn(fold, tmp_path, log):
    first = engine_of(fold, tmp_path / "pool", log)
    first.refill()
    before = read_manifest(tmp_path / "pool")
    second = engine_of(fold, tmp_path / "pool", log)
    second.refill()
    after = read_manifest(tmp_path / "pool")
    assert after[:len(before)] == before
    assert not {r["seed"] for r in before} & {r["seed"] for r in after[len(before):]}
    fresh = engine_of(fold, tmp_path / "other", log)
    fresh.refill()
    assert read_manifest(tmp_path / "other") == before           # same seed, same pool
    fresh.refill()
    assert read_manifest(tmp_path / "other") == after
    other = engine_of(fold, tmp_path / "third", log, injection=replace(INJECTION, seed=2))
    other.refill()
    assert read_manifest(tmp_path / "third") != before


def test_samples_of_another_generator_do_not_count(fold, tmp_path, log):
    engine_of(fold, tmp_path / "pool", log).refill()
    blank = engine_of(fold, tmp_path / "pool", log, Blank())
    assert set(blank.counts().values()) == {0}


def test_a_generator_that_is_always_refused_ends_its_refill_and_says_so(fold, tmp_path, log):
    engine = engine_of(fold, tmp_path / "pool", log, Blank())
    engine.qc = QCConfig()
    row = engine.epoch_row(refill=True)
    drafts = MAX_DRAFTS_PER_CASE * INJECTION.cases_per_refill
    assert row["drafted"] >= drafts and engine.counts()["pool_scarred_cases"] == 0
    assert len(log) == 1 and f"{drafts} drafts" in log[0] and "quality control refuses" in log[0]


def test_a_full_disk_stops_the_refill_and_not_the_training(start, log, monkeypatch):
    engine, dataset = start()
    engine.refill()
    served = read_manifest(engine.pool.folder)
    log.clear()

    def full(self, case, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "add", full)
        rows = [engine.epoch_row(refill=True) for _ in range(3)]
        serve(dataset, 20)
    assert len(log) == 1 and "No space left on device" in log[0] and "goes on" in log[0]
    assert read_manifest(engine.pool.folder) == served
    assert all(r["probability"] == 0.4 and r["pool_scarred_cases"] == 2 for r in rows)
    assert engine.epoch_row(refill=True)["injected_fraction"] > 0
    assert len(log) == 1 and engine.counts()["pool_scarred_cases"] == 4     # space was freed


def test_a_disk_that_fills_up_leaves_as_many_healthy_cases_as_scarred_ones(start, monkeypatch):
    engine, _ = start(replace(INJECTION, pool_cases=8, cases_per_refill=8))
    real = Pool.add

    def until_full(self, case, record):
        if len(read_manifest(self.folder)) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, case, record)

    monkeypatch.setattr(Pool, "add", until_full)
    engine.refill()
    counts = engine.counts()
    assert counts["pool_scarred_cases"] == counts["pool_healthy_cases"] == 2


def test_only_rank_0_fills_the_pool_and_all_ranks_read_it(start, tmp_path):
    reader, late = start(rank=1)
    assert reader is None and not (tmp_path / "fold_0" / POOL_FOLDER).exists()
    serve(late, 4)
    engine, dataset = start()
    engine.refill()
    _, early = start(rank=1)
    for rank in (dataset, late, early):
        serve(rank, 20)
        assert rank.ramp == 0.5
    row = engine.epoch_row(refill=False)
    assert row["patches"] == 60                          # of all ranks


def test_scarred_identifiers_are_those_whose_labels_hold_scar(start):
    assert start()[1].scarred == {"case_00", "case_02"}


def test_fold_all_trains_and_validates_on_the_same_cases(fold, tmp_path, log):
    everything = sorted((*fold.train, *fold.val))
    training = type(fold.cases_folder(fold.folder))(str(fold.folder), everything)
    engine, dataset = attach("paint", INJECTION, fold.plans, "2d", "all", fold.dataset_json,
                             fold.folder, training, everything, tmp_path, CPU, log.append)
    engine.refill()
    assert engine.fold.fold == "all" and dataset.scarred == {"case_00", "case_02", "case_04"}
    assert len(read_manifest(engine.pool.folder)) == 4


def test_synthesis_uses_training_cases_only(start, fold):
    engine, _ = start(replace(INJECTION, pool_cases=6, cases_per_refill=6))
    engine.refill()
    assert {r["source"] for r in read_manifest(engine.pool.folder)} <= set(fold.train)
    assert {h.case.identifier for h in engine.hearts} <= set(fold.train)


def test_an_unwritable_output_folder_is_refused(fold, tmp_path, log):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        engine_of(fold, tmp_path / "file" / "pool", log)
