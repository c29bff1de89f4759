"""Analytic short-axis LGE patients: hearts that can be drawn without a licence or a download.

A patient is a frozen set of anatomical numbers (`draw_patient`); `render` turns it into a stack as
a scanner would: tissues on a fine grid (3 x 3 x 2 samples a voxel), averaged for partial volume,
blurred, shaded by the receive coil, then Rician noise, gain, and 8-bit storage with the pedestal
that phase-sensitive LGE is stored with. `write_phantom` writes EMIDEC's folder layout.

Frame: slices from apex to base, rows to posterior, columns to the patient's left, so the RV lies
at small column indices and the anterior wall at small row indices. Angles in radians around the LV:
0 anterior, pi/2 septal, pi inferior, 3 pi/2 lateral. Wall depth: 0 endocardium, 1 epicardium.
Level: 0 apical tip, 1 base. Signal: 0 air, 1 LV blood. Lengths in mm.

Contrasts follow 70 EMIDEC patients, medians there with normal wall = 0 and blood = 1: scar 1.0
(5..95 %: 0.6..1.9), no-reflow 0.5 (-0.3..1.0), lung and air -1.0, fat 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_lgesynth.config import UserError

__all__ = ["PhantomPatient", "PhantomScar", "draw_patient", "render", "rician", "write_phantom"]

BACKGROUND, CAVITY, MYOCARDIUM, SCAR, NO_REFLOW = range(5)
FINE = 3                                  # samples a pixel side
SUBSLICES = (-0.2, 0.2)                   # of the slice distance, samples through the slice
LUNG, MUSCLE, LIVER = 0.1, 0.55, 0.75    # signals that vary little between patients
PATHOLOGICAL = (True, True, False, True, False)   # 60 %, in this order

# Coronary territories: angle in degrees, level of the centre, half length along the axis.
# LAD: anterior wall and septum, reaching the apex; RCA: inferior; LCX: inferolateral.
TERRITORIES = {"LAD": (50.0, 0.35, 0.60), "RCA": (165.0, 0.65, 0.50), "LCX": (245.0, 0.60, 0.50)}


@dataclass(frozen=True)
class PhantomScar:
    """An infarct: a dome that rises from the endocardium, highest at the territory's centre."""

    territory: str
    angle: float                # centre
    half_width: float           # rad, at mid-level; wider towards the apex
    level: float
    half_length: float
    transmurality: float        # height of the dome in wall depth; above 1 it meets the epicardium
    phases: tuple[float, float]  # of its ragged border
    signal: float
    core: float                 # share of the half width with no-reflow; 0 without
    core_signal: float


@dataclass(frozen=True)
class PhantomPatient:
    """All numbers that make one heart, its surroundings and its scanner."""

    shape: tuple[int, int, int]             # slices, rows, columns
    spacing: tuple[float, float, float]     # mm
    centre: tuple[float, float]             # row, column of the LV from the image centre
    tilt: tuple[float, float]               # shift of that centre from apex to base
    radius: float                           # epicardial, at the base
    wall: float                             # thickness at the base
    septal_excess: float                    # relative thickening of the septum
    outline: tuple[float, float, float, float]   # relative amplitude, phase of modes 2 and 3
    rotation: float                         # of the RV around the LV
    rv_size: float                          # relative to the LV
    papillary: tuple[tuple[float, float], ...]   # angle, radius of each muscle
    diaphragm: float                        # below the LV centre
    chest_radius: float
    fat_rim: float                          # epicardial fat
    myocardium: float                       # signals; blood is 1
    fat: float
    bias: tuple[float, ...]                 # log field: row, column, row², column², row x column
    noise: float
    gain: float
    pedestal: float
    scar: PhantomScar | None


