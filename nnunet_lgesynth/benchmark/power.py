"""What a test set can show at all, from its truth and the number of arms: no result is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_lgesynth.benchmark.collect import read_labels
from nnunet_lgesynth.benchmark.statistics import POWER, detectable
from nnunet_lgesynth.benchmark.verdict import PRIMARY, tests_of
from nnunet_lgesynth.dataset.roles import Roles

__all__ = ["smallest_effects"]


def smallest_effects(truths: Sequence[tuple[str, Path]], roles: Roles, arms: Sequence[str]) -> str:
    """One sentence: the patients of these (patient, label file), and the smallest mean differences
    that so many can show, in standard deviations of the patients' differences."""
    labels = [(patient, read_labels(path)[0]) for patient, path in truths]
    scarred = len({patient for patient, found in labels if np.isin(found, roles.scars).any()})
    holding = 0 if roles.no_reflow is None else len(
        {patient for patient, found in labels if (found == roles.no_reflow).any()})
    counted = f"{len(dict(labels))} patients, {scarred} with scar, {holding} with no-reflow; "
    defined = {metric: n for metric, n in (("dice_tp", scarred), ("no_reflow_dice", holding)) if n}
    tests = tests_of(arms, len(defined) + 1)                  # one is slice AUROC's
    if not tests:
        return counted + "no arm is compared with another."
    if not defined:
        return counted + "nothing can be shown in patients without scar."
    sizes = {PRIMARY[metric]: detectable(n, tests) for metric, n in defined.items()}
    shown = [f"{size:.2f} in {name}" for name, size in sizes.items() if size is not None]
    few = [name for name, size in sizes.items() if size is None]
    if not shown:
        return counted + f"too few to show any difference in {' or '.join(few)}."
    return (counted + f"of the {tests} tests of primary metrics each finds, with {POWER:.0%} power "
            f"after correction, a mean difference of at least {' and '.join(shown)} (in standard "
            "deviations of the patients' differences)"
            + (f"; too few to show any in {few[0]}" if few else "")
            + f". For {PRIMARY['slice_auroc']} no such size is known.")
