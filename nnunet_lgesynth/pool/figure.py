"""How synthesis went, epoch by epoch, as one picture beside nnU-Net's progress.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_lgesynth.files import replacing

__all__ = ["draw_epochs"]

PANELS = (
    ("share of training patches", {"injected_fraction": "injected", "probability": "probability"}),
    ("cases served", {"pool_scarred_cases": "scarred", "pool_healthy_cases": "healthy"}),
    ("scar slices an epoch", {"drafted": "drafted", "accepted": "accepted"}),
    ("share of the computing", {"synthesis_share": "synthesis"}),
    ("memory, MiB", {"memory_mb": "training", "memory_synthesis_mb": "synthesis",
                     "memory_gpu_mb": "training, GPU",
                     "memory_gpu_synthesis_mb": "synthesis, GPU"}),
)


def draw_epochs(rows: Sequence[dict], path: Path) -> None:
    """Draw rows of `lgesynth.jsonl` into a PNG; what a row lacks is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * len(PANELS), 2.6), layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(1, len(PANELS)), PANELS):
        for key, label in lines.items():
            told = [(r["epoch"], r[key]) for r in rows if r.get(key) is not None]
            if any(value for _, value in told):
                axis.plot(*zip(*told), label=label)
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("epoch", fontsize="x-small")
        axis.tick_params(labelsize="x-small")
        axis.set_ylim(bottom=0)
        if axis.lines:
            axis.legend(fontsize="x-small", frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=90)
