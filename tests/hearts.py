"""Hearts of many forms for property-based tests, drawn by hypothesis and rendered from formulas."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from nnunet_lgesynth.anatomy.heart import Anatomy, describe
from nnunet_lgesynth.dataset.roles import Frame, Roles

__all__ = ["ROLES", "Form", "forms"]

ROLES = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
APEX_FIRST, BASE_FIRST = "apex_to_base", "base_to_apex"


@dataclass(frozen=True)
class Form:
    """An LV without image. Lengths in mm, angles in radians from `zero` on.

    `oval` and `lobes` are relative amplitude and phase of the outline's second and third mode,
    `uneven` of the wall's thickness; `taper` is the apical radius relative to the basal one, `tilt`
    the centre's shift from slice to slice; `scarred` slices hold a real scar; a `cap` is an apical
    slice without cavity.
    """

    spacing: tuple[float, float, float] = (10.0, 1.5, 1.5)
    slices: int = 5
    radius: float = 16.0                       # of the cavity
    wall: float = 10.0
    oval: tuple[float, float] = (0.0, 0.0)
    lobes: tuple[float, float] = (0.0, 0.0)
    uneven: tuple[float, float] = (0.0, 0.0)
    taper: float = 1.0
    centre: tuple[float, float] = (0.0, 0.0)   # from the image's
    tilt: tuple[float, float] = (0.0, 0.0)
    zero: float = -np.pi / 6                   # from the image's upper side, clockwise
    mirrored: bool = False                     # septum clockwise from zero
    order: str = APEX_FIRST
    scarred: tuple[int, ...] = ()
    cap: bool = False

    @property
    def frame(self) -> Frame:
        sign = 1 if self.mirrored else -1
        anterior, septal = (self.zero + sign * turn for turn in (-np.pi / 6, np.pi / 3))
        return Frame(self.order, *((-np.cos(a), np.sin(a)) for a in (anterior, septal)))

    def polar(self) -> tuple[np.ndarray, np.ndarray]:
        """Wall depth and angle (Z, Y, X), from the formulas."""
        reach = 1.35 * (self.radius + self.wall) + np.abs(self.centre) + self.slices * np.abs(
            self.tilt)
        half = np.ceil(reach / self.spacing[1:]) + 1
        y, x = np.meshgrid(*(np.arange(-h, h + 1) * s for h, s in zip(half, self.spacing[1:])),
                           indexing="ij")
        depths, angles = [], []
        for z in range(self.slices):
            share = z / max(self.slices - 1, 1)
            share = share if self.order == APEX_FIRST else 1 - share
            away = [axis - c - t * (share - 0.5) * (self.slices - 1)
                    for axis, c, t in zip((y, x), self.centre, self.tilt)]
            turn = (np.arctan2(away[1], -away[0]) - self.zero) * (1 if self.mirrored else -1)
            inner = self.radius * (self.taper + (1 - self.taper) * share) * (
                1 + self.oval[0] * np.cos(2 * turn - self.oval[1])
                + self.lobes[0] * np.cos(3 * turn - self.lobes[1]))
            thick = self.wall * (1 + self.uneven[0] * np.cos(turn - self.uneven[1]))
            depths.append((np.hypot(*away) - inner) / thick)
            angles.append(np.mod(turn, 2 * np.pi))
        return np.stack(depths), np.stack(angles)

    def labels(self, lesion=None) -> np.ndarray:
        """(Z, Y, X) uint8; `lesion(slice index, depth, angle)` says where it is scarred."""
        depth, angle = self.polar()
        labels = np.zeros(depth.shape, np.uint8)
        labels[depth <= 1] = ROLES.myocardium
        at = np.arange(self.slices)[:, None, None]
        scar = np.isin(at, self.scarred) & (angle < 1) if lesion is None else \
            lesion(at, depth, angle)
        labels[scar & (depth <= 1)] = ROLES.scar
        labels[depth < 0] = ROLES.cavity
        if self.cap:
            tip = labels[0 if self.order == APEX_FIRST else -1]
            tip[tip == ROLES.cavity] = ROLES.myocardium
        return labels

    def describe(self, labels: np.ndarray | None = None, **changes) -> Anatomy:
        """Of its own labels, or of these, with another spacing or frame."""
        form = {"spacing": self.spacing, "frame": self.frame} | changes
        return describe(self.labels() if labels is None else labels, ROLES, **form)

    def but(self, **changes) -> Form:
        return dataclasses.replace(self, **changes)


@st.composite
def forms(draw, scarred: bool = False, slices=(3, 6)) -> Form:
    """Oval, lobed, tapering, tilted, thin-walled, off-centre hearts in anisotropic stacks."""
    def number(low, high):
        return draw(st.floats(low, high))

    def mode(most):
        return number(0, most), number(0, 2 * np.pi)

    pixel = number(1.0, 2.2), number(1.0, 2.2)
    count = draw(st.integers(*slices))
    return Form(
        spacing=(number(5, 12), *pixel), slices=count, radius=number(12, 20),
        wall=number(1.5 * max(pixel) + 1, 12), oval=mode(0.12), lobes=mode(0.06),
        uneven=mode(0.2), taper=number(0.6, 1), centre=(number(-5, 5), number(-5, 5)),
        tilt=(number(-2, 2), number(-2, 2)), zero=number(-np.pi, np.pi),
        mirrored=draw(st.booleans()), order=draw(st.sampled_from((APEX_FIRST, BASE_FIRST))),
        scarred=tuple(sorted(draw(st.sets(st.integers(0, count - 1), max_size=count // 2))))
        if scarred else (), cap=draw(st.booleans()))
