"""Train the two judges of a fold that `benchmarks.generator` compares, on halves of its patients.

    own           a half of the training patients, the dataset's own plans: it rewards and filters
    independent   the other half, a residual encoder: it never met the generator

    python -m benchmarks.judges -d 116 -f 4 -device cpu -o JUDGES
    lgesynth fit -d 116 -c 2d -f 4 --preset roi-cpu --reward JUDGES/own/results/.../fold_4

Scarred and scar-free patients are halved apart. Neither judge sees the fold's validation patients,
in whose slices the samples are painted. Each judge gets a view of `nnUNet_preprocessed` of its own
(links, and a split whose training patients are its half). On a CPU the network runs in bfloat16,
as nnU-Net runs in half precision on CUDA. An interrupted training goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks import exit_code, testset
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import make_folder, write_json
from nnunet_lgesynth.pool.generator import usable_device

JUDGES = ("own", "independent")
TRAINER, RESIDUAL_PLANS = "nnUNetTrainerLGEJudge", "nnUNetResEncJudgePlans"
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6)       # nnU-Net's ResEncM, a stage each


def judge_folder(out: Path, name: str, fold: Fold) -> Path:
    """Where the judge of this name is or will be."""
    plans = RESIDUAL_PLANS if name == "independent" else fold.plans_name
    return (out / name / "results" / fold.dataset / f"{TRAINER}__{plans}__{fold.configuration}"
            / f"fold_{fold.fold}")


def load_judges(out: Path, fold: Fold, device) -> dict:
    """Both trained judges, frozen, on `device`; `UserError` where one is not trained, or may have
    seen validation patients of the fold."""
    from nnunet_lgesynth.judge.segmenter import Segmenter  # nnU-Net reads its folders at import

    judges = {name: Segmenter.load_fold(judge_folder(out.resolve(), name, fold), device)
              for name in JUDGES}
    for judge in judges.values():
        judge.check_fold(fold)
    return judges


def halves(fold: Fold) -> dict[str, list[str]]:
    """The training patients of each judge: every second scarred one and every second scar-free."""
    scarred = {i: bool(np.isin(fold.read(i).labels, fold.info.roles.scars).any())
               for i in fold.train}
    ordered = [i for kind in (True, False) for i in np.random.default_rng(0).permutation(
        sorted(i for i in fold.train if scarred[i] is kind)).tolist()]
    return {name: sorted(ordered[k::2]) for k, name in enumerate(JUDGES)}


def main() -> int | None:
    parser = testset.fold_parser(__doc__)
    parser.add_argument("-o", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--train", choices=JUDGES, help="this one only")
    arguments = parser.parse_args()
    if os.environ.get("LGESYNTH_JUDGE_VIEW"):
        return _train(arguments)
    usable_device(arguments.device)
    fold = testset.open_fold(arguments)
    out, patients = arguments.o.resolve(), halves(fold)
    for name in [arguments.train] if arguments.train else JUDGES:
        folder = judge_folder(out, name, fold)
        if (folder / "validation" / "summary.json").is_file():
            continue
        _view(fold, out / name / "preprocessed", patients[name])
        env = {**os.environ, "nnUNet_preprocessed": str(out / name / "preprocessed"),
               "nnUNet_results": str(out / name / "results"), "LGESYNTH_JUDGE_VIEW": name,
               "LGESYNTH_EPOCHS": str(arguments.epochs), "LGESYNTH_SEED": "0",
               "LGESYNTH_ITERATIONS": str(arguments.iterations)}
        code = subprocess.run([sys.executable, "-m", "benchmarks.judges", *sys.argv[1:]], env=env,
                              check=False).returncode
        if code:
            return code                 # the child has said why
    return None


def _view(fold: Fold, preprocessed: Path, patients: list[str]) -> None:
    """The fold's preprocessed dataset with fewer training patients, and the residual plans."""
    source, view = fold.folder.parent, make_folder(preprocessed / fold.dataset)
    for path in source.iterdir():
        if path.name != "splits_final.json" and not (view / path.name).exists():
            (view / path.name).symlink_to(path)
    splits = json.loads((source / "splits_final.json").read_text())
    splits[fold.fold] = {"train": patients, "val": list(fold.val)}
    write_json(view / "splits_final.json", splits)
    write_json(view / f"{RESIDUAL_PLANS}.json", residual_plans(fold))


def residual_plans(fold: Fold) -> dict:
    """The plans with a residual encoder of half the width in place of the plain U-Net."""
    plans = json.loads(json.dumps({**fold.plans, "plans_name": RESIDUAL_PLANS}))
    architecture = plans["configurations"][fold.configuration]["architecture"]
    settings = architecture["arch_kwargs"]
    stages = settings["n_stages"]
    settings.pop("n_conv_per_stage", None)
    settings |= {"features_per_stage": [f // 2 for f in settings["features_per_stage"]],
                 "n_blocks_per_stage": list(RESIDUAL_BLOCKS[:stages]),
                 "n_conv_per_stage_decoder": [1] * (stages - 1)}
    architecture["network_class_name"] = \
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    return plans


def _train(arguments) -> None:
    """Train and validate the judge whose view the environment names, as nnUNetv2_train does."""
    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint

    from nnunet_lgesynth.trainer import LGESynthTrainer

    half = torch.autocast("cpu", torch.bfloat16, enabled=arguments.device == "cpu")

    class nnUNetTrainerLGEJudge(LGESynthTrainer):
        def initialize(self):
            super().initialize()
            forward = self.network.forward

            def in_half(*inputs):
                with half:
                    outputs = forward(*inputs)
                return [o.float() for o in outputs] if isinstance(outputs, (list, tuple)) \
                    else outputs.float()
            self.network.forward = in_half

    name = os.environ["LGESYNTH_JUDGE_VIEW"]
    plans = RESIDUAL_PLANS if name == "independent" else arguments.p
    fold = Fold.open(arguments.d, arguments.c, arguments.f, plans)
    folder = judge_folder(arguments.o.resolve(), name, fold)
    done = (folder / "checkpoint_final.pth").is_file()
    begun = (folder / "checkpoint_latest.pth").is_file()
    trainer = nnUNetTrainerLGEJudge({**fold.plans, "continue_training": begun}, arguments.c,
                                    arguments.f, fold.dataset_json, torch.device(arguments.device))
    maybe_load_checkpoint(trainer, begun and not done, done, None)
    if not done:
        trainer.run_training()
    trainer.perform_actual_validation()


if __name__ == "__main__":
    sys.exit(exit_code("judges", main))
