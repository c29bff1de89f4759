"""Laws of the export: plain nnU-Net, without the plugin, computes the same logits from it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_training import enter_nnunet, write_tiny_training

from nnunet_lgesynth.cli import main
from nnunet_lgesynth.discovery import VARIABLE, trainers_folder
from nnunet_lgesynth.export import PROVENANCE
from nnunet_lgesynth.judge.checkpoint import hash_weights, read_checkpoint

PREDICT = """
import sys
if "{blocked}":
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("nnunet_lgesynth", "diffusers"):
                raise ImportError(name)
    sys.meta_path.insert(0, Blocked())
import numpy, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,), "checkpoint_final.pth")
image = torch.from_numpy(numpy.random.default_rng(0).normal(size=(1, 3, 40, 40)).astype("float32"))
logits = predictor.predict_logits_from_preprocessed_data(image)
numpy.save(sys.argv[2], logits.numpy())
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of one epoch with painted scars; nnU-Net's variables point to it."""
    folder = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        enter_nnunet(patch, folder)
        patch.setenv(VARIABLE, str(trainers_folder()))
        patch.setenv("LGESYNTH_EPOCHS", "2")
        patch.setenv("LGESYNTH_ITERATIONS", "1")
        patch.setenv("LGESYNTH_WARM_UP", "1")
        write_tiny_training(folder)
        assert main(["train", "116", "2d", "0", "-tr", "nnUNetTrainerLGEPaint", "-device",
                     "cpu"]) == 0
        yield next((folder / "nnUNet_results").glob("*/nnUNetTrainerLGEPaint__*"))


def logits(model, out, blocked: bool) -> np.ndarray:
    environment = {**os.environ, VARIABLE: "" if blocked else str(trainers_folder())}
    subprocess.run([sys.executable, "-c", PREDICT.format(blocked="x" * blocked), str(model),
                    str(out)], check=True, env=environment, capture_output=True)
    return np.load(out)


def test_plain_nnunet_computes_the_same_logits_without_the_plugin(trained, tmp_path, capsys):
    out = tmp_path / "model"
    told = ["export", "-d", "116", "-f", "0", "-tr", "nnUNetTrainerLGEPaint", "-o", str(out)]
    assert main(told) == 0 and f"-m {out} -f 0" in capsys.readouterr().out
    expected = logits(trained, tmp_path / "a.npy", blocked=False)
    assert np.ptp(expected) > 0
    assert np.array_equal(logits(out, tmp_path / "b.npy", blocked=True), expected)
    assert {p.name for p in out.iterdir()} == {"dataset.json", "plans.json", "fold_0", PROVENANCE}
    fold = json.loads((out / PROVENANCE).read_text())["folds"]["0"]
    state = read_checkpoint(trained / "fold_0" / "checkpoint_final.pth", trained / "fold_0")
    assert fold["weights"] == hash_weights(state["network_weights"]) and fold["epochs"] == 2
    assert fold["pool_samples"] > 0 and fold["generators"][0].startswith("paint")
    assert fold["last_epoch"]["epoch"] == 1
    slim = torch.load(out / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert slim["trainer_name"] == "nnUNetTrainer" and "optimizer_state" not in slim
    assert main(told) == 2 and "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("change, told", [
    (["-f", "0", "3"], "fold_3"), (["-f", "0", "-tr", "nnUNetTrainer"], "not a trainer of this"),
    (["-f", "0", "-chk", "checkpoint_best.p"], "checkpoint_best.p"),
    (["-f", "0", "-p", "other"], "is missing")])
def test_what_cannot_be_exported_leaves_nothing(trained, tmp_path, capsys, change, told):
    out = tmp_path / "model"
    assert main(["export", "-d", "116", "-tr", "nnUNetTrainerLGEPaint", "-o", str(out),
                 *change]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not list(tmp_path.iterdir())
