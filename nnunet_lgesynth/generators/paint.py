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
    least_share = 0.6         # below it a part is too thin to reach the contrast asked
    field_sigma = 2.0         # pixels; size of the unevenness
    field_sd = 0.08           # normalised units; normal myocardium itself has 0.27

    @property
    def hash(self) -> str:
        return f"paint-{self.pixels}-{self.border_sigma}-{self.field_sigma}-{self.field_sd}" \
            f"-{self.least_share}"

    def drafts(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[np.ndarray]:
        """One draft (P, P) a condition; sample k depends on its own condition and seed only."""
        return [self._draft(c, np.random.default_rng(s)) for c, s in zip(conditions, seeds)]

    def _draft(self, condition: Condition, rng: np.random.Generator) -> np.ndarray:
        field = ndimage.gaussian_filter(rng.standard_normal(condition.source.shape),
                                        self.field_sigma)
        draft = condition.source + field / field.std() * self.field_sd
        return (draft + self._contrast_map(condition)).astype(np.float32)

    def _contrast_map(self, condition: Condition) -> np.ndarray:
        """(P, P): blurred parts in amounts that give each part's median the contrast asked."""
        asked = ((SCAR, condition.contrast), (NO_REFLOW, condition.no_reflow_contrast))
        asked = [(condition.request == v, c) for v, c in asked if (condition.request == v).any()]
        if not asked:
            return np.zeros(condition.request.shape)
        shares = [ndimage.gaussian_filter(part.astype(float), self.border_sigma)
                  for part, _ in asked]
        mixing = np.array([[np.median(share[part]) for share in shares] for part, _ in asked])
        np.fill_diagonal(mixing, np.maximum(mixing.diagonal(), self.least_share))
        return np.tensordot(np.linalg.solve(mixing, [c for _, c in asked]), shares, 1)
