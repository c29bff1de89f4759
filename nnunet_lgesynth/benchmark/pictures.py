"""Sample pictures: what a pool's accepted cases look like beside the slices they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_lgesynth.benchmark.collect import Training
from nnunet_lgesynth.config import replacing
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.pool.store import read_manifest

__all__ = ["pool_pictures"]

SAMPLES = 6            # columns: one accepted slice each
MARGIN = 12            # pixels around the heart


def pool_pictures(trainings: Sequence[Training], folds: dict[int, Fold],
                  out: Path) -> dict[str, Path]:
    """One sheet an arm (its first training with a scarred pool): caption -> PNG file.

    Rows: the source slice, the sample, the sample with its label's outline. Samples are taken
    evenly over the pool, not chosen.
    """
    pictures: dict[str, Path] = {}
    for training in trainings:
        caption = (f"{training.arm}, fold {training.fold}, seed {training.seed}: source, sample, "
                   "sample with scar outlined (no-reflow dashed); drawn evenly from the pool")
        path = out / f"samples_{training.arm}.png"
        if path not in pictures.values() and _sheet(training, folds[training.fold], path):
            pictures[caption] = path
    return pictures


def _sheet(training: Training, fold: Fold, path: Path) -> bool:
    pool = training.folder / "lgesynth_pool"
    records = [r for r in read_manifest(pool) if r["kind"] == "scar" and r["slices"]
               and (pool / "cases" / f"{r['identifier']}.pkl").is_file()]
    if not records:
        return False
    from matplotlib.figure import Figure

    chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, SAMPLES).astype(int))]
    figure = Figure(figsize=(1.7 * len(chosen), 5.3), layout="constrained")
    axes = figure.subplots(3, len(chosen), squeeze=False)
    cases = fold.cases_folder(pool / "cases")
    for column, record in zip(axes.T, chosen):
        _column(column, cases, record, fold)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)
    return True


def _column(axes, cases, record: dict, fold: Fold) -> None:
    roles, z = fold.info.roles, record["slices"][len(record["slices"]) // 2]
    image, labels, _, _ = cases.load_case(record["identifier"])
    sample = np.asarray(image[roles.lge_channel, z])
    label = np.asarray(labels[0, z])
    source = fold.read(record["source"]).image[roles.lge_channel, z]
    rows, columns = np.nonzero(np.isin(label, (roles.cavity, *roles.wall)))
    window = tuple(slice(max(0, i.min() - MARGIN), i.max() + MARGIN + 1) for i in (rows, columns))
    low, high = np.percentile(source[window], (1, 99.5))
    for axis, shown in zip(axes, (source, sample, sample)):
        axis.imshow(shown[window], cmap="gray", vmin=low, vmax=high)
        axis.set_axis_off()
    for value, style in ((roles.scar, "solid"), (roles.no_reflow, "dashed")):
        if value is not None and (label[window] == value).any():
            axes[2].contour(label[window] == value, levels=[0.5], colors="#ff9d2e",
                            linewidths=1, linestyles=style)
