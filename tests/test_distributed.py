"""Two ranks train together, on gloo and the CPU since nnU-Net's own DDP asks for CUDA: each fills
and reads a pool of its own, with its own seeds, and writes its own rows; nothing in between is
waited for."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from tiny_training import (
    CPU,
    enter_nnunet,
    output,
    shorten_trainings,
    trainer_of,
    write_tiny_training,
)
from torch.nn.parallel import DistributedDataParallel

from nnunet_lgesynth.config import InjectionConfig
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.attach import pool_folder
from nnunet_lgesynth.pool.store import read_manifest
from nnunet_lgesynth.trainer import LGESynthTrainer

WORLD, STEPS, PATIENCE = 2, 6, 180
INJECTION = InjectionConfig(probability=1.0, pool_cases=4, refresh_cases=0, warm_up=4, budget=1.0,
                            seed=3, ratio_cap=1e9)


def train(rank: int, folder: str, fold: Fold) -> None:
    """One rank of a real training; of nnU-Net, only what names the GPU is replaced."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank,
                            world_size=WORLD, timeout=timedelta(seconds=PATIENCE))
    with pytest.MonkeyPatch.context() as patch:
        enter_nnunet(patch, folder)
        shorten_trainings(patch)
        patch.setenv("LGESYNTH_ITERATIONS", str(STEPS))
        patch.setattr(LGESynthTrainer, "injection", INJECTION)
        patch.setattr(stock, "DDP", lambda network, device_ids: DistributedDataParallel(network))
        trainer, said = trainer_of(fold, "nnUNetTrainerLGEPaint"), []
        trainer.device, trainer.grad_scaler = CPU, None
        patch.setattr(trainer, "print_to_log_file", lambda *told, **_: said.append(str(told[0])))
        trainer.run_training()
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps({
        "said": said, "output": str(output(trainer)), "batch": trainer.batch_size,
        "weights": [w.tolist() for w in trainer.network.module.parameters()]}))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_two_ranks_fill_and_read_their_own_share_of_the_pool(tmp_path, monkeypatch):
    enter_nnunet(monkeypatch, tmp_path)
    fold = write_tiny_training(tmp_path)
    mp.spawn(train, (str(tmp_path), fold), nprocs=WORLD)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(WORLD)]
    folder, = {Path(told["output"]) for told in found}
    pools = [pool_folder(folder, rank) for rank in range(WORLD)]
    records = [read_manifest(pool) for pool in pools]
    seeds = [{r["seed"] for r in kept} for kept in records]
    assert not seeds[0] & seeds[1] and all(seeds)
    for pool, kept, told, name in zip(pools, records, found, ("lgesynth", "lgesynth_rank1")):
        assert [r["kind"] for r in kept].count("scar") == 2      # a half of four
        assert {p.stem for p in (pool / "cases").glob("*.pkl")} >= {
            r["identifier"] for r in kept if r["kind"] == "scar"}
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert [r["epoch"] for r in rows] == [0, 1] and told["batch"] == 1
        assert rows[1]["patches"] == STEPS and all(r["pool_scarred_cases"] == 2 for r in rows)
        assert all(r["injected_patches"] > 0 and r["seconds_epoch"] > 0 for r in rows)
        assert rows[0]["drafted"] >= rows[0]["accepted"] > 0
        assert rows[0]["memory_mb"] > 0 < rows[0]["seconds_waited"]
    assert found[0]["weights"] == found[1]["weights"] and torch.tensor(
        found[0]["weights"][0]).isfinite().all()
    assert len(list(folder.glob("*.jsonl"))) == 2 and len(list(folder.glob("*final.pth"))) == 1
    warm = "Waiting until the pool holds 2 scarred cases."
    assert warm in found[0]["said"] and f"rank 1: {warm}" in found[1]["said"]
    assert not any("rank 1" in text for text in found[0]["said"])
    assert sum("LGE synthesis:" in text for text in found[0]["said"]) == 2