def _draw_scar(rng: np.random.Generator, myocardium: float) -> PhantomScar:
    name = str(rng.choice(list(TERRITORIES), p=(0.5, 0.3, 0.2)))
    angle, level, half_length = TERRITORIES[name]
    transmurality = rng.uniform(0.45, 1.4)
    has_core = transmurality > 0.85 and rng.random() < 0.9
    contrast = 1 - myocardium
    return PhantomScar(
        territory=name, angle=math.radians(angle + rng.normal(0, 10)),
        half_width=math.radians(rng.uniform(40, 115)), level=level + rng.normal(0, 0.05),
        half_length=half_length * rng.uniform(0.75, 1.4), transmurality=transmurality,
        phases=tuple(rng.uniform(0, 2 * np.pi, 2).tolist()),
        signal=myocardium + contrast * float(np.clip(rng.normal(1.05, 0.25), 0.65, 1.7)),
        core=rng.uniform(0.4, 0.7) if has_core else 0.0,
        core_signal=myocardium + contrast * rng.uniform(-0.2, 0.45))


def draw_patient(rng: np.random.Generator, pathological: bool = True) -> PhantomPatient:
    """Draw one patient, with an infarct if `pathological`; see the module for the frame."""
    pixel = rng.uniform(1.5, 1.7)
    side = 4 * int(rng.integers(27, 30))
    radius = rng.uniform(31, 38)
    myocardium = rng.uniform(0.38, 0.52)
    return PhantomPatient(
        shape=(int(rng.integers(6, 10)), side, side),
        spacing=(round(rng.uniform(9, 11), 1), round(pixel, 3), round(pixel, 3)),
        centre=tuple(rng.uniform(-6, 6, 2).tolist()), tilt=tuple(rng.uniform(-8, 8, 2).tolist()),
        radius=radius, wall=rng.uniform(8.5, 12), septal_excess=rng.uniform(0, 0.2),
        outline=(rng.uniform(0.01, 0.06), rng.uniform(0, np.pi),
                 rng.uniform(0, 0.03), rng.uniform(0, 2 * np.pi)),
        rotation=rng.normal(0.15, 0.12), rv_size=rng.uniform(0.75, 0.95),
        papillary=((rng.normal(3.45, 0.12), rng.uniform(3, 4.8)),
                   (rng.normal(5.30, 0.12), rng.uniform(3, 4.8))),
        diaphragm=radius + rng.uniform(-1, 4), chest_radius=rng.uniform(92, 106),
        fat_rim=rng.uniform(2, 5), myocardium=myocardium, fat=rng.uniform(1.4, 1.9),
        bias=tuple(rng.normal(0, (0.08, 0.08, 0.05, 0.05, 0.05)).tolist()),
        noise=rng.uniform(0.03, 0.055), gain=rng.uniform(26, 48), pedestal=rng.uniform(95, 125),
        scar=_draw_scar(rng, myocardium) if pathological else None)


def _taper(level: float) -> float:
    """Size of the heart at this level, relative to the base."""
    return (1 - (1 - level) ** 3) ** 0.5


def _polar(patient: PhantomPatient, level: float, y, x):
    """Distance (mm) and angle around the LV centre of this level, and the wall depth."""
    dy = y - patient.centre[0] - patient.tilt[0] * (level - 0.5)
    dx = x - patient.centre[1] - patient.tilt[1] * (level - 0.5)
    radius, angle = np.hypot(dy, dx), np.arctan2(-dx, -dy)
    amplitude2, phase2, amplitude3, phase3 = patient.outline
    outer = patient.radius * _taper(level) * (1 + amplitude2 * np.cos(2 * angle - phase2)
                                              + amplitude3 * np.cos(3 * angle - phase3))
    wall = (patient.wall * (0.8 + 0.2 * level)
            * (1 + patient.septal_excess * np.cos(angle - np.pi / 2)))
    return dy, dx, radius, angle, outer, (radius - outer + wall) / wall


def _surroundings(patient: PhantomPatient, level: float, y, x):
    """Signal around the heart: lung, aorta, liver under the diaphragm, chest wall with ribs."""
    signal = np.full(y.shape, LUNG, np.float32)
    closer = 0.75 + 0.25 * level          # at the apex the heart touches diaphragm and chest
    dome = patient.centre[0] + patient.diaphragm * closer - 0.15 * x + 0.0022 * (x + 25) ** 2
    signal[y > dome] = MUSCLE                                       # the diaphragm itself
    signal[y > dome + 4] = LIVER
    if level > 0.55:                                                # descending aorta
        signal[(y - 62) ** 2 + (x - 52) ** 2 < 11 ** 2] = 1.0
    inward = np.hypot(y - 22, x - 30) - patient.chest_radius * closer
    signal[inward > 0] = MUSCLE
    ribs = np.abs(inward - 14) < 7 * np.sin(12 * np.arctan2(y - 22, x - 30))
    signal[(inward > 5) & ~ribs] = patient.fat
    return signal


