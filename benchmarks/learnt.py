"""What trained networks make of no-reflow: in their training patients, in validation, in a pool.

In each case with no-reflow, the mean probability of no-reflow and of infarct within the true
no-reflow, and the Dice of no-reflow. A network that has learnt its training patients by heart finds
it there alone. `--pool` names the training whose pool every network sees.

    python -m benchmarks.learnt -d 116 -f 4 --networks FOLD_FOLDER ... --pool FOLD_FOLDER \\
        -o benchmarks/results/learnt_fold4.json

Needs nnU-Net's environment variables and a preprocessed dataset. A minute a network on one core.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import exit_code, result_file
from benchmarks.testset import about, count, fold_parser, open_fold
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.judge.qc import dice
from nnunet_lgesynth.pool.attach import POOL_FOLDER
from nnunet_lgesynth.pool.generator import usable_device

PER_PASS = 32      # slices


def main() -> None:
    parser = fold_parser(__doc__)
    parser.add_argument("-n", type=count, default=60, help="cases of a pool (default 60)")
    parser.add_argument("--networks", type=Path, nargs="+", required=True, metavar="DIR",
                        help="fold folders of trainings")
    parser.add_argument("--pool", type=Path, required=True, metavar="DIR",
                        help="fold folder of the training whose pool is shown")
    parser.add_argument("-o", type=result_file, required=True)
    arguments = parser.parse_args()
    fold = open_fold(arguments)
    if fold.info.roles.no_reflow is None:
        raise UserError(f"{fold.dataset} has no label for no-reflow; nothing can be measured.")
    shared = {**about("learnt", fold, arguments.device), "seeds": [0], "preset": None}
    write_json(arguments.o, [
        number_row({**shared, "arm": name, "split": f"{where}, fold {fold.fold}"}, metric, value,
                   n=numbers["cases"])
        for name, where, numbers in measure(fold, arguments.networks, arguments.pool, arguments.n,
                                            usable_device(arguments.device))
        for metric, value in numbers.items() if metric != "cases"])


def measure(fold: Fold, networks: Iterable[Path], pool: Path, n: int, device
            ) -> Iterator[tuple[str, str, dict]]:
    """(network, "training", "validation" or "pool", its numbers), see `_numbers`."""
    from nnunet_lgesynth.judge.segmenter import Segmenter  # nnU-Net reads its folders at import

    places = {"training": (fold, fold.train), "validation": (fold, fold.val)}
    cases = pool / POOL_FOLDER / "cases"
    names = sorted(path.stem for path in cases.glob("scar_*.pkl"))[-n:]     # the newest
    if not names:
        raise UserError(f"{cases} holds no sample with scar; name a training with a pool.")
    places["pool"] = (dataclasses.replace(fold, folder=cases), names)
    held = {where: [case for name in names
                    if (_truth(case := source.read(name), fold)).any()]
            for where, (source, names) in places.items()}
    for folder in networks:
        network = Segmenter.load_fold(folder, device)
        for where, found in held.items():
            if found:
                yield folder.parent.name.split("__")[0], where, _numbers(network, found, fold)


def _truth(case: Case, fold: Fold) -> np.ndarray:
    return case.labels[0] == fold.info.roles.no_reflow


def _numbers(network, cases: list[Case], fold: Fold) -> dict:
    """Means over the cases; probabilities within the true no-reflow."""
    roles, rows = fold.info.roles, []
    at = {label: network.labels.index(label) for label in (roles.no_reflow, roles.scar)}
    for case in cases:
        slices = torch.from_numpy(case.image).swapaxes(0, 1)               # (Z, C, Y, X)
        found = torch.cat([network.probabilities(part) for part in slices.split(PER_PASS)])
        found, truth = found.cpu().numpy(), _truth(case, fold)
        inside = found.swapaxes(0, 1)[:, truth].mean(axis=1)               # (L,)
        predicted = found.argmax(axis=1) == at[roles.no_reflow]
        rows.append([inside[at[roles.no_reflow]], inside[at[roles.scar]],
                     dice(predicted, truth)])
    means = np.round(np.mean(rows, axis=0), 3)
    return dict(zip(("probability_no_reflow", "probability_scar", "no_reflow_dice"),
                    map(float, means)), cases=len(rows))


if __name__ == "__main__":
    sys.exit(exit_code("learnt", main))
