"""Laws of the pool on disk: a sample is there in whole or not at all, whatever happens."""

import errno
import json
import multiprocessing
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from tiny_fold import tiny_case, write_tiny_fold

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.pool import store
from nnunet_lgesynth.pool.store import Pool, read_manifest

RECORD = {"kind": "scar", "source": "case_00", "slices": [1], "generator": "g", "changed": {}}


@pytest.fixture
def fold(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return write_tiny_fold(tmp_path, cases=3)


@pytest.fixture
def pool(tmp_path, fold):
    return Pool(tmp_path / "pool", fold)


def readable(pool) -> list[str]:
    """Every committed sample's name; asserts that each can be read in whole."""
    cases = pool.fold.cases_folder(pool.cases)
    names = [r["identifier"] for r in read_manifest(pool.folder)]
    for name in names:
        image, labels, previous, properties = cases.load_case(name)
        assert image[:].shape[1:] == labels[:].shape[1:] and previous is None
        assert set(properties["class_locations"]) == {1, 2, 3, 4}
    return names


def test_a_sample_comes_back_as_it_was_given(pool):
    case = tiny_case(0)
    name = pool.add(case, RECORD)
    image, labels, _, properties = pool.fold.cases_folder(pool.cases).load_case(name)
    assert image[:].tobytes() == case.image.tobytes()
    assert (labels[:] == case.labels).all()
    assert properties["spacing"] == case.properties["spacing"]
    for value, where in properties["class_locations"].items():
        assert all(case.labels[tuple(v)] == value for v in where)
    assert read_manifest(pool.folder) == [{"identifier": name, **RECORD}]
    assert {p.name.split(".")[0] for p in pool.cases.iterdir()} == {name, f"{name}_seg"}
    assert not list(pool.partial.iterdir())


def test_a_manifest_is_read_on_and_not_again(pool, monkeypatch):
    manifest, parsed = store.Manifest(pool.folder), []
    monkeypatch.setattr(store, "whole_lines", lambda lines, keys, parse=store.whole_lines:
                        parsed.append(lines.count(b"\n")) or parse(lines, keys))
    assert manifest.update() and manifest.records == []          # there is none yet
    for k in range(3):
        pool.add(tiny_case(0), RECORD)
        assert manifest.update() and len(manifest.records) == k + 1
        assert manifest.update()                                 # nothing new, nothing read
    assert parsed == [1, 1, 1] and manifest.records == read_manifest(pool.folder)


def test_a_record_counts_once_its_line_ends_and_lines_taken_back_are_forgotten(pool):
    manifest = store.Manifest(pool.folder)
    lines = [json.dumps({"identifier": f"scar_{k:06d}", **RECORD}) + "\n" for k in range(3)]
    pool.manifest.write_text(lines[0] + lines[1][:-1])
    assert manifest.update() and len(manifest.records) == 1
    with open(pool.manifest, "a") as file:
        file.write("\n")
    assert manifest.update() and len(manifest.records) == 2
    os.truncate(pool.manifest, len(lines[0]))
    assert not manifest.update() and len(manifest.records) == 1
    assert manifest.update()
    other = lines[2].replace("scar_", "scar_of_a_longer_name_")
    pool.manifest.write_text(other)                              # longer than what was read
    assert not manifest.update() and manifest.records == [json.loads(other)]
    pool.manifest.unlink()
    assert not manifest.update() and manifest.records == [] and manifest.update()


def test_names_are_not_used_again_after_a_case_that_could_not_be_written(pool, monkeypatch):
    pool.add(tiny_case(0), RECORD)
    with monkeypatch.context() as broken:
        broken.setattr(pool, "_write", lambda case: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError):
            pool.add(tiny_case(1), RECORD)
    assert pool.add(tiny_case(2), RECORD) == "scar_000002"
    assert Pool(pool.folder, pool.fold).add(tiny_case(3), RECORD) == "scar_000003"


def test_numbers_run_over_both_kinds(pool):
    healthy = {**RECORD, "kind": "healthy"}
    names = [pool.add(tiny_case(i), r) for i, r in enumerate((RECORD, healthy, RECORD))]
    assert names == ["scar_000000", "healthy_000001", "scar_000002"] == readable(pool)


def test_names_are_never_used_twice(pool, fold):
    first = pool.add(tiny_case(0), RECORD)
    (pool.cases / "scar_000007.b2nd").touch()            # left by a kill before the commit
    (pool.cases / ".DS_Store").touch()
    again = Pool(pool.folder, fold)
    second = again.add(tiny_case(0), RECORD)
    assert second == "scar_000008"
    for path in pool.cases.glob(f"{second}*"):           # its files are gone, its name is not free
        path.unlink()
    assert again.add(tiny_case(0), RECORD) == "scar_000009"
    assert first == "scar_000000"


class Killed(BaseException):
    """Stands for a process that ends here: no handler of the code under test may see it."""


@pytest.mark.parametrize("step", range(9))
def test_a_kill_between_any_two_steps_leaves_whole_samples_only(pool, fold, monkeypatch, step):
    pool.add(tiny_case(0), RECORD)
    calls = []

    def dying(function):
        def call(*arguments, **options):
            if len(calls) == step:
                raise Killed
            calls.append(function)
            return function(*arguments, **options)
        return call

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(fold), "write", dying(type(fold).write))
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(json, "dumps", dying(json.dumps))
        patch.setattr(os, "fsync", dying(os.fsync))
        pool.add(tiny_case(1), RECORD)
    committed = readable(pool)
    assert committed[0] == "scar_000000" and len(committed) == (2 if step == 8 else 1)
    again = Pool(pool.folder, fold)
    assert readable(again) == committed
    name = again.add(tiny_case(2), RECORD)
    assert name not in committed and readable(again) == [*committed, name]
    assert not list(again.partial.iterdir())


