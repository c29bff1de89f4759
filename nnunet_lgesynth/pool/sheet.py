"""Pictures to check by eye: AHA segments over the slices, a sample's sheet, the bull's-eye.

The bull's-eye is the AHA's (Cerqueira et al., Circulation 2002;105:539): base outside, apex in the
middle, anterior wall up, septum at the left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nnunet_lgesynth.anatomy.aha import APEX, LEVELS, NAMES, SEGMENTS, SPANS
from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.anatomy.scar import NO_REFLOW
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case
from nnunet_lgesynth.files import make_folder, replacing
from nnunet_lgesynth.generators.subject import Subject

__all__ = ["bulls_eye", "save_anatomy", "save_sample"]

MARGIN = 12               # pixels around the heart
MOST_SLICES = 12          # in one picture, evenly taken
SCAR_COLOUR, CORE_COLOUR = "#ff9d2e", "#36c9ff"
UP = np.pi / 6            # from the anterior direction, which is up, to the anterior insertion
RINGS = {"basal": (0.75, 0.25), "mid": (0.5, 0.25), "apical": (0.25, 0.25)}   # radius, height


def save_anatomy(path: Path, anatomy: Anatomy, image: np.ndarray, title: str) -> Path:
    """Segments over the slices (image (Z, Y, X)), the zero direction, and the bull's-eye."""
    figure, axes, side = _canvas(anatomy, rows=1, wrap=4)
    window = _window(anatomy)
    for axis, z in zip(axes[0], _shown(anatomy)):
        _slice(axis, image[z][window], f"slice {z + 1}, {_level(anatomy, z)}")
        overlay = np.zeros((*image[z].shape, 4))
        for segment in np.unique(anatomy.segment[z])[1:]:
            overlay[anatomy.segment[z] == segment] = (*_colour(int(segment)), 0.4)
        axis.imshow(overlay[window])
        _arrow(axis, anatomy, z, window)
    bulls_eye(side, {s: float(s in anatomy.segment) for s in SEGMENTS},
              lambda s, value: _colour(s) if value else "#d0d0d0", str)
    source, spread = anatomy.reference.source, anatomy.reference.uncertainty
    sure = "" if spread is None else f" ± {np.rad2deg(spread):.0f}°"
    _write(figure, path, "\n".join([
        f"{title}: arrow = anterior RV insertion, from {source}{sure}; slices "
        f"{anatomy.order.replace('_', ' ')}, from {anatomy.order_from}",
        *(f"note: {n}" for n in anatomy.notes)]))
    return path


