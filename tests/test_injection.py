"""Laws of the injected training set, through nnU-Net's own loader and batchgenerators' workers."""

import multiprocessing
import os
import pickle
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_fold import tiny_case
from tiny_nnunet import tiny_dataset_json

from nnunet_lgesynth.config import InjectionConfig, UserError
from nnunet_lgesynth.pool import injection
from nnunet_lgesynth.pool.injection import InjectedDataset, chance, read_usage, tell_epoch
from nnunet_lgesynth.pool.store import Pool, read_manifest

HASH = "of-this-generator"
SCAR_BOX, HEALTHY_BOX = [10, 20, 10, 20], [30, 38, 30, 38]
SCARRED = frozenset({"case_00", "case_02"})          # even ones, see tiny_fold


def sample(kind: str, z: int, generator: str = HASH, box=None) -> tuple:
    """A case of one constant value, so that its source can be told from any of its pixels."""
    case = tiny_case(2 if kind == "scar" else 1)
    case.image[:] = 100 if kind == "scar" else 200
    box = box or (SCAR_BOX if kind == "scar" else HEALTHY_BOX)
    return case, {"kind": kind, "source": case.identifier, "slices": [z],
                  "changed": {str(z): box}, "generator": generator}


@pytest.fixture
def pool(tmp_path, fold):
    pool = Pool(tmp_path / "pool", fold)
    for z in (1, 2):
        for kind in ("scar", "healthy"):
            pool.add(*sample(kind, z))
    return pool


def inject(pool, probability=1.0, full=2, seed=0, generator=HASH) -> InjectedDataset:
    fold = pool.fold
    training = type(fold.cases_folder(fold.folder))(str(fold.folder), list(fold.train))
    injection = InjectionConfig(probability=probability, pool_cases=full, seed=seed, ratio_cap=1e9)
    return InjectedDataset(training, fold.cases_folder(pool.cases), pool.folder, SCARRED,
                           generator, injection)


PATCHES = pytest.mark.parametrize("patch", [(32, 32), (3, 32, 32)])


def kind_of(dataset, identifier: str) -> str:
    """What a case is answered with."""
    image, labels, previous, _ = dataset.load_case(identifier)
    assert previous is None and labels.shape == (1, *image.shape[1:])
    return {100.0: "scar", 200.0: "healthy"}.get(float(image[0, 0, 0, 0]), "real")


def loader(fold, dataset, patch=None, batch_size=2, foreground=0.33) -> nnUNetDataLoader:
    plans = PlansManager(fold.plans)
    patch = patch or fold.patch_size
    return nnUNetDataLoader(dataset, batch_size, patch, patch,
                            plans.get_label_manager(fold.dataset_json), foreground)


def test_a_full_pool_at_p_1_answers_each_patient_with_its_own_kind(pool):
    dataset = inject(pool)
    answers = {i: {kind_of(dataset, i) for _ in range(20)} for i in dataset.identifiers}
    assert answers == {i: {"scar" if i in SCARRED else "healthy"} for i in pool.fold.train}


def test_the_share_of_scar_free_cases_is_that_of_the_real_data_at_any_p(pool):
    for probability in (0.0, 0.4, 1.0):
        dataset = inject(pool, probability)
        for identifier in dataset.identifiers:
            for _ in range(10):
                _, labels, _, _ = dataset.load_case(identifier)
                assert (labels[:] >= 3).any() == (identifier in SCARRED)


def test_a_heart_that_is_no_training_case_any_more_is_not_served(pool):
    assert kind_of(inject(pool), "case_00") == "scar"
    dataset = inject(pool)
    dataset.sources -= {"case_02"}                       # the scars' source
    assert {kind_of(dataset, "case_00") for _ in range(10)} == {"real"}
    assert dataset.probability() == 0


def test_p_is_the_share_of_answers_from_the_pool_and_grows_with_it(pool):
    for full, expected in ((2, 0.6), (4, 0.3)):      # two scarred samples are there
        dataset = inject(pool, 0.6, full)
        kinds = Counter(kind_of(dataset, "case_00") for _ in range(300))
        assert abs(kinds["scar"] / 300 - expected) < 0.1
        assert dataset.probability() == pytest.approx(0.6 * 2 / full)
    for _ in range(2):
        pool.add(*sample("scar", 1))
    kinds = Counter(kind_of(dataset, "case_00") for _ in range(300))
    assert dataset.probability() == 0.6 and abs(kinds["scar"] / 300 - 0.6) < 0.1


