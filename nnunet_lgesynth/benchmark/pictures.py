"""Pictures for the report: samples of the pools, and the patients that gained and lost most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_lgesynth.benchmark.collect import read_labels
from nnunet_lgesynth.benchmark.records import Training
from nnunet_lgesynth.benchmark.variants import file_name, is_tested, reference_of
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold, nnunet_path
from nnunet_lgesynth.dataset.roles import Roles
from nnunet_lgesynth.files import replacing
from nnunet_lgesynth.pool.store import read_manifest

__all__ = ["case_pictures", "pool_pictures"]

SAMPLES = 6            # columns: one accepted slice each
EXTREMES = 2           # patients that gained most, and as many that lost most
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
        path = out / f"samples_{file_name(training.arm)}.png"
        if path not in pictures.values() and _sheet(training, folds[training.fold], path):
            pictures[caption] = path
    return pictures


def case_pictures(trainings: Sequence[Training], folds: dict[int, Fold], patients: Sequence[dict],
                  out: Path) -> dict[str, Path]:
    """One sheet an arm: caption -> PNG file.

    Rows: the patients whose Dice (mean over seeds, `Comparison.patients`) differs most from the
    reference's, best first; columns: truth, reference, arm, of the first training of each that is
    still on disk, in the slice with most scar. Patients without image or prediction are left out.
    """
    dice = {(p["arm"], p["case"]): p["dice"] for p in patients}
    pictures: dict[str, Path] = {}
    for arm in dict.fromkeys(t.arm for t in trainings if is_tested(t.arm)):
        reference = reference_of(arm)
        gains = sorted(((dice[arm, case] - dice[reference, case], case)
                        for name, case in dice if name == arm and (reference, case) in dice),
                       reverse=True)
        rows = []
        for gain, case in gains if len(gains) <= 2 * EXTREMES else (*gains[:EXTREMES],
                                                                   *gains[-EXTREMES:]):
            number, fold = next(((k, f) for k, f in folds.items() if case in f.val), (None, None))
            found = fold and _labelled(case, fold, [
                next((t for t in trainings if (t.arm, t.fold) == (a, number)
                      and t.predictions.is_dir()), None) for a in (reference, arm)])
            if found is not None:
                rows.append((f"{case}, Dice {gain:+.2f}", *found, fold.info.roles))
        if rows:
            path = out / f"cases_{file_name(arm)}.png"
            _save_cases(path, rows, (reference, arm))
            pictures[f"{arm}: patients that gained and lost most against {reference}; "
                     "scar outlined, no-reflow dashed"] = path
    return pictures


def _labelled(case: str, fold: Fold, trainings: Sequence[Training | None]):
    """(image (Y, X), [truth, reference, arm] (Y, X) labels) of the slice with most scar."""
    ending, roles = fold.dataset_json["file_ending"], fold.info.roles
    try:
        image = read_labels(nnunet_path("nnUNet_raw") / fold.dataset / "imagesTr"
                            / f"{case}_{roles.lge_channel:04d}{ending}")[0]
        labels = [read_labels(folder / f"{case}{ending}")[0] for folder in (
            fold.folder.parent / "gt_segmentations", *(t.predictions for t in trainings))]
    except (UserError, AttributeError):        # gone; the numbers are recorded, pictures are extra
        return None
    scar = [np.isin(found, roles.scars).sum(axis=(1, 2)) for found in labels]
    z = int(np.argmax(scar[0] if scar[0].any() else sum(scar)))
    return image[z], [found[z] for found in labels]


def _save_cases(path: Path, rows: Sequence[tuple[str, np.ndarray, list, Roles]],
                arms: tuple[str, str]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 2.2 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for line, (name, image, labels, roles) in zip(axes, rows):
        window = _window(labels[0], roles)
        low, high = np.percentile(image[window], (1, 99.5))
        for axis, label, title in zip(line, labels, (f"{name}: truth", *arms)):
            axis.imshow(image[window], cmap="gray", vmin=low, vmax=high)
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
            _outline(axis, label[window], roles)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)


def _window(label: np.ndarray, roles: Roles) -> tuple[slice, slice]:
    """The heart in a slice and a margin; all of it where there is no heart."""
    rows, columns = np.nonzero(np.isin(label, (roles.cavity, *roles.wall)))
    if not len(rows):
        return slice(None), slice(None)
    return tuple(slice(max(0, i.min() - MARGIN), i.max() + MARGIN + 1) for i in (rows, columns))


def _outline(axis, label: np.ndarray, roles: Roles) -> None:
    for value, style in ((roles.scar, "solid"), (roles.no_reflow, "dashed")):
        if value is not None and (label == value).any():
            axis.contour(label == value, levels=[0.5], colors="#ff9d2e", linewidths=1,
                         linestyles=style)


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
    window = _window(label, roles)
    low, high = np.percentile(source[window], (1, 99.5))
    for axis, shown in zip(axes, (source, sample, sample)):
        axis.imshow(shown[window], cmap="gray", vmin=low, vmax=high)
        axis.set_axis_off()
    _outline(axes[2], label[window], roles)
