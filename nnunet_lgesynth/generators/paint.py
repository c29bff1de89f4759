"""The rule-based painter: adds the requested contrast to the wall's own texture.

It needs no fit and is the baseline the inpainter must beat. Contrast comes with the request (the
prior draws it from the training fold's real scars); the mask's border is blurred to the scanner's
partial volume; a smooth random field makes the scar uneven. The same field goes over regions that
are asked to stay healthy, so the field itself says nothing about the label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR
from nnunet_lgesynth.generators.condition import Condition

__all__ = ["Painter"]


class Painter:
    """Draws normalised crops by rule."""

    name = "paint"
    pixels, mm, feather_mm = 64, 1.4, 4.0
    border_sigma = 0.7        # pixels; partial volume of a 1.4 mm pixel
    field_sigma = 2.0         # pixels; size of the unevenness
    field_sd = 0.08           # normalised units; normal myocardium itself has about 0.26

    @property
    def hash(self) -> str:
        return f"paint-{self.pixels}-{self.border_sigma}-{self.field_sigma}-{self.field_sd}"

    def drafts(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[np.ndarray]:
        """One draft (P, P) a condition; sample k depends on its own condition and seed only."""
        return [self._draft(c, np.random.default_rng(s)) for c, s in zip(conditions, seeds)]

    def _draft(self, condition: Condition, rng: np.random.Generator) -> np.ndarray:
        field = ndimage.gaussian_filter(rng.standard_normal(condition.source.shape),
                                        self.field_sigma)
        draft = condition.source + field / field.std() * self.field_sd
        for value, contrast in ((SCAR, condition.contrast),
                                (NO_REFLOW, condition.no_reflow_contrast)):
            part = (condition.request == value).astype(np.float32)
            draft = draft + contrast * ndimage.gaussian_filter(part, self.border_sigma)
        return draft.astype(np.float32)
