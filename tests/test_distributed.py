"""Two ranks train together, on gloo since nnU-Net's own DDP asks for CUDA: each fills and reads a
pool of its own, with its own seeds, and nothing in between is waited for."""

import json
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_fold import write_tiny_fold
from torch.nn.parallel import DistributedDataParallel

from nnunet_lgesynth.config import InjectionConfig
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.engine import attach, pool_folder
from nnunet_lgesynth.pool.store import read_manifest

WORLD, STEPS, PATIENCE = 2, 6, 180
INJECTION = InjectionConfig(probability=1.0, pool_cases=4, budget=1.0, seed=3, ratio_cap=1e9)


def train(rank: int, folder: str, fold: Fold) -> None:
    """One rank: steps of a tiny network on batches that its pool answers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank,
                            world_size=WORLD, timeout=timedelta(seconds=PATIENCE))
    output, log = Path(folder) / "fold_0", []
    training = type(fold.cases_folder(fold.folder))(str(fold.folder), list(fold.train))
    engine, dataset = attach("paint", INJECTION, fold.plans, "2d", 0, fold.dataset_json,
                             fold.folder, training, list(fold.val), output, torch.device("cpu"),
                             log.append, rank, WORLD)
    try:
        deadline = monotonic() + PATIENCE
        while engine.counts()["pool_scarred_cases"] < 2:         # each fills its half alone
            assert monotonic() < deadline
            engine.tend()
            sleep(0.05)
        torch.manual_seed(0)
        network = DistributedDataParallel(torch.nn.Conv2d(1, 2, 3, padding=1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        loader = nnUNetDataLoader(dataset, 2, fold.patch_size, fold.patch_size,
                                  PlansManager(fold.plans).get_label_manager(fold.dataset_json))
        for _ in range(STEPS):
            network(torch.as_tensor(next(loader)["data"])).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            engine.tend()
        row = engine.epoch_row()
    finally:
        engine.close()
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps({
        "row": row, "log": log, "weights": network.module.weight.flatten().tolist()}))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_two_ranks_fill_and_read_their_own_share_of_the_pool(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    fold = write_tiny_fold(tmp_path)
    mp.spawn(train, (str(tmp_path), fold), nprocs=WORLD)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(WORLD)]
    pools = [pool_folder(tmp_path / "fold_0", rank) for rank in range(WORLD)]
    records = [read_manifest(pool) for pool in pools]
    seeds = [{r["seed"] for r in kept} for kept in records]
    assert not seeds[0] & seeds[1] and all(seeds)
    for pool, kept, told in zip(pools, records, found):
        assert [r["kind"] for r in kept].count("scar") == 2      # a half of four
        assert {p.stem for p in (pool / "cases").glob("*.pkl")} >= {
            r["identifier"] for r in kept if r["kind"] == "scar"}
        assert told["row"]["patches"] == 2 * STEPS and told["row"]["injected_patches"] > 0
    assert found[0]["weights"] == found[1]["weights"]
    assert [text.startswith("rank 1: ") for text in found[1]["log"]] == [True]
    assert not any("rank" in text for text in found[0]["log"])
