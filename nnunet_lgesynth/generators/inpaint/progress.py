"""What a fit leaves behind while it runs: resumable state, log, losses, a picture.

    state/checkpoint.pt   all that is needed to go on, replaced in one rename; gone once fitted
    training_log.txt      one line an event
    metrics.json          rows {stage, step, loss (mean since the last row), seconds}
    progress.png          loss curves above source | request | sample of a few training slices
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage

from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR
from nnunet_lgesynth.config import FitConfig, UserError
from nnunet_lgesynth.files import replacing, write_json
from nnunet_lgesynth.generators.condition import Condition
from nnunet_lgesynth.generators.inpaint.batch import STAGES
from nnunet_lgesynth.generators.inpaint.data import Item, SliceSet, as_healthy
from nnunet_lgesynth.generators.inpaint.networks import Networks
from nnunet_lgesynth.generators.inpaint.sample import paint

__all__ = ["Progress", "draw_picture", "read_checkpoint", "write_checkpoint"]

SHOWN = 3                     # slices of each kind in the picture
SHOWN_RANGE = (-1.5, 2.0)     # normalised intensities from black to white
RIM = (0.0, 0.8, 0.8)
COLOURS = {SCAR: (0.9, 0.2, 0.1), NO_REFLOW: (1.0, 0.8, 0.1)}


@dataclass
class Progress:
    """Losses and minutes so far, and the folder they are written to."""

    folder: Path
    rows: list[dict] = field(default_factory=list)
    minutes: dict[str, float] = field(default_factory=dict)
    _losses: list[float] = field(default_factory=list)

    def log(self, text: str) -> None:
        """Append a dated line to training_log.txt."""
        with open(self.folder / "training_log.txt", "a") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}: {text}\n")

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    def row(self, stage: str, step: int) -> None:
        """Close a row of metrics.json with the mean of the losses since the last one."""
        if not self._losses:
            return
        loss = float(np.mean(self._losses))
        self._losses.clear()
        self.rows.append({"stage": stage, "step": step, "loss": round(loss, 6),
                          "seconds": round(60 * self.minutes[stage], 1)})
        write_json(self.folder / "metrics.json", self.rows)
        self.log(f"{stage} step {step}: loss {loss:.4f}")


def write_checkpoint(folder: Path, state: dict) -> None:
    """Replace state/checkpoint.pt; a reader sees the old or the new one."""
    (folder / "state").mkdir(exist_ok=True)
    partial = folder / "state" / "checkpoint.part"
    try:
        torch.save(state, partial)
        os.replace(partial, folder / "state" / "checkpoint.pt")
    except RuntimeError as error:      # what torch makes of a full disk
        raise OSError(str(error).splitlines()[0]) from error
    finally:
        partial.unlink(missing_ok=True)          # half of one would keep the disk full


def read_checkpoint(folder: Path) -> dict | None:
    """The last state, on the CPU; None where there is none."""
    path = folder / "state" / "checkpoint.pt"
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:     # torch raises many kinds for a damaged file
        raise UserError(f"{path} is not readable ({str(error).splitlines()[0]}); delete {folder} "
                        "and fit again.") from error


def draw_picture(path: Path, networks: Networks, config: FitConfig, slices: SliceSet,
                 rows: list[dict], stage: str) -> None:
    """Write progress.png; in the VAE's stage the sample is its reconstruction."""
    items = _examples(slices)
    conditions = [item.condition for item in items]
    if stage == "vae":
        source = torch.from_numpy(np.stack([c.source for c in conditions])[:, None])
        with torch.no_grad():
            samples = networks.decode(networks.encode(source.to(networks.device)))[:, 0]
        samples = samples.float().cpu().numpy()
    else:
        samples = paint(networks, config, conditions, range(len(items)))
    figure = Figure(figsize=(1.5 * len(items), 7.5))
    curves, grid = figure.subfigures(2, 1, height_ratios=[2, 5])
    for part in (curves, grid):
        part.subplots_adjust(left=0.04, right=0.99, bottom=0.12, top=0.88)
    _draw_losses(curves, rows)
    _draw_samples(grid.subplots(), conditions, samples)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120)


def _examples(slices: SliceSet) -> list[Item]:
    """Scarred slices, drawn requests and healthy re-inpaintings, spread over the patients."""
    def spread(items):
        return [items[i] for i in np.linspace(0, len(items) - 1, SHOWN).astype(int)]

    asked = spread(slices.asked)
    return [*spread(slices.scarred), *asked, *map(as_healthy, asked)]


def _draw_losses(figure, rows: list[dict]) -> None:
    axes = figure.subplots(1, len(STAGES), squeeze=False)[0]
    for axis, stage in zip(axes, STAGES):
        mine = [r for r in rows if r["stage"] == stage]
        axis.plot([r["step"] for r in mine], [r["loss"] for r in mine])
        axis.set_title(f"{stage}: loss by step", fontsize="small")
        axis.tick_params(labelsize="x-small")


def _draw_samples(axis, conditions: Sequence[Condition], samples: Sequence[np.ndarray]) -> None:
    """One mosaic: source, request, sample from top to bottom, a condition a column."""
    columns = [np.concatenate([_grey(c.source), _marked(c), _grey(sample)])
               for c, sample in zip(conditions, samples)]
    axis.imshow(np.concatenate(columns, axis=1))
    pixels = len(samples[0])
    centres = (np.arange(len(conditions)) + 0.5) * pixels
    captions = [c.caption.replace(" in the", "\nin the") for c in conditions]
    axis.set_xticks(centres, captions, fontsize=5)
    axis.set_yticks(centres[:3], ["source", "request", "sample"], rotation=90, va="center")


def _grey(image: np.ndarray) -> np.ndarray:
    """(P, P) normalised -> (P, P, 3) in [0, 1]."""
    low, high = SHOWN_RANGE
    return np.repeat(np.clip((image - low) / (high - low), 0, 1)[..., None], 3, axis=2)


def _marked(condition: Condition) -> np.ndarray:
    """The source with the region's rim and the scar and no-reflow asked for in colour."""
    picture = _grey(condition.source)
    picture[condition.region & ~ndimage.binary_erosion(condition.region)] = RIM
    for value, colour in COLOURS.items():
        picture[condition.request == value] = colour
    return picture