def test_the_newest_samples_of_each_kind_are_served(pool):
    dataset = inject(pool, full=1)
    for box in ([1, 2, 1, 2], [2, 3, 2, 3]):
        case, record = sample("scar", 1, box=box)
        case.image[:] = 100 + box[0]
        pool.add(case, record)
        assert {float(dataset.load_case("case_00")[0][0, 0, 0, 0]) for _ in range(10)} == {
            100 + box[0]}
    assert kind_of(dataset, "case_01") == "healthy"


def test_the_chance_has_a_ramp_over_epochs_and_a_cap_on_how_often_a_sample_is_met():
    config = InjectionConfig(probability=0.6, pool_cases=10, ramp_epochs=4, ratio_cap=1e9)
    assert [round(chance(config, 10, 5, epoch, 9), 3) for epoch in range(6)] == [
        0.15, 0.3, 0.45, 0.6, 0.6, 0.6]
    assert chance(config, 5, 5, 9, 9) == pytest.approx(0.3) and chance(config, 0, 5, 9, 9) == 0
    assert chance(config, 99, 5, 9, 9) == pytest.approx(0.6)            # 10 are served
    for cap in (0.5, 1.0, 2.0):
        capped = InjectionConfig(probability=1.0, pool_cases=2, ratio_cap=cap)
        p = chance(capped, 2, 30, 0, 9)
        assert p / 2 == pytest.approx(cap * (1 - p) / 30)            # a sample : a real case
    assert chance(InjectionConfig(probability=0.5, pool_cases=64), 64, 37, 0, 9) == 0.5


def test_the_chance_fades_over_the_last_part_of_the_training():
    config = InjectionConfig(probability=0.8, pool_cases=1, fade=0.5, ratio_cap=1e9)
    assert [round(chance(config, 1, 5, epoch, 8), 3) for epoch in range(9)] == [
        0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0]
    whole = replace(config, fade=1.0)
    assert [round(chance(whole, 1, 5, epoch, 4), 3) for epoch in range(4)] == [0.8, 0.6, 0.4, 0.2]
    with pytest.raises(UserError, match="fade must lie above 0"):
        InjectionConfig(fade=0.0)


def test_workers_hear_of_the_epoch(pool):
    dataset = inject(pool)
    dataset.injection = replace(dataset.injection, ramp_epochs=10)
    kind_of(dataset, "case_00")
    assert dataset.probability() == pytest.approx(0.1)
    tell_epoch(pool.folder, 4)
    assert dataset.probability() == pytest.approx(0.5)
    dataset.injection, dataset.epochs = replace(dataset.injection, ramp_epochs=0, fade=1.0), 8
    assert dataset.probability() == pytest.approx(0.5)           # epoch 4 of 8
    for half in ("", "1"):                               # while the next number is being written
        (pool.folder / "epoch.txt").write_text(half)
        assert dataset.probability() == pytest.approx(0.5)