def add_for_ever(pool) -> None:
    while True:
        pool.add(tiny_case(0), RECORD)


def test_a_real_kill_leaves_whole_samples_only(pool):
    process = multiprocessing.get_context("spawn").Process(target=add_for_ever, args=(pool,))
    process.start()
    for _ in range(6000):                          # a minute at most
        if len(read_manifest(pool.folder)) >= 3 or not process.is_alive():
            break
        time.sleep(0.01)
    process.kill()
    process.join()
    pool = Pool(pool.folder, pool.fold)
    before = readable(pool)
    assert len(before) >= 3 and pool.add(tiny_case(1), RECORD) not in before
    assert len(readable(pool)) == len(before) + 1


def test_half_lines_are_passed_over_by_readers_and_cut_by_the_next_writer(pool, fold):
    pool.add(tiny_case(0), RECORD)
    whole = pool.manifest.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        pool.manifest.write_bytes(whole + whole[:cut])
        assert len(read_manifest(pool.folder)) == 1       # as the next writer will see it
        Pool(pool.folder, fold)
        assert pool.manifest.read_bytes() == whole
    pool.manifest.write_bytes(whole + b"\0\xff{")
    assert len(read_manifest(pool.folder)) == 1


@pytest.mark.parametrize("line", ["", "null", "17", "[]", "{}", '"scar_000001"', '{"kind": "scar"}',
                                  json.dumps({"identifier": "scar_000001", **RECORD})[:-9] + "}"])
def test_a_damaged_line_among_others_is_passed_over(pool, fold, line):
    lines = [pool.add(tiny_case(0), RECORD) for _ in range(2)] and pool.manifest.read_text()
    first, second = lines.splitlines(keepends=True)
    pool.manifest.write_text(f"{first}{line}\n{second}")
    expected = [json.loads(first), json.loads(second)]
    assert read_manifest(pool.folder) == expected
    assert Pool(pool.folder, fold).add(tiny_case(1), RECORD) == "scar_000002"
    assert read_manifest(pool.folder)[:2] == expected and len(readable(pool)) == 3


def test_reopening_clears_unfinished_cases_but_not_the_readers_counters(pool, fold):
    (pool.partial / "scar_000000.b2nd").touch()
    counters = pool.partial / f"{store.USAGE_PREFIX}1.bin"
    counters.touch()
    Pool(pool.folder, fold)
    assert list(pool.partial.iterdir()) == [counters]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def blosc2_on_a_full_disk(*_, **__):
    raise RuntimeError("Error while creating the NDArray")


@pytest.mark.parametrize("where, failure", [
    ("write", full_disk), ("write", blosc2_on_a_full_disk), ("replace", full_disk),
    ("fsync", full_disk)])
def test_a_full_disk_leaves_the_pool_as_it_was(pool, fold, monkeypatch, where, failure):
    pool.add(tiny_case(0), RECORD)
    manifest, files = pool.manifest.read_bytes(), sorted(pool.cases.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(*((type(fold), "write") if where == "write" else (os, where)), failure)
        with pytest.raises(OSError):
            pool.add(tiny_case(1), RECORD)
    assert sorted(pool.cases.iterdir()) == files and not list(pool.partial.iterdir())
    assert pool.manifest.read_bytes() == manifest
    pool.add(tiny_case(1), RECORD)
    assert len(readable(pool)) == 2


def test_what_reads_back_differently_is_not_committed(pool, fold, monkeypatch):
    real = type(fold).write

    def short(self, case, folder):
        return real(self, replace(case, image=np.zeros_like(case.image)), folder)

    monkeypatch.setattr(type(fold), "write", short)
    with pytest.raises(OSError, match="reads back differently"):
        pool.add(tiny_case(0), RECORD)
    assert not read_manifest(pool.folder) and not list(pool.cases.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path, fold):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"pool .*file/pool cannot be written.*free space"):
        Pool(tmp_path / "file" / "pool", fold)


def test_a_pool_that_is_not_there_has_no_records(tmp_path):
    assert read_manifest(tmp_path / "nowhere") == []
