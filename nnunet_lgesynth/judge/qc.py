"""Quality control of a painted slice, or of a lesion's slices as one stack: named checks with value
and bound, and the verdict.

Checks on a scar: the request is large enough, inside the wall and inside the generator's crop; the
draft is finite; its contrast went where it was asked, and a no-reflow core is darker than the scar
around it; and, with a judge (an nnU-Net segmenter), the judge finds the scar where it was asked
for, did not find it there before, and finds none elsewhere. A judge also fires on some untouched
normal hearts, so without the second of these a sample could pass unseen. What the judge sees in a
core counts for nothing: few know no-reflow, and the cores that pass for scar would be the bright
ones.
Checks on a healthy repainting: finite, its level stays, and the judge finds no new scar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nnunet_lgesynth.anatomy.intensities import Intensities
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR
from nnunet_lgesynth.config import QCConfig
from nnunet_lgesynth.dataset.roles import Roles

__all__ = ["Check", "Painted", "Verdict", "accepted_labels", "dice", "examine"]

LEAST_CONTRAST = 0.1   # normalised; a scar must be brighter than the wall, whatever was asked
REQUEST_CHECKS = ("pixels", "outside_wall", "outside_crop", "dice_source")   # no draft matters


@dataclass(frozen=True)
class Check:
    """A measured value, the bound it is held to, and the outcome."""

    value: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """All checks of one slice or stack; accepted if every one passed."""

    checks: dict[str, Check]

    @property
    def accepted(self) -> bool:
        return all(c.passed for c in self.checks.values())

    @property
    def depends_on_draft(self) -> bool:
        """Refused, and by nothing but what another draft of the same request may change."""
        return not self.accepted and all(c.passed for n, c in self.checks.items()
                                         if n in REQUEST_CHECKS)

    def as_dict(self) -> dict:
        """JSON-ready; a value that is not a number becomes None."""
        return {"accepted": self.accepted,
                "checks": {n: {"value": round(c.value, 4) if np.isfinite(c.value) else None,
                               "bound": c.bound, "passed": c.passed}
                           for n, c in self.checks.items()}}


@dataclass(frozen=True)
class Painted:
    """One slice before and after, (Y, X) each, or a lesion's slices, (n, Y, X); `judged_*` are the
    judge's label maps or None."""

    source: np.ndarray
    sample: np.ndarray
    labels: np.ndarray
    request: np.ndarray          # 0, SCAR, NO_REFLOW: the region, also where it stays healthy
    weight: np.ndarray           # the feather
    contrast: float              # asked, normalised units
    healthy: bool
    intensities: Intensities
    judged_source: np.ndarray | None = None
    judged_sample: np.ndarray | None = None
    core_contrast: float = 0.0   # asked of no-reflow, normalised units


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two bool masks; 1 if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


def examine(painted: Painted, roles: Roles, config: QCConfig) -> Verdict:
    """Run every check that applies. The unwanted scar that is allowed grows with the number of
    slices of a stack, and outside of a large scar with that; every other bound is on a share, or
    the same for one slice and for many."""
    request = painted.request > 0
    checks = {
        "pixels": _at_least(request.sum(), config.min_pixels),
        "outside_wall": _at_most((request & ~np.isin(painted.labels, roles.wall)).sum(), 0),
        "outside_crop": _at_most((request & (painted.weight == 0)).sum(), 0),
        "finite": _at_least(np.isfinite(painted.sample).mean(), 1.0)}
    scar, core = painted.request == SCAR, painted.request == NO_REFLOW
    change = painted.sample - painted.source if painted.healthy else \
        painted.sample - painted.intensities.level

    def middle(mask: np.ndarray) -> float:
        return float(np.median(change[mask]) / painted.intensities.scale) if mask.any() else 0.0
    realised = middle(scar if scar.any() else request)
    if painted.healthy:
        checks["level_change"] = _at_most(abs(realised), config.max_level_change)
    else:
        checks["contrast_share"] = _at_least(realised / max(painted.contrast, LEAST_CONTRAST),
                                             config.min_contrast_share)
        if scar.any() and core.any():
            asked = max(painted.contrast - painted.core_contrast, LEAST_CONTRAST)
            checks["core_contrast_share"] = _at_least((realised - middle(core)) / asked,
                                                      config.min_contrast_share)
    if painted.judged_sample is not None:
        checks.update(_judged(painted, request, roles, config))
    return Verdict(checks)


def _judged(painted: Painted, request: np.ndarray, roles: Roles,
            config: QCConfig) -> dict[str, Check]:
    before, after = (np.isin(m, roles.scars)
                     for m in (painted.judged_source, painted.judged_sample))
    inside = painted.weight > 0
    new, slices = after & ~before, math.prod(request.shape[:-2])
    leak = 0 if painted.healthy else config.max_new_outside_share * request.sum()
    few = max(config.max_new_outside * slices, leak)
    checks = {"new_outside": _at_most((new & ~inside).sum(), few)}
    if painted.healthy:
        checks["new_inside"] = _at_most((new & inside).sum(), config.max_healthy_pixels * slices)
    else:
        around = painted.request != NO_REFLOW
        checks["dice_request"] = _at_least(dice(after & inside & around, request & around),
                                           config.min_dice)
        checks["dice_source"] = _at_most(dice(before & inside, request), config.max_source_dice)
    return checks


def accepted_labels(painted: Painted, roles: Roles, config: QCConfig) -> np.ndarray:
    """The painted labels with the accepted scar: as requested, or as the judge saw it inside the
    feathered region and the wall. Unchanged for healthy repaintings and outside the region."""
    labels = painted.labels.copy()
    if painted.healthy:
        return labels
    core = roles.scar if roles.no_reflow is None else roles.no_reflow
    if config.label == "intended" or painted.judged_sample is None:
        labels[painted.request == SCAR] = roles.scar
        labels[painted.request == NO_REFLOW] = core
        return labels
    here = (painted.weight > 0) & np.isin(painted.labels, roles.wall) & np.isin(
        painted.judged_sample, roles.scars)
    labels[here] = painted.judged_sample[here]
    return labels


def _at_least(value, bound: float) -> Check:
    return Check(float(value), bound, bool(value >= bound))


def _at_most(value, bound: float) -> Check:
    return Check(float(value), bound, bool(value <= bound))