def test_a_deleted_pool_means_real_cases_and_one_that_is_filled_again_is_counted(pool):
    dataset = inject(pool)
    kind_of(dataset, "case_00")
    for path in sorted(pool.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert {kind_of(dataset, i) for i in dataset.identifiers} == {"real"}
    pool.add(*sample("scar", 1))
    before = read_usage(pool.folder).patches
    assert kind_of(dataset, "case_00") == "scar"
    assert read_usage(pool.folder).patches == before + 1


def test_an_empty_pool_answers_with_real_cases(tmp_path, fold):
    dataset = inject(Pool(tmp_path / "pool", fold))
    assert [kind_of(dataset, i) for i in dataset.identifiers] == ["real"] * len(fold.train)
    assert dataset.probability() == 0


def test_identifiers_stay_the_real_ones_and_the_real_cases_stay_as_they_are(pool):
    before = {p: p.read_bytes() for p in pool.fold.folder.iterdir()}
    dataset = inject(pool)
    batches = loader(pool.fold, dataset)
    keys = {key for _ in range(20) for key in next(batches)["keys"]}
    assert keys <= set(pool.fold.train) and dataset.identifiers == list(pool.fold.train)
    assert {p: p.read_bytes() for p in pool.fold.folder.iterdir()} == before
    real = inject(pool, probability=0.0)
    assert real["case_00"][0][:].tobytes() == pool.fold.read("case_00").image.tobytes()


def test_samples_of_another_generator_are_not_served(pool):
    dataset = inject(pool, generator="another", full=1)
    assert {kind_of(dataset, i) for i in dataset.identifiers} == {"real"}
    assert dataset.probability() == 0
    pool.add(*sample("scar", 1, generator="another"))
    assert kind_of(dataset, "case_00") == "scar" and kind_of(dataset, "case_01") == "real"


def test_a_missing_file_means_another_sample_and_then_the_real_case(pool, monkeypatch):
    scars = [r["identifier"] for r in read_manifest(pool.folder) if r["kind"] == "scar"]
    for path in pool.cases.glob(f"{scars[0]}*"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(injection, "TRIES", 30)
        dataset = inject(pool)
        assert {kind_of(dataset, "case_00") for _ in range(20)} == {"scar"}
    (pool.cases / f"{scars[1]}.pkl").unlink()
    assert {kind_of(dataset, "case_00") for _ in range(20)} == {"real"}
    (pool.cases / f"{scars[1]}.b2nd").write_bytes(b"cut short")
    assert kind_of(dataset, "case_00") == "real"
    (pool.cases / f"{scars[1]}.pkl").write_bytes(b"")
    assert kind_of(dataset, "case_00") == "real"


@pytest.mark.parametrize("which, ending", enumerate((".b2nd", "_seg.b2nd")))
def test_a_file_that_opens_but_is_damaged_inside_is_not_served(tmp_path, fold, which, ending):
    """As a disk error leaves it; nnU-Net would read it in the middle of a batch."""
    pool, rng = Pool(tmp_path / "pool", fold), np.random.default_rng(0)
    case, record = sample("scar", 1)
    noise = rng.normal(size=case.image.shape).astype(np.float32)     # or nearly nothing is stored
    labels = rng.integers(0, 5, case.labels.shape).astype(np.int16)
    name = pool.add(replace(case, image=noise, labels=labels), record)
    assert np.array_equal(inject(pool, full=1).load_case("case_00")[1][:], labels)
    path = pool.cases / (name + ending)
    whole = path.read_bytes()
    path.write_bytes(whole[:400] + bytes(len(whole) - 1200) + whole[-800:])
    opened = fold.cases_folder(pool.cases).load_case(name)[which]
    with pytest.raises(RuntimeError):
        opened[:]
    batches = loader(fold, inject(pool, full=1), foreground=0.0)
    for _ in range(20):
        next(batches)
    assert read_usage(pool.folder).injected == 0


def test_a_sample_of_values_that_are_no_numbers_is_not_served(tmp_path, fold):
    pool = Pool(tmp_path / "pool", fold)
    case, record = sample("scar", 1)
    name = pool.add(case, record)
    case.image[0, 2, 3, 4] = np.nan
    for path in fold.write(replace(case, identifier=name), tmp_path):
        path.replace(pool.cases / path.name)
    assert kind_of(inject(pool, full=1), "case_00") == "real"


def test_class_locations_come_with_the_answer(pool):
    image, labels, _, properties = inject(pool).load_case("case_00")
    assert kind_of(inject(pool), "case_00") == "scar" and image.shape == labels.shape
    locations = properties["class_locations"]
    assert {value for value, where in locations.items() if len(where)} == {1, 2, 3}
    for value, where in locations.items():
        assert not len(where) or (labels[:][tuple(where.T)] == value).all()


@PATCHES
def test_region_keys_reach_the_loader(tmp_path, fold, patch):
    regions = replace(fold, dataset_json=tiny_dataset_json(regions=True))
    pool = Pool(tmp_path / "pool", regions)
    for kind in ("scar", "healthy"):
        pool.add(*sample(kind, 1))
    dataset = inject(pool, full=1)
    locations = dataset.load_case("case_00")[3]["class_locations"]
    assert set(locations) == {(1, 2, 3, 4), (2, 3, 4), (3, 4), 4} and len(locations[3, 4])
    batches = loader(regions, dataset, patch, foreground=1.0)
    seen = np.concatenate([next(batches)["target"].numpy().ravel() for _ in range(10)])
    assert seen.max() <= 4 and (seen == 3).any()         # labels are values, also with regions


@pytest.mark.parametrize("key", [(-1, 0, 1, 2, 3, 4), 3])
@PATCHES
def test_an_ignore_label_keeps_patches_to_what_is_annotated(tmp_path, fold, patch, key):
    labels = {**fold.dataset_json["labels"], "ignore": 5}
    partly = replace(fold, dataset_json={**fold.dataset_json, "labels": labels})
    pool = Pool(tmp_path / "pool", partly)
    case, record = sample("scar", 1)
    case.labels[:, 3:] = case.labels[:, :, :, :10] = 5
    pool.add(case, record)
    dataset = inject(pool, full=1)
    dataset.identifiers = ["case_00"]
    locations = dataset.load_case("case_00")[3]["class_locations"]
    assert (case.labels[tuple(locations[key].T)] < 5).all() and len(locations[key])
    batches = loader(partly, dataset, patch, foreground=1.0 if key == 3 else 0.0)
    for _ in range(10):
        target = next(batches)["target"].numpy()
        assert ((target >= 0) & (target < 5)).reshape(len(target), -1).any(axis=1).all()


@pytest.mark.parametrize("patch", [(16, 16), (2, 16, 16)])
def test_a_patch_counts_as_injected_only_if_its_window_touches_the_changed_box(tmp_path, fold,
                                                                               patch):
    pool = Pool(tmp_path / "pool", fold)
    pool.add(*sample("scar", 2))
    dataset = inject(pool, full=1)
    dataset.identifiers = ["case_00"]
    batches = loader(fold, dataset, patch=patch, batch_size=4)
    found, get_bbox = [], batches.get_bbox
    batches.get_bbox = lambda *a, **k: found.append(get_bbox(*a, **k)) or found[-1]
    for _ in range(60):
        next(batches)
    first, last = (2, *SCAR_BOX[::2]), (3, *SCAR_BOX[1::2])
    touching = sum((np.array(low) < last).all() and (np.array(high) > first).all()
                   for low, high in found)
    usage = read_usage(pool.folder)
    assert usage.patches == len(found) == 240
    assert 0 < usage.injected == touching < 240
    assert usage.unique_cases == usage.unique_slices == 1


@pytest.mark.parametrize("patch", [(80, 64), (7, 80, 64)])
def test_windows_that_hang_over_the_image_are_padded_and_counted(tmp_path, fold, patch):
    pool = Pool(tmp_path / "pool", fold)
    pool.add(*sample("scar", 2, box=[0, 48, 0, 48]))
    dataset = inject(pool, full=1)
    dataset.identifiers = ["case_00"]
    batches = loader(fold, dataset, patch=patch, foreground=1.0)
    shapes = {next(batches)["data"].shape for _ in range(20)}
    assert shapes == {(2, 1, *patch)}
    usage = read_usage(pool.folder)
    assert 0 < usage.injected <= usage.patches == 40
    assert (usage.injected == 40) == (len(patch) == 3)    # a 3D patch holds every slice


def test_real_and_untouched_patches_are_not_counted(pool):
    dataset = inject(pool, probability=0.0)
    batches = loader(pool.fold, dataset)
    for _ in range(5):
        next(batches)
    dataset = inject(pool)
    image = dataset.load_case("case_00")[0]
    for window in ((slice(None), slice(0, 1)), (0, 3), (0, slice(1, 3), slice(20, 48)), (0, 1, 9)):
        assert image[window].size
    usage = read_usage(pool.folder)
    assert (usage.patches, usage.injected, usage.unique_slices) == (11, 0, 0)


def test_unique_samples_are_counted_once_over_workers_and_slices(tmp_path, fold):
    pool = Pool(tmp_path / "pool", fold)
    case, record = sample("scar", 1)
    pool.add(case, {**record, "slices": [1, 2], "changed": {"1": SCAR_BOX, "2": SCAR_BOX}})
    pool.add(*sample("scar", 4))
    for _ in range(2):                                   # as two workers would
        dataset = inject(pool)
        for _ in range(20):
            image = dataset.load_case("case_00")[0]
            image[:, 0:5, 0:48, 0:48]
    usage = read_usage(pool.folder)
    assert (usage.patches, usage.injected) == (40, 40)
    assert (usage.unique_cases, usage.unique_slices) == (2, 3)
    Pool(pool.folder, fold)                              # a continued training counts on
    assert read_usage(pool.folder).patches == 40


def test_without_a_place_for_counters_training_goes_on(pool, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert kind_of(inject(pool), "case_00") == "scar" and read_usage(pool.folder).patches == 0


def test_it_pickles_without_its_open_files_and_starts_afresh(pool):
    dataset = inject(pool)
    fresh = pickle.loads(pickle.dumps(dataset))
    kind_of(dataset, "case_00")
    used = pickle.loads(pickle.dumps(dataset))
    assert vars(fresh).keys() == vars(used).keys() == vars(dataset).keys()
    assert [kind_of(d, "case_00") for d in (fresh, used)] == ["scar"] * 2
    assert read_usage(pool.folder).patches == 3


def served_in_a_worker(dataset) -> tuple:
    """Kinds, random draws and loaded modules of another process."""
    kinds = [kind_of(dataset, i) for i in sorted(dataset.identifiers)]
    return kinds, dataset._rng.integers(2 ** 31, size=4).tolist(), os.getpid(), [
        name for name in ("diffusers", "transformers", "accelerate") if name in sys.modules]


def test_it_works_in_a_spawned_process_with_draws_of_its_own(pool):
    """The pickle-under-spawn test; spawned, a worker also shows what unpickling imports."""
    dataset = inject(pool, seed=5)
    here = served_in_a_worker(dataset)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as spawned:
        kinds, draws, pid, heavy = spawned.submit(served_in_a_worker, dataset).result(120)
    expected = ["scar" if i in SCARRED else "healthy" for i in sorted(pool.fold.train)]
    assert kinds == here[0] == expected and draws != here[1] and pid != os.getpid()
    assert heavy == []
    assert read_usage(pool.folder).patches == 2 * len(expected)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_forked_workers_draw_different_numbers_even_if_the_parent_has_drawn(pool):
    dataset, draws = inject(pool, seed=5), []
    kind_of(dataset, "case_00")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    for _ in range(2):                                   # inherited, not pickled, as in nnU-Net
        context.Process(target=lambda: queue.put(served_in_a_worker(dataset)[1])).start()
        draws.append(queue.get())
    assert draws[0] != draws[1] and dataset._rng.integers(2 ** 31, size=4).tolist() not in draws


def test_alone_it_repeats_itself_from_its_seed(pool):
    def answers(seed):
        dataset = inject(pool, 0.5, seed=seed)
        return [dataset.load_case("case_00")[0][0, 2, 0, 0] for _ in range(30)]
    assert answers(1) == answers(1) != answers(2)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_samples_through_batchgenerators(pool, workers):
    dataset = inject(pool)
    batches = loader(pool.fold, dataset)
    feed = SingleThreadedAugmenter(batches, None) if workers == 0 else \
        NonDetMultiThreadedAugmenter(batches, None, workers, 2, seeds=None, wait_time=0.002)
    values = set()
    try:
        for k in range(60):
            values.update(next(feed)["data"].unique().tolist())
            if k > 15 and {100.0, 200.0} <= values:
                break
    finally:
        if workers:
            feed._finish()
    assert values <= {0.0, 100.0, 200.0} and {100.0, 200.0} <= values
    usage = read_usage(pool.folder)
    assert usage.patches >= 30 and usage.injected > 0
    assert 1 <= len(list(pool.partial.glob("usage_*.bin"))) <= max(1, workers)


def test_a_sample_added_while_workers_run_is_served(tmp_path, fold):
    pool = Pool(tmp_path / "pool", fold)
    feed = NonDetMultiThreadedAugmenter(loader(fold, inject(pool, full=1)), None, 1, 1, seeds=None,
                                        wait_time=0.002)
    try:
        assert 100 not in next(feed)["data"]
        pool.add(*sample("scar", 1))
        assert any(100 in next(feed)["data"] for _ in range(60))
    finally:
        feed._finish()
