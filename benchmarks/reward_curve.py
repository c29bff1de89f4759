"""Pass rates by both judges over the course of reward fine-tuning, on a fold's fixed test set.

    python -m benchmarks.reward_curve -d 116 -f 4 -device cpu --preset roi-cpu --judges JUDGES
        --start FITTED -o reward_curve_fold4.json

A reward that is hacked shows as the own judge's rate rising while the independent one's does not.
The fit goes on from `--start`, as that of `lgesynth fit` does, in a folder of its own beside the
judges; its reward stage runs twice as long as the preset's, and every `--every` steps the weights
that it would leave are measured. An interrupted run goes on.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from benchmarks import exit_code, result_file, testset
from benchmarks.generator import Bench
from benchmarks.judges import load_judges
from benchmarks.tables import whole
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.generators.fitted import is_fitted
from nnunet_lgesynth.generators.inpaint.sample import Inpainter
from nnunet_lgesynth.generators.inpaint.train import fit, leave
from nnunet_lgesynth.pool.generator import usable_device
from nnunet_lgesynth.presets import PRESETS


def main() -> None:
    parser = testset.fold_parser(__doc__)
    parser.add_argument("--preset", default="roi-cpu", choices=sorted(PRESETS))
    parser.add_argument("--judges", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="as of lgesynth fit")
    parser.add_argument("--every", type=int, default=50, help="reward steps between points")
    parser.add_argument("-n", type=testset.count, help="only the first so many requests")
    parser.add_argument("-o", type=result_file, required=True, help="JSON file of the rows")
    arguments = parser.parse_args()
    fold = testset.open_fold(arguments)
    device, root = usable_device(arguments.device), arguments.judges.resolve()
    config = PRESETS[arguments.preset]
    config = dataclasses.replace(config, save_every=arguments.every,
                                 reward_steps=2 * config.reward_steps)
    judges = load_judges(root, fold, device)
    folder = root / "reward_curve" / f"{config.preset}_fold_{arguments.f}"
    _fit(fold, config, folder, device, judges["own"], arguments.start)
    about = {**testset.about("reward_curve", fold, arguments.device), "seeds": [config.seed]}
    requests = testset.read(testset.request_file(fold))[:arguments.n]
    bench = Bench(fold, testset.patients(fold), requests, judges, about, looks=False)
    rows = bench.real()
    for step, generator in snapshots(folder, device):
        rows += [{**row, "split": f"{row['split']}, reward step {step}"}
                 for row in bench.measure(generator, config.preset, config.preset)]
        write_json(arguments.o, rows)
        print(step, {r["metric"]: r["value"] for r in whole(rows) if f"step {step}" in r["split"]
                     and r["metric"].startswith("qc_pass")})


def _fit(fold: Fold, config, folder: Path, device, reward, start: Path | None) -> None:
    """Fit and keep the state of every save of the reward stage."""
    kept = folder.with_name(folder.name + "_states")
    kept.mkdir(parents=True, exist_ok=True)

    def keep(stage: str, step: int, loss: float) -> None:
        if stage == "reward" and step > 1 and step % config.save_every == 1:
            shutil.copy(folder / "state" / "checkpoint.pt", kept / f"{step - 1:05d}.pt")

    fit(fold, config, folder, device, reward, resume=(folder / "state").is_dir()
        or is_fitted(folder), start=start, progress=keep)


def snapshots(folder: Path, device):
    """(reward step, generator) of every kept state, the fitted one last."""
    generator = Inpainter.load(folder, device)
    final = {k: v.clone() for k, v in generator.networks.controlnet.state_dict().items()}
    for path in sorted(folder.with_name(folder.name + "_states").glob("*.pt")):
        state = torch.load(path, map_location="cpu", weights_only=True)
        controlnet = generator.networks.controlnet
        average = EMAModel(controlnet.parameters())
        average.load_state_dict(state["average"])
        average.to(device)
        leave(controlnet, average, state["origin"], generator.config.reward_blend)
        yield int(path.stem), generator
    generator.networks.controlnet.load_state_dict(final)
    yield generator.config.reward_steps, generator


if __name__ == "__main__":
    sys.exit(exit_code("reward_curve", main))
