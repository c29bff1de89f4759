"""Intensities on a scale that an affine change of the image does not alter.

0 is the median of normal myocardium; 1 is half the range from the 2nd to the 98th percentile in a
square around the heart. On EMIDEC's training patients real scars lie at 0.6 (0.3 to 1.1), normal
myocardium has a standard deviation of 0.27. So the same value means the same tissue in a raw image
and in nnU-Net's z-scored case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_lgesynth.anatomy.heart import Anatomy
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.roles import Roles

__all__ = ["Intensities"]

WINDOW_MM = 90.0              # side of the square the intensity range is measured in


@dataclass(frozen=True)
class Intensities:
    """normalised = (value - level) / scale, per stack."""

    level: float
    scale: float

    @classmethod
    def measure(cls, image: np.ndarray, labels: np.ndarray, anatomy: Anatomy,
                roles: Roles) -> Intensities:
        """From the LGE stack (Z, Y, X) and its labels."""
        normal = image[(labels == roles.myocardium) & anatomy.myocardium]
        if not len(normal):
            raise UserError("The heart has no normal myocardium in a slice with a wall around it, "
                            "so its intensity level is unknown; drop the case.")
        half = [round(WINDOW_MM / 2 / s) for s in anatomy.spacing[1:]]
        r, c = (round(v) for v in anatomy.lv_centre)
        window = image[anatomy.covered, max(r - half[0], 0):r + half[0] + 1,
                       max(c - half[1], 0):c + half[1] + 1]
        low, high = np.percentile(window, [2, 98])
        if not high > low:
            raise UserError("The image is constant around the heart; drop the case.")
        return cls(float(np.median(normal)), float(high - low) / 2)

    def apply(self, values):
        return (values - self.level) / self.scale

    def invert(self, values):
        return values * self.scale + self.level
