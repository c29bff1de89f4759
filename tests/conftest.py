"""Shared fixtures: an analytic heart made in memory, and small folds on disk."""

from __future__ import annotations

import os

# before torch is loaded, for the processes of the tests, too: two test runners share the cores, and
# threads in tiny layers only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("nnUNet_def_n_proc", "1")     # instead of 8, each of which imports nnU-Net

from dataclasses import dataclass

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.heart import Anatomy, describe
from nnunet_lgesynth.dataset.roles import Frame, Roles

ROLES = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
FRAME = Frame("apex_to_base", anterior=(-1.0, 0.0), septal=(0.0, -1.0))
LEVELS = np.array([0.1, 1.0, 0.4, 1.1, 0.6], np.float32)    # of the five labels
ENDOCARDIUM_MM, EPICARDIUM_MM = 14.0, 26.0


@dataclass(frozen=True)
class Heart:
    """An LGE stack: image (Z, Y, X) float32, labels (Z, Y, X) uint8, spacing in mm."""

    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    roles: Roles = ROLES
    frame: Frame = FRAME

    @property
    def anatomy(self) -> Anatomy:
        return describe(self.labels, self.roles, self.spacing, self.frame)


def polar(shape, spacing, centre):
    """Distance (mm) from `centre` and angle from the anterior RV insertion, both (Y, X)."""
    y, x = (axis * s for axis, s in zip(np.indices(shape), spacing))
    y, x = y - centre[0] * spacing[0], x - centre[1] * spacing[1]
    from_anterior = np.arctan2(-x, -y)        # grows towards the septum, at small columns
    return np.hypot(y, x), np.mod(from_anterior - np.pi / 6, 2 * np.pi)


@pytest.fixture
def heart():
    """A factory: `heart(scar=(first, last angle, depth), ...)` gives a round LV on noise.

    The wall runs from 14 to 26 mm; the scar fills `angles` up to `depth` in `scar_slices`, with a
    no-reflow core in its middle if `core`.
    """
    def make(scar=None, *, scar_slices=slice(1, 3), core=False, slices=5, size=64,
             spacing=(10.0, 1.4, 1.4), centre=None, seed=0) -> Heart:
        centre = (size / 2 + 1, size / 2 - 2) if centre is None else centre
        radius, angle = polar((size, size), spacing[1:], centre)
        depth = (radius - ENDOCARDIUM_MM) / (EPICARDIUM_MM - ENDOCARDIUM_MM)
        labels = np.zeros((slices, size, size), np.uint8)
        labels[:, depth <= 1] = ROLES.myocardium
        labels[:, depth < 0] = ROLES.cavity
        if scar is not None:
            first, last, reach = scar
            lesion = (depth >= 0) & (angle >= first) & (angle <= last) & (depth <= reach)
            labels[scar_slices, lesion] = ROLES.scar
            inner = lesion & (np.abs(angle - (first + last) / 2) < (last - first) / 5)
            if core:
                labels[scar_slices, inner & (np.abs(depth - reach / 2) < reach / 4)] = \
                    ROLES.no_reflow
        noise = np.random.default_rng(seed).normal(0, 0.03, labels.shape)
        return Heart((LEVELS[labels] + noise).astype(np.float32), labels, spacing)
    return make


@pytest.fixture
def fold(tmp_path, monkeypatch):
    """A small preprocessed fold, see `tiny_fold`; several files have another one of their own."""
    from tiny_fold import write_tiny_fold

    monkeypatch.delenv("nnUNet_raw", raising=False)
    return write_tiny_fold(tmp_path)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A toy dataset that `toy_benchmark.go` benchmarks."""
    from toy_benchmark import write_workspace

    return write_workspace(tmp_path, monkeypatch)


@pytest.fixture
def log():
    """What a user was told: hand its `append` on."""
    return []


@pytest.fixture(autouse=True, scope="session")
def few_lesions():
    """Fits draw few lesions beforehand, which else takes longer than their few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_lgesynth.generators.inpaint.data.DRAWN_LESIONS", 40)
        yield


@pytest.fixture
def without_pictures(monkeypatch):
    """Fits draw no progress.png, which takes longer than their few steps."""
    monkeypatch.setattr("nnunet_lgesynth.generators.inpaint.train.draw_picture", lambda *_: None)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """nnU-Net's folders with `tiny_raw.write_phantom_dataset`; tests leave them as they are."""
    from tiny_raw import write_phantom_dataset
    from tiny_training import enter_nnunet

    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        enter_nnunet(patch, folder)
        write_phantom_dataset(folder)
    return folder


@pytest.fixture
def phantom_fold(world, monkeypatch):
    """Fold 0 of `world`, with nnU-Net's variables set."""
    from tiny_training import enter_nnunet

    from nnunet_lgesynth.dataset.case import Fold

    enter_nnunet(monkeypatch, world)
    return Fold.open(115, "2d", 0)
