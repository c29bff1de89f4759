"""A case that is ready to be painted or learnt from: its geometry and its intensity scale.

Both are measured once per case from labels and image; the inpainter's training material, the prior
and the synthesis all start from here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nnunet_lgesynth.anatomy.heart import Anatomy, describe
from nnunet_lgesynth.anatomy.intensities import Intensities
from nnunet_lgesynth.anatomy.measure import ScarRecord, measure_scar
from nnunet_lgesynth.anatomy.priors import Prior
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, SCAR
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.dataset.roles import Roles

__all__ = ["Subject", "measure_prior", "read_subjects", "require_lv"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A case in nnU-Net's intensities with its anatomy; `channel` is the LGE channel."""

    case: Case
    channel: int
    anatomy: Anatomy
    intensities: Intensities

    @classmethod
    def of(cls, fold: Fold, case: Case) -> Subject:
        """Measure a case; `UserError` where no slice shows the LV or the image is constant."""
        roles, channel = fold.info.roles, fold.info.roles.lge_channel
        anatomy = describe(case.labels[0], roles, case.spacing, fold.info.frame,
                           case.image[channel], fold.insertion(case))
        require_lv(anatomy, roles, case.identifier)
        return cls(case, channel, anatomy,
                   Intensities.measure(case.image[channel], case.labels[0], anatomy, roles))

    @property
    def lge(self) -> np.ndarray:
        """(Z, Y, X) float32, nnU-Net's intensities."""
        return self.case.image[self.channel]

    @property
    def labels(self) -> np.ndarray:
        """(Z, Y, X) label values."""
        return self.case.labels[0]

    def judged(self, judge, slices: Sequence[int],
               after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A segmenter's label maps (n, Y, X) of these slices as they are, and with `after`
        (C, n, Y, X) in their place."""
        both = np.concatenate([self.case.image[:, slices], after], axis=1).swapaxes(0, 1)
        maps = judge.predict(torch.from_numpy(np.ascontiguousarray(both)),
                             centre=self.anatomy.lv_centre)
        maps = np.asarray(maps.cpu())
        return maps[:len(slices)], maps[len(slices):]

    def scar_mask(self, roles: Roles) -> np.ndarray:
        """(Z, Y, X) uint8: its real scar as a request would ask for it, 0, SCAR, NO_REFLOW."""
        mask = np.where(np.isin(self.labels, roles.scars), SCAR, 0).astype(np.uint8)
        if roles.no_reflow is not None:
            mask[self.labels == roles.no_reflow] = NO_REFLOW
        return mask

    def contrasts(self, mask: np.ndarray, z: int) -> list[float]:
        """Median normalised intensity of slice z under SCAR and under NO_REFLOW of a mask
        (Z, Y, X); 0 where the slice has none."""
        image = self.intensities.apply(self.lge[z])
        return [float(np.median(image[mask[z] == v])) if (mask[z] == v).any() else 0.0
                for v in (SCAR, NO_REFLOW)]

    def scar(self, roles: Roles) -> ScarRecord | None:
        """What its scar measures; None if there is too little."""
        return measure_scar(self.labels, self.intensities.apply(self.lge), self.anatomy, roles)


def require_lv(anatomy: Anatomy, roles: Roles, identifier: str) -> None:
    """`UserError` where no slice of the case shows the LV."""
    if not anatomy.covered.any():
        why = f"{'; '.join(anatomy.notes)}." if anatomy.notes else "are the roles right?"
        raise UserError(f"{identifier}: no slice has a wall (labels {list(roles.wall)}) around a "
                        f"cavity (label {roles.cavity}); {why} See: lgesynth doctor")


def read_subjects(fold: Fold, identifiers: Sequence[str]) -> list[Subject]:
    """The measurable ones of these training cases; validation cases are refused."""
    foreign = sorted(set(identifiers) - set(fold.train))
    if foreign:
        raise UserError(f"{', '.join(foreign[:3])} are no training cases of fold {fold.fold}; the "
                        "generator may only see fold.train.")
    subjects, refused = [], []
    for identifier in identifiers:
        case = fold.read(identifier)
        try:
            subjects.append(Subject.of(fold, case))
        except UserError as error:
            refused.append(str(error))
    if not subjects:
        raise UserError(f"None of the {len(identifiers)} training cases can be used; the first: "
                        f"{refused[0] if refused else 'there is none'}")
    if refused:
        warnings.warn(f"{len(refused)} of {len(identifiers)} training cases are left out; the "
                      f"first: {refused[0]}", stacklevel=2)
    return subjects


def measure_prior(subjects: Sequence[Subject], fold: Fold, name: str) -> Prior:
    """The prior of this name over the subjects' real scars."""
    records = [s.scar(fold.info.roles) for s in subjects]
    return Prior(name, tuple(r for r in records if r is not None))
