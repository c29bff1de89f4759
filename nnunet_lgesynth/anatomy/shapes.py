"""The fields that lesions grow along: which wall voxel is scarred first.

Every shape ranks the voxels by a score, and a lesion is the voxels of lowest score. With u the
distance from the layer the shape starts at, as a share of the depth D that it may reach,

    score = base / (1 - u^p)^(1/p),   infinite where u >= 1,

so that the lesion's border is a dome over the wall: high in the middle, low at its borders.
    sector         ischaemic wavefront: from the endocardium outward
    ellipsoid      around a wall depth of its own (LGESynthNet, arXiv 2603.18356)
    midwall        around the middle of the wall
    subepicardial  from the epicardium inward
    smile          blobs in each of its segments (the idea of CLAIM's SMILE, arXiv 2506.15549)
    patchy         scattered foci at any depth
The base is the distance from the lesion's centre, over the wall and along the heart, in units of
the lesion's size; for blobs it is a random field. Fields are sums of random waves over wall
coordinates (random Fourier features of a Gaussian process: Rahimi and Recht, NeurIPS 2007), so they
do not depend on the grid: a mirrored, turned or finer stack gets the same lesion. They vary with
the depth only where no transmurality is asked for: else D alone decides how deep each place is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

__all__ = ["SHAPES", "Shape", "score"]

WAVES = 32
DEPTH_LENGTH = 0.4           # the wall's thickness in radii of the wall (10 mm of 25)
BORDER_LENGTH, BORDER_SD = 0.45, 0.18    # waviness of a solid lesion's border; radians, log scale
BLOB_LENGTH = {"smile": 0.30, "patchy": 0.18}
TIE = 1e-9
BEYOND = 10.0                # base a lesion's length beyond the last slice of its profile


@dataclass(frozen=True)
class Shape:
    """How a shape lies in the wall; `anchor` None takes the depth from the request."""

    anchor: float | None
    two_sided: bool          # grows to both sides of the anchor, each half of D
    power: float             # p: how square the border's dome is
    blobs: bool = False
    deepest: float = 1.0     # largest transmurality that still deserves the name

    def distance(self, depth: np.ndarray, asked: float) -> np.ndarray:
        """From the layer it starts at; the lesion ends where it exceeds D. Of two voxels at the
        same distance the inner one is nearer, so a mirrored stack decides alike."""
        away = np.abs(depth - (asked if self.anchor is None else self.anchor))
        return (2 * away if self.two_sided else away) + TIE * depth


SHAPES = {
    "sector": Shape(0.0, False, 4),
    "ellipsoid": Shape(None, True, 2),
    "midwall": Shape(0.5, True, 4, deepest=0.65),
    "subepicardial": Shape(1.0, False, 4, deepest=0.75),
    "smile": Shape(0.0, False, 4, blobs=True),
    "patchy": Shape(None, True, 4, blobs=True),
}


def base_field(spec, around: np.ndarray, along: np.ndarray, depth: np.ndarray,
               lengthwise: np.ndarray, attempt: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Base (N,) and the reach (N,) relative to D, from the profile.

    `around` in radians from the centre, `along` -1 .. 1 from the lesion's apical to its basal end,
    `lengthwise` the same in radii of the wall, as angles are. Each `attempt` has another border.
    """
    through = depth * DEPTH_LENGTH if spec.transmurality is None else np.zeros_like(depth)
    noise = _waves((spec.texture, attempt), np.stack([around, lengthwise, through]),
                   BLOB_LENGTH.get(spec.shape, BORDER_LENGTH))
    reach = np.ones_like(depth)
    if spec.profile:
        knots = np.linspace(-1, 1, len(spec.profile))
        turn, width, reach = (np.interp(along, knots, row) for row in zip(*spec.profile))
        away = np.abs(np.angle(np.exp(1j * (around - turn)))) / (
            spec.extent / 2 * np.maximum(width, 0.05))
        away = away + BEYOND * np.maximum(np.abs(along) - 1, 0)
    else:
        away = np.hypot(around / (spec.extent / 2), along)
    if SHAPES[spec.shape].blobs:
        return ndtr(noise) + np.maximum(away - 1, 0), reach
    return (away + 1e-6) * np.exp(BORDER_SD * noise), reach


def score(shape: Shape, base: np.ndarray, distance: np.ndarray, reach: np.ndarray,
          limit: float) -> np.ndarray:
    """Score (N,) at the depth D = `limit`; see the module text."""
    u = distance / (limit * reach)
    inside = np.maximum(1 - u ** shape.power, 0)
    with np.errstate(divide="ignore"):
        return np.where(u < 1, base / inside ** (1 / shape.power), np.inf)


def _waves(seed: tuple[int, int], place: np.ndarray, length: float) -> np.ndarray:
    """A smooth random field of mean 0 and variance 1 at `place` (3, N)."""
    rng = np.random.default_rng(seed)
    frequency, phase = rng.normal(0, 1 / length, (WAVES, 3)), rng.uniform(0, 2 * np.pi, WAVES)
    return np.sqrt(2 / WAVES) * np.cos(frequency @ place + phase[:, None]).sum(axis=0)