def _right_ventricle(patient: PhantomPatient, level: float, dy, dx):
    """Distance outside the RV's cavity in mm (negative inside); LV not yet cut out.

    A rounded triangle, one corner on the free wall and two hidden behind the septum.
    """
    direction = np.pi / 2 + patient.rotation
    grow = min(0.35 + 1.1 * level, 1.0)
    away = patient.radius * _taper(level) * (0.75 + 0.2 * grow)
    along = -math.cos(direction) * dy - math.sin(direction) * dx - away
    across = math.sin(direction) * dy - math.cos(direction) * dx
    corners = 1 + 0.08 * np.cos(3 * np.arctan2(across, along))
    return np.hypot(along, across) - patient.radius * patient.rv_size * grow * corners


def _infarct(scar: PhantomScar, angle, level: float, depth):
    """Scar and no-reflow (boolean) by the wavefront from the endocardium outward."""
    width = scar.half_width * (1.25 - 0.5 * level)
    delta = np.abs((angle - scar.angle + np.pi) % (2 * np.pi) - np.pi) / width
    first, second = scar.phases
    ragged = (1 + 0.15 * np.sin(5 * angle + 6 * level + first)
              + 0.10 * np.sin(11 * angle - 9 * level + second))
    reach = (delta ** 2 + ((level - scar.level) / scar.half_length) ** 2) * ragged
    front = scar.transmurality * np.sqrt(np.clip(1 - reach, 0, None))
    core = ((reach < scar.core ** 2) & (depth > 0.12)
            & (depth < np.minimum(0.75 * front, 0.75)))
    return depth < front, core


def _heart_slice(patient: PhantomPatient, level: float, y, x):
    """Signal (float32) and label (uint8) of one thin slice on the fine grid."""
    signal = _surroundings(patient, level, y, x)
    labels = np.zeros(y.shape, np.uint8)
    dy, dx, radius, angle, outer, depth = _polar(patient, level, y, x)
    outside_rv = _right_ventricle(patient, level, dy, dx)
    cushion = 0.4 + 2.2 * np.clip(np.cos(angle - 0.9), 0, None) ** 2   # thick in front of the RV
    signal[np.minimum(radius - outer, outside_rv - 3) < patient.fat_rim * cushion] = (
        0.75 * patient.fat)
    signal[outside_rv < 3] = 0.5 * (patient.myocardium + MUSCLE)    # RV free wall
    signal[outside_rv < 0] = 0.97
    labels[depth <= 1] = MYOCARDIUM
    labels[depth < 0] = CAVITY
    signal[depth <= 1] = patient.myocardium
    signal[depth < 0] = 1.0
    waves = 14 * angle + 2 * np.sin(3 * angle + patient.outline[3]) + 7 * level
    trabeculae = np.sin(waves) > 0.2 - 2.5 * depth                  # ridges on the endocardium
    signal[(depth < 0) & trabeculae] = 0.5 * (1 + patient.myocardium)
    if 0.3 < level < 0.85:
        for at, size in patient.papillary:
            away = outer - 1.5 * patient.wall - 0.5 * size
            muscle = np.hypot(dy + away * math.cos(at), dx + away * math.sin(at)) < size
            signal[muscle & (depth < 0)] = patient.myocardium + 0.1
    if patient.scar is not None:
        wall = labels == MYOCARDIUM
        infarct, core = _infarct(patient.scar, angle[wall], level, depth[wall])
        labels[wall] = np.where(infarct, np.where(core, NO_REFLOW, SCAR), MYOCARDIUM)
        signal[labels == SCAR] = patient.scar.signal
        signal[labels == NO_REFLOW] = patient.scar.core_signal
    return signal, labels


def _average(fine: np.ndarray) -> np.ndarray:
    """Mean over the FINE x FINE samples of each pixel."""
    parts = (fine[row::FINE, column::FINE] for row in range(FINE) for column in range(FINE))
    return sum(part.astype(np.float32) for part in parts) / FINE ** 2


