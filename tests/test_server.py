"""Laws of the server: the training's process answers what the drafting one asks, a network pass
after an iteration and within the budget, with the very drafts and label maps that it would have
made at once; and a device without memory costs samples, never the training."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import numpy as np
import psutil
import pytest
import torch
from tiny_fold import write_tiny_fold
from tiny_inpaint import tiny_config, tiny_inpainter, tiny_slices
from tiny_nnunet import write_tiny_model
from waiting import PATIENCE, until

from nnunet_lgesynth.config import InjectionConfig, QCConfig, UserError
from nnunet_lgesynth.judge.segmenter import Segmenter
from nnunet_lgesynth.pool import lanes
from nnunet_lgesynth.pool.background import Order
from nnunet_lgesynth.pool.engine import Engine
from nnunet_lgesynth.pool.lanes import DRAFTS, Lane
from nnunet_lgesynth.pool.server import LANES, MOST_CREDIT, Server
from nnunet_lgesynth.pool.store import read_manifest

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return tiny_slices(write_tiny_fold(tmp_path_factory.mktemp("fold")), tiny_config())


@pytest.fixture(scope="module")
def inpainter(slices):
    return tiny_inpainter(slices)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Segmenter.load_fold(write_tiny_model(tmp_path_factory.mktemp("judge")), "cpu")


@pytest.fixture
def server(inpainter, judge):
    return Server(inpainter, judge, 0.03, [].append)


@pytest.fixture
def said(server):
    server.log = (found := []).append
    return found


@pytest.fixture
def training():
    """Whether it lives, as the process sees it."""
    return [True]


@pytest.fixture
def askers(training):
    with ThreadPoolExecutor(LANES) as threads:
        yield threads
        training[0] = False            # who waits for an answer after a failed test is let go


@pytest.fixture
def remote(server, training):
    """Generator and judge as the process has them."""
    return server.remote.connect(lambda: training[0])


def serve(server, asked, steps=10 ** 6) -> int:
    """Take passes on until everything `asked` is answered; returns their number."""
    deadline, passes = monotonic() + PATIENCE, 0
    while not all(one.done() for one in asked) and passes < steps:
        assert monotonic() < deadline
        if server.step():
            passes += 1
        else:
            sleep(0.001)
    return passes


def ask(server, remote, askers, conditions, seeds):
    """Two lesions at once, as two threads of the process would."""
    generator, _ = remote
    half = len(conditions) // 2
    asked = [askers.submit(generator.drafts, conditions[part], seeds[part])
             for part in (slice(0, half), slice(half, None))]
    while len(server._pending[DRAFTS]) < 2:
        server.hear()
        sleep(0.001)
    return asked


def test_drafts_and_maps_are_those_of_the_networks_themselves(server, remote, askers, inpainter,
                                                             judge, slices):
    conditions, seeds = [item.condition for item in slices.asked[:4]], [5, 6, 7, 8]
    state = torch.get_rng_state()
    asked = ask(server, remote, askers, conditions, seeds)
    assert serve(server, asked) == 2 * 2 * slices.config.sampler_steps // 2 + 1   # one batch of 4
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)
    served = [draft for one in asked for draft in one.result()]
    assert np.array_equal(served, inpainter.drafts(conditions, seeds))
    images = torch.from_numpy(slices.asked[0].subject.case.image.swapaxes(0, 1).copy())
    maps = askers.submit(remote[1].predict, images, (20.0, 25.0))
    assert serve(server, [maps]) == 2                       # of 5, at most 4 at once
    assert torch.equal(maps.result(), judge.predict(images, (20.0, 25.0)))
    assert server.remote.hash == inpainter.hash and remote[1].hash == judge.hash
    assert server.bytes > 1000


def test_a_training_takes_a_pass_on_only_where_the_budget_allows(server, remote, askers, slices):
    asked = ask(server, remote, askers, [item.condition for item in slices.asked[:4]], [1, 2, 3, 4])
    now = [0.0]
    server.budget._clock, server.budget._last = (lambda: now[0]), 0.0
    assert not server.tend() and server.seconds == 0
    now[0] = 1e-6
    assert server.tend() and server.seconds > 1e-6 * server.share     # a debt now
    assert not server.tend()
    now[0] += 1e9                                              # a long validation
    assert server.budget.left == pytest.approx(MOST_CREDIT)
    assert server.tend()
    serve(server, asked)


class Short:
    """Networks on a device that holds so many images at once."""

    def __init__(self, networks, room: int, monkeypatch):
        self.room, self.sizes, velocity = room, [], networks.velocity

        def limited(latents, *rest):
            self.sizes.append(len(latents))
            if len(latents) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return velocity(latents, *rest)
        monkeypatch.setattr(networks, "velocity", limited)


def test_without_memory_batches_are_halved_and_nothing_is_lost(server, said, remote, askers,
                                                               inpainter, slices, monkeypatch):
    conditions = [item.condition for item in slices.asked[:4]]
    short = Short(inpainter.networks, 2, monkeypatch)          # one is drawn twice, see guidance
    asked = ask(server, remote, askers, conditions, [1, 2, 3, 4])
    serve(server, asked)
    assert server.batch == 1 and short.sizes[:3] == [8, 4, 2] and set(short.sizes[3:]) == {2}
    assert ["batches of 2" in said[0], "batches of 1" in said[1], len(said)] == [True, True, 2]
    server.begin_epoch()
    assert server.batch == 2
    again = ask(server, remote, askers, conditions, [1, 2, 3, 4])
    serve(server, again)
    assert server.batch == 1 and len(said) == 2                # it was told
    served = [draft for one in asked for draft in one.result()]
    monkeypatch.undo()
    np.testing.assert_allclose(served, inpainter.drafts(conditions, [1, 2, 3, 4]), atol=1e-4)


def test_without_any_memory_synthesis_pauses_until_the_next_epoch(server, said, remote, askers,
                                                                 inpainter, slices, monkeypatch):
    conditions = [item.condition for item in slices.asked[:2]]
    short = Short(inpainter.networks, 0, monkeypatch)
    asked = ask(server, remote, askers, conditions, [1, 2])
    assert serve(server, asked, steps=3) == 3 and server.paused and "pauses" in said[-1]
    assert not server.step() and len(said) == 3
    short.room = 8                                             # another program has ended
    assert not server.step()
    server.begin_epoch()
    serve(server, asked)
    assert all(len(one.result()) == 1 for one in asked) and len(said) == 3


def test_what_an_ended_process_asked_is_forgotten(server, remote, askers, training, slices):
    conditions = [item.condition for item in slices.asked[:2]]
    lost = [askers.submit(remote[0].drafts, conditions, [1, 2]) for _ in range(2)]
    while not server.step():
        sleep(0.001)
    training[0] = False
    for one in lost:
        with pytest.raises(EOFError):
            one.result(PATIENCE)
    server.clear()
    assert not server.step()
    training[0] = True
    asked = [askers.submit(remote[0].drafts, conditions, [1, 2])]
    serve(server, asked)
    assert len(asked[0].result()) == 2


def test_a_request_that_is_too_large_goes_in_parts(server, askers, training, inpainter, slices,
                                                 monkeypatch):
    conditions = [item.condition for item in slices.asked[:5]]
    size = 2 * conditions[0].source.nbytes                     # of one, with its masks
    monkeypatch.setattr(server, "lanes", (Lane(SPAWN, 2 * size),))
    object.__setattr__(server.remote, "lanes", server.lanes)
    generator, judge = server.remote.connect(lambda: training[0])
    asked = [askers.submit(generator.drafts, conditions, range(5))]
    serve(server, asked)
    assert np.array_equal(asked[0].result(), inpainter.drafts(conditions, range(5)))
    with pytest.raises(UserError, match=r"A slice takes \d+ bytes"):
        judge.predict(torch.zeros(1, 1, 512, 512), (1.0, 1.0))
    assert lanes.CAPACITY > 16 * size


def test_a_process_fills_the_pool_through_the_training(server, fold, tmp_path, log):
    """All of it; it is killed in the middle of its requests."""
    easy = QCConfig(max_new_outside=10 ** 9, max_healthy_pixels=10 ** 9, max_level_change=1e9)
    order = Order(fold, None, "cpu", InjectionConfig(budget=1.0, pool_cases=8, seed=1), easy,
                  tmp_path / "pool", 0, 1, os.getpid())
    engine = Engine(order, server.remote.hash, 2, log.append, 0, server)
    try:
        until(lambda: read_manifest(order.pool) and engine.seconds, engine.tend)
        psutil.Process(engine._process.pid).kill()
        until(lambda: engine._process is None, engine.tend)
        row = engine.epoch_row()
    finally:
        engine.end()
    assert row["seconds_synthesis"] > 0 < row["seconds_process"]
    records = read_manifest(order.pool)
    assert {r["judge"] for r in records} == {server.judge.hash}
    assert engine.server is None
    assert [("has ended" in text) for text in log] == [False, True]


def test_a_warm_up_without_memory_is_not_waited_for(server, fold, tmp_path, log, monkeypatch):
    monkeypatch.setattr(server, "paused", True)
    injection = InjectionConfig(budget=1.0, pool_cases=8, warm_up=2)
    order = Order(fold, None, "cpu", injection, QCConfig(), tmp_path / "pool", 0, 1, os.getpid())
    begun = monotonic()
    engine = Engine(order, server.remote.hash, 2, log.append, 0, server)
    engine.end()
    assert monotonic() - begun < PATIENCE
