"""Laws of the measurement of what a network makes of no-reflow."""

import dataclasses

import pytest
import torch
from tiny_fold import write_tiny_fold
from tiny_nnunet import write_tiny_model

from benchmarks.learnt import _numbers, measure
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.pool.attach import POOL_FOLDER


class Knowing:
    """Finds every label with probability 0.6, but scar in place of no-reflow where `blind`."""

    labels = (0, 1, 2, 3, 4)

    def __init__(self, case, blind: bool = False):
        truth = torch.from_numpy(case.labels[0].astype(int))
        self.seen = torch.where(truth == 4, 3, truth) if blind else truth

    def probabilities(self, images):
        assert images.shape[:2] == (len(self.seen), 1)
        return torch.nn.functional.one_hot(self.seen, 5).movedim(-1, 1) * 0.5 + 0.1


def test_what_a_network_says_of_true_no_reflow(tmp_path):
    fold = write_tiny_fold(tmp_path)
    case = next(c for c in map(fold.read, fold.train) if (c.labels == 4).any())
    assert _numbers(Knowing(case), [case], fold) == {
        "probability_no_reflow": 0.6, "probability_scar": 0.1, "no_reflow_dice": 1.0, "cases": 1}
    assert _numbers(Knowing(case, blind=True), [case], fold) == {
        "probability_no_reflow": 0.1, "probability_scar": 0.6, "no_reflow_dice": 0.0, "cases": 1}


def test_training_cases_and_pool_are_measured_where_they_hold_no_reflow(tmp_path):
    fold = write_tiny_fold(tmp_path)
    training = write_tiny_model(tmp_path)
    with pytest.raises(UserError, match="holds no sample with scar"):
        list(measure(fold, [training], training, 9, "cpu"))
    cases = training / POOL_FOLDER / "cases"
    cases.mkdir(parents=True)
    known = [c for c in map(fold.read, fold.train) if (c.labels == 4).any()]
    for k in range(3):
        fold.write(dataclasses.replace(known[0], identifier=f"scar_{k:06d}"), cases)
    found = {where: numbers for _, where, numbers in measure(fold, [training], training, 2, "cpu")}
    assert found["training"]["cases"] == len(known) and found["pool"]["cases"] == 2
    assert 0 < found["pool"]["probability_no_reflow"] < 1
