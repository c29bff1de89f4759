"""Laws of the studio: it fills a pool evenly, goes on where it stopped, renews a full pool within
bounds, and loses no training for want of disk or of good samples."""

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import sleep

import numpy as np
import pytest

from nnunet_lgesynth.config import InjectionConfig, UserError
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.store import Pool, read_manifest
from nnunet_lgesynth.pool.studio import PATIENCE, Studio, ours
from nnunet_lgesynth.pool.synthesize import KINDS

INJECTION = InjectionConfig(pool_cases=4, refresh_cases=2, seed=1)


class Blank(Painter):
    """A generator whose scars are never there, so that the quality control refuses them."""

    hash = "blank"

    def drafts(self, conditions, seeds):
        return [np.zeros((self.pixels, self.pixels), np.float32) for _ in conditions]


class Lost(Painter):
    """A generator that has diverged."""

    hash = "lost"

    def drafts(self, conditions, seeds):
        return [np.full((self.pixels, self.pixels), np.nan, np.float32) for _ in conditions]


@pytest.fixture
def studio_of(fold, tmp_path, log):
    """A factory of studios."""
    def make(folder="pool", generator=None, injection=INJECTION, fold=fold, rank=0) -> Studio:
        return Studio(fold, generator or Painter(), None, injection, tmp_path / folder, log.append,
                      rank=rank)
    return make


def fill(studio: Studio, cases: int) -> Studio:
    """Draft until so many cases of each kind are kept."""
    for _ in range(20 * cases):
        if min(studio.kept.values()) >= cases:
            return studio
        studio.draft()
    raise AssertionError(studio.kept)


def test_kinds_are_drafted_in_turn_until_the_pool_is_full(studio_of):
    studio = studio_of()
    kept = []
    while studio.wanted:
        studio.draft()
        kept.append(dict(studio.kept))
    assert all(abs(k["scar"] - k["healthy"]) <= 1 for k in kept)
    assert studio.kept == {"scar": 4, "healthy": 4} and studio.draft() is None
    records = read_manifest(studio.pool.folder)
    assert [r["kind"] for r in records].count("scar") == 4


def test_a_full_pool_is_renewed_by_so_many_cases_an_epoch_and_keeps_its_size(studio_of):
    studio = fill(studio_of(), 4)
    first = {r["identifier"] for r in read_manifest(studio.pool.folder)}
    on_disk = {p.name for p in studio.pool.cases.iterdir()}
    studio.begin_epoch(1)
    while studio.wanted:
        studio.draft()
    assert studio.kept == {"scar": 6, "healthy": 6}
    studio.begin_epoch(1)
    assert studio.wanted is None                                 # it has begun already
    left = {p.stem for p in studio.pool.cases.glob("*.pkl")}
    served = {r["identifier"] for found in ours(read_manifest(studio.pool.folder), Painter().hash,
                                                studio.fold).values() for r in found[-4:]}
    assert left == served and len(left & first) == 4
    assert len(list(studio.pool.cases.iterdir())) == len(on_disk)


def test_manifest_records_tell_how_a_sample_came_about(studio_of, fold):
    studio = fill(studio_of(), 2)
    for record in read_manifest(studio.pool.folder):
        assert record["generator"] == Painter().hash and record["source"] in fold.train
        assert record["spec"]["shape"] == "sector" and isinstance(record["seed"], int)
        accepted = {int(z) for z, v in record["verdicts"].items() if v["accepted"]}
        assert accepted == set(record["slices"]) == {int(z) for z in record["changed"]}
        assert set(record["captions"]) == set(record["verdicts"])


def test_a_continued_training_draws_what_it_would_have_drawn(studio_of, tmp_path):
    fill(studio_of(), 2)
    before = read_manifest(tmp_path / "pool")
    fill(studio_of(), 4)
    after = read_manifest(tmp_path / "pool")
    assert after[:len(before)] == before
    assert not {r["seed"] for r in before} & {r["seed"] for r in after[len(before):]}
    other = fill(studio_of("other"), 2)
    assert read_manifest(tmp_path / "other") == before           # same seed, same pool
    fill(other, 4)
    assert read_manifest(tmp_path / "other") == after


def test_seeds_and_ranks_draw_their_own(studio_of, tmp_path):
    fill(studio_of(), 2)
    fill(studio_of("seed", injection=replace(INJECTION, seed=2)), 2)
    fill(studio_of("rank", rank=1), 2)
    drawn = [{r["seed"] for r in read_manifest(tmp_path / name)}
             for name in ("pool", "seed", "rank")]
    assert all(not a & b for a, b in zip(drawn, drawn[1:] + drawn[:1]))


def test_hearts_of_an_older_split_and_other_generators_do_not_count(studio_of, fold):
    fill(studio_of(), 2)
    records = read_manifest(studio_of().pool.folder)
    sources = {r["source"] for r in records}
    later = replace(fold, train=tuple(set(fold.train) - sources) or ("case_01",))
    kept = studio_of(fold=later).kept
    assert sum(kept.values()) == sum(r["source"] in later.train for r in records) < len(records)
    assert set(studio_of(generator=Blank()).kept.values()) == {0}


def test_synthesis_uses_training_cases_only(studio_of, fold):
    studio = fill(studio_of(), 4)
    assert {r["source"] for r in read_manifest(studio.pool.folder)} <= set(fold.train)
    assert {h.case.identifier for h in studio.hearts} <= set(fold.train)