def save_sample(path: Path, heart: Subject, after: Case, mask: np.ndarray, record: dict) -> Path:
    """Columns: slices of the request; rows: source, request, result, difference; bull's-eye of the
    share of each segment that is scarred now, requested segments framed."""
    anatomy, result = heart.anatomy, after.image[heart.channel]
    touched = np.flatnonzero(mask.any(axis=(1, 2)))
    touched = touched[np.unique(np.linspace(0, len(touched) - 1, MOST_SLICES // 2).astype(int))]
    figure, axes, side = _canvas(anatomy, rows=4, columns=len(touched))
    window = _window(anatomy)
    span = np.percentile(heart.lge[touched], (1, 99.5))
    most = max(float(np.abs(result - heart.lge).max()), 1e-6)
    for column, z in zip(axes.T, touched):
        for axis, shown in zip(column, (heart.lge[z], heart.lge[z], result[z])):
            _slice(axis, shown[window], "", span)
        column[3].imshow((result[z] - heart.lge[z])[window], cmap="coolwarm", vmin=-most, vmax=most)
        column[0].set_title(f"slice {z + 1}, {_level(anatomy, z)}", fontsize=8)
        verdict = record["verdicts"].get(str(z + 1), {"accepted": True, "checks": {}})
        failed = [n for n, c in verdict["checks"].items() if not c["passed"]]
        column[2].set_title("" if verdict["accepted"] else f"refused: {', '.join(failed)}",
                            fontsize=7, color="#c00000")
        _outline(column[1], mask[z][window])
    for axis, name in zip(axes[:, 0], ("source", "request", "result", "difference")):
        axis.set_ylabel(name, fontsize=9)
    scarred = (after.labels[0] != heart.labels) & (mask > 0)
    shares = {s: float(scarred[anatomy.segment == s].mean()) for s in SEGMENTS
              if s in anatomy.segment}
    bulls_eye(side, shares, lambda s, value: (1.0, 0.62, 0.18, value), "{:.0%}".format,
              framed=record["requested"]["segments"])
    asked, got = record["requested"], record["realised"]
    depth = "-" if asked["transmurality"] is None else f"{asked['transmurality']:.2f}"
    _write(figure, path, (
        f"{record['name']} ({record['generator']}, {record['prior']}): "
        f"{'accepted' if record['accepted'] else 'refused'}; requested / realised: burden "
        f"{asked['burden']:.1%} / {got['burden']:.1%}, transmurality {depth} / "
        f"{got['transmurality']:.2f}, no-reflow {asked['no_reflow']:.0%} / {got['no_reflow']:.0%}\n"
        f"{record['caption']}"))
    return path


def bulls_eye(axis, values: dict[int, float], colour: Callable, text: Callable,
              framed=()) -> None:
    """Draw the 17 segments on a polar axis: colour(segment, value), text(segment or value)."""
    axis.set_theta_zero_location("N")
    axis.set_axis_off()
    axis.set_ylim(0, 1)
    for segment in SEGMENTS:
        first, last = SPANS[segment]
        bottom, height = RINGS.get(NAMES[segment].split()[0], (0.0, 0.25))
        known = segment in values
        around = np.linspace(first, last, 60) + UP
        outline = np.concatenate([around, around[::-1]]) if bottom else around
        radius = np.repeat([bottom + height, bottom], 60)[:len(outline)]
        axis.fill(outline, radius, lw=0.8, ec="#404040", fc=colour(segment, values[segment])
                  if known else "#d0d0d0")
        if segment in framed:
            axis.fill(outline, radius, lw=2.2, ec="#c00000", fc="none", zorder=3)
        label = text(segment) if text is str else f"{segment}\n{text(values[segment])}" if known \
            else str(segment)
        place = (0.0, 0.0) if segment == APEX else ((first + last) / 2 + UP, bottom + height / 2)
        axis.text(*place, label, ha="center", va="center", fontsize=7, zorder=4)
    for angle, name in ((0, "anterior"), (np.pi / 2, "septal"), (np.pi, "inferior"),
                        (3 * np.pi / 2, "lateral")):
        axis.text(angle, 1.08, name, ha="center", va="center", fontsize=7,
                  rotation={"septal": 90, "lateral": 270}.get(name, 0))


def _canvas(anatomy: Anatomy, rows: int, columns: int | None = None, wrap: int | None = None):
    """A figure, its slice axes (rows, columns), and the polar axis beside them."""
    from matplotlib.figure import Figure

    count = columns or len(_shown(anatomy))
    grid_rows, grid_columns = (rows, count) if wrap is None else (
        max(-(-count // wrap), 1), min(count, wrap))
    width = max(1.9 * grid_columns, 1.9)
    figure = Figure(figsize=(width + 4.2, max(1.95 * grid_rows, 3.9) + 0.7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(width, 4.2))
    axes = left.subplots(grid_rows, grid_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes.ravel()[rows * count:]:
        axis.set_axis_off()
    return figure, axes if wrap is None else axes.reshape(1, -1), right.add_subplot(
        projection="polar")


def _slice(axis, image: np.ndarray, title: str, span=None) -> None:
    low, high = np.percentile(image, (1, 99.5)) if span is None else span
    axis.imshow(image, cmap="gray", vmin=low, vmax=high)
    axis.set_title(title, fontsize=8)


def _outline(axis, mask: np.ndarray) -> None:
    for part, colour in ((mask > 0, SCAR_COLOUR), (mask == NO_REFLOW, CORE_COLOUR)):
        if part.any():
            axis.contour(part, levels=[0.5], colors=colour, linewidths=1.2)


def _arrow(axis, anatomy: Anatomy, z: int, window) -> None:
    """From the LV's centre to the anterior insertion."""
    start = anatomy.centre[z] - [s.start for s in window]
    step = np.array(anatomy.reference.zero) / anatomy.spacing[1:]
    end = start + step * 32.0                                          # mm
    axis.annotate("", xy=end[::-1], xytext=start[::-1], annotation_clip=False,
                  arrowprops={"arrowstyle": "->", "color": "#ff3030", "lw": 1.5})


def _shown(anatomy: Anatomy) -> np.ndarray:
    covered = np.flatnonzero(anatomy.covered)
    return covered[np.unique(np.linspace(0, len(covered) - 1, MOST_SLICES).astype(int))]


def _window(anatomy: Anatomy):
    heart = (anatomy.wall | anatomy.cavity)[anatomy.covered].any(axis=0)
    return tuple(slice(max(int(i.min()) - MARGIN, 0), int(i.max()) + MARGIN + 1)
                 for i in np.nonzero(heart))


def _level(anatomy: Anatomy, z: int) -> str:
    """"basal", "mid", "apical" or "apex"."""
    segments = anatomy.segment[z][anatomy.segment[z] > 0]
    if segments.max() == APEX:
        return "apex"
    return LEVELS[2 - min((int(segments.min()) - 1) // 6, 2)]


def _colour(segment: int) -> tuple[float, float, float]:
    """A hue a wall, paler towards the apex."""
    from matplotlib.colors import hsv_to_rgb

    strength = {"basal": 1.0, "mid": 0.75, "apical": 0.55}.get(NAMES[segment].split()[0], 0.0)
    return tuple(hsv_to_rgb((sum(SPANS[segment]) / 2 % (2 * np.pi) / (2 * np.pi), strength, 1.0)))


def _write(figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    make_folder(path.parent)
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file.") from \
            error