def _tissues(patient: PhantomPatient):
    """Partial-volume signal (Z, Y, X) and majority labels (Z, Y, X) without scanner effects."""
    slices, rows, columns = patient.shape
    fine_mm = patient.spacing[1] / FINE
    y = ((np.arange(rows * FINE) - (rows * FINE - 1) / 2) * fine_mm).astype(np.float32)
    x = ((np.arange(columns * FINE) - (columns * FINE - 1) / 2) * fine_mm).astype(np.float32)
    y, x = np.meshgrid(y, x, indexing="ij")
    signal = np.zeros(patient.shape, np.float32)
    votes = np.zeros((5, *patient.shape), np.float32)
    for z in range(slices):
        for offset in SUBSLICES:
            level = 0.08 + 0.92 * (z + 0.5 + offset) / slices
            thin, labels = _heart_slice(patient, level, y, x)
            signal[z] += _average(thin) / len(SUBSLICES)
            for label in range(5):
                votes[label, z] += _average(labels == label)
    labels = votes.argmax(0).astype(np.uint8)
    healthy = np.isin(labels, (BACKGROUND, MYOCARDIUM))
    beside = ndimage.binary_dilation(healthy, np.ones((1, 3, 3), bool))
    labels[(labels == NO_REFLOW) & beside] = SCAR          # no-reflow lies inside the scar
    return signal, labels


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of `signal` with complex Gaussian noise of `sigma` a channel; same shape."""
    real = signal + sigma * rng.standard_normal(signal.shape)
    return np.hypot(real, sigma * rng.standard_normal(signal.shape)).astype(np.float32)


def _coil(patient: PhantomPatient) -> np.ndarray:
    """Receive sensitivity (Y, X), smooth, near 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in patient.shape[1:]), indexing="ij")
    terms = (y, x, y * y, x * x, y * x)
    return np.exp(sum(b * t for b, t in zip(patient.bias, terms)))


def render(patient: PhantomPatient, rng: np.random.Generator):
    """Scan a patient: image (Z, Y, X) float32 in 0..255, labels (Z, Y, X) uint8, spacing (mm).

    `rng` draws what is not anatomy: lung vessels, blood and tissue texture, noise. Labels are
    EMIDEC's: 0 background, 1 cavity, 2 normal myocardium, 3 infarct, 4 no-reflow.
    """
    signal, labels = _tissues(patient)
    vessels = ndimage.gaussian_filter(1.0 * (rng.random(patient.shape) > 0.994), (0, 0.7, 0.7))
    signal += np.where(signal < 1.5 * LUNG, 2 * vessels, 0)
    texture = ndimage.gaussian_filter(rng.standard_normal(patient.shape), (0.3, 2.5, 2.5))
    signal *= 1 + 0.07 * texture / texture.std()
    signal = ndimage.gaussian_filter(signal, (0, 0.5, 0.5)) * _coil(patient)
    image = patient.pedestal + patient.gain * rician(signal, patient.noise, rng)
    return np.clip(np.round(image), 0, 255).astype(np.float32), labels, patient.spacing


def write_phantom(folder: str | Path, n_patients: int = 30, seed: int = 0) -> list[str]:
    """Write patients in EMIDEC's layout; returns the case names.

    `Case_P001/Images/Case_P001.nii.gz` and `Case_P001/Contours/...`; P pathological (3 of 5), N
    normal. Patient k depends on (seed, k) only, not on how many are written.
    """
    if n_patients < 1:
        raise UserError(f"A phantom needs at least 1 patient, not {n_patients}.")
    names = []
    for k in range(n_patients):
        pathological = PATHOLOGICAL[k % len(PATHOLOGICAL)]
        rng = np.random.default_rng([seed, k])
        image, labels, spacing = render(draw_patient(rng, pathological), rng)
        names.append(f"Case_{'P' if pathological else 'N'}{k + 1:03d}")
        for part, array in (("Images", image.astype(np.uint8)), ("Contours", labels)):
            path = Path(folder) / names[-1] / part / f"{names[-1]}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            stack = sitk.GetImageFromArray(array)
            stack.SetSpacing([float(s) for s in spacing[::-1]])
            sitk.WriteImage(stack, str(path))
    return names