def test_without_a_scar_free_case_a_warning_says_what_is_missing(studio_of, fold, log):
    studio_of()
    assert not log
    studio = studio_of("other", fold=replace(fold, train=("case_00", "case_02")))
    assert len(log) == 1 and "no training case is free of scar" in log[0]
    while studio.wanted:
        assert studio.draft().kind == "scar"
    assert studio.kept == {"scar": 4, "healthy": 0}


@pytest.mark.parametrize("generator, check", [(Blank, "contrast_share"), (Lost, "finite")])
def test_a_generator_that_is_always_refused_is_named_once_with_the_failed_checks(studio_of, log,
                                                                               generator, check):
    studio = studio_of(generator=generator())
    for _ in range(2 * PATIENCE):
        studio.draft()
    assert len(log) == 1 and f"refused {PATIENCE} samples in a row" in log[0] and check in log[0]
    assert studio.kept["scar"] == 0 and not list(studio.pool.cases.glob("scar*"))


def test_a_full_disk_loses_samples_and_says_so_once_until_there_is_space(studio_of, log,
                                                                       monkeypatch):
    studio = fill(studio_of(), 2)
    served = read_manifest(studio.pool.folder)

    def full(self, case, record):
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "add", full)
        for _ in range(12):
            studio.draft()
    assert len(log) == 1 and "No space left on device" in log[0] and "goes on" in log[0]
    assert read_manifest(studio.pool.folder) == served
    fill(studio, 4)                                              # space was freed
    assert len(log) == 1


@pytest.mark.parametrize("refresh", [0, 2])
def test_a_pool_that_is_deleted_under_way_is_filled_again(studio_of, log, refresh):
    studio = fill(studio_of(injection=replace(INJECTION, refresh_cases=refresh)), 4)
    names = {r["identifier"] for r in read_manifest(studio.pool.folder)}
    for path in sorted(studio.pool.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert studio.draft() is not None and sum(studio.kept.values()) <= 1
    assert len(log) == 1 and "was deleted" in log[0]
    while studio.wanted:
        studio.draft()
    assert studio.kept == {"scar": 4, "healthy": 4} and len(log) == 1
    anew = {r["identifier"] for r in read_manifest(studio.pool.folder)}
    assert not names & anew                                      # readers map files by their names


def test_a_pool_that_is_deleted_while_a_sample_is_drafted_is_told_of_and_gets_it(studio_of, log):
    class Deleting(Painter):
        def drafts(self, conditions, seeds):
            shutil.rmtree(studio.pool.folder, ignore_errors=True)
            return super().drafts(conditions, seeds)
    studio = fill(studio_of(), 2)
    studio.generator = Deleting()
    while not studio.draft().accepted:
        pass
    assert len(read_manifest(studio.pool.folder)) == sum(studio.kept.values()) == 1
    assert len(log) == 1 and "was deleted" in log[0]


@pytest.mark.parametrize("bytes_left", [0, 4096, 20_000])
def test_a_write_that_fails_halfway_leaves_the_pool_as_it_was(studio_of, log, bytes_left):
    """Of image or labels, by blosc2 itself: as on a full disk, here by a limit on all files."""
    resource = pytest.importorskip("resource")
    studio = fill(studio_of(), 2)
    served = read_manifest(studio.pool.folder)
    files = sorted(studio.pool.cases.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, limits[1]))
    try:
        while not studio.draft().accepted:
            pass
        studio.draft()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(log) == 1 and "cannot grow" in log[0] and "goes on" in log[0]
    assert read_manifest(studio.pool.folder) == served
    assert sorted(studio.pool.cases.iterdir()) == files and not list(studio.pool.partial.iterdir())
    fill(studio, 3)
    assert len(log) == 1


def test_an_unwritable_output_folder_is_refused(studio_of, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        studio_of("file/pool")


def test_several_threads_draft_other_numbers_and_keep_the_bounds(studio_of):
    """As a process does whose networks run elsewhere."""
    studio = studio_of()
    with ThreadPoolExecutor(4) as threads:
        for epoch in range(3):
            studio.begin_epoch(epoch)
            waiting = [threads.submit(drain, studio) for _ in range(4)]
            assert all(one.result() for one in waiting)
            assert studio.kept == dict.fromkeys(KINDS, 4 + 2 * epoch)
            assert not any(studio.under_way.values())
    records = read_manifest(studio.pool.folder)
    for kind in KINDS:
        numbers = [r["number"] for r in records if r["kind"] == kind]
        assert len(set(numbers)) == len(numbers) == 8
    alone = fill(studio_of("alone", injection=replace(INJECTION, pool_cases=8)), 8)
    other = {(r["kind"], r["number"]): r["seed"] for r in read_manifest(alone.pool.folder)}
    shared = [r for r in records if (r["kind"], r["number"]) in other]
    assert len(shared) > 8 and all(other[r["kind"], r["number"]] == r["seed"] for r in shared)


def drain(studio: Studio) -> bool:
    """Draft until nothing is wanted and nothing is under way that might be refused."""
    for _ in range(10 ** 4):
        if studio.draft() is None:
            if not any(studio.under_way.values()):
                return True
            sleep(0.005)
    return False


def test_cores_are_requested_as_often_as_told(studio_of):
    cored = [r.no_reflow_contrast is not None for r in studio_of().prior.records]
    assert any(cored) and not all(cored)
    for share in (0.0, 1.0):
        studio = studio_of(f"pool_{share}", injection=replace(INJECTION, no_reflow_share=share))
        specs = [s.spec for s in (studio.draft() for _ in range(8)) if s.kind == "scar"]
        assert specs and all((spec.no_reflow > 0) == share for spec in specs)
