"""Laws of the analytic phantom: nested labels, LGE contrast, one seed a patient, EMIDEC's files."""

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.phantom import draw_patient, render, rician, write_phantom

SIDES = ndimage.generate_binary_structure(2, 1)


@pytest.fixture(scope="module")
def infarcts():
    """Rendered patients with scar, the first ones of seed 0: (patient, image, labels)."""
    return [_scan(k, pathological=True) for k in range(4)]


def _scan(k, pathological):
    rng = np.random.default_rng([0, k])
    patient = draw_patient(rng, pathological)
    image, labels, _ = render(patient, rng)
    return patient, image, labels


def test_some_infarcts_have_no_reflow_and_all_have_scar(infarcts):
    counts = [((labels == 3).sum(), (labels == 4).sum()) for _, _, labels in infarcts]
    assert all(scar > 20 for scar, _ in counts)
    assert 0 < sum(core > 0 for _, core in counts) < len(counts)


def test_no_reflow_never_touches_healthy_wall_or_background(infarcts):
    for _, _, labels in infarcts:
        for slice_labels in labels:
            core = slice_labels == 4
            rim = ndimage.binary_dilation(core, np.ones((3, 3))) & ~core
            assert set(np.unique(slice_labels[rim])) <= {1, 3}


def test_no_reflow_is_mostly_bordered_by_scar(infarcts):
    neighbours = []
    for _, _, labels in infarcts:
        for slice_labels in labels:
            core = slice_labels == 4
            neighbours.append(slice_labels[ndimage.binary_dilation(core, SIDES) & ~core])
    assert np.mean(np.concatenate(neighbours) == 3) > 0.7


def test_wall_is_a_closed_ring_around_one_cavity_in_every_slice(infarcts):
    for _, _, labels in infarcts:
        for slice_labels in labels:
            cavity, wall = slice_labels == 1, slice_labels >= 2
            assert ndimage.label(cavity, SIDES)[1] == 1
            assert ndimage.label(wall)[1] == 1
            assert (ndimage.binary_fill_holes(wall) == (cavity | wall)).all()


def test_heart_tapers_towards_the_first_slice(infarcts):
    for _, _, labels in infarcts:
        area = (labels > 0).sum((1, 2))
        assert area[0] < 0.6 * area[-1]
        assert area[0] == area.min()


def test_subendocardial_scar_starts_at_the_cavity():
    """The wavefront: of a thin scar, most pixels lie in the inner half of the wall."""
    patient, _, labels = _scan(3, pathological=True)
    assert patient.scar.transmurality < 0.6
    pixel = patient.spacing[1]
    inner = ndimage.distance_transform_edt(labels != 1, sampling=(1e6, pixel, pixel))
    outer = ndimage.distance_transform_edt(labels != 0, sampling=(1e6, pixel, pixel))
    depth = inner / (inner + outer)
    assert np.median(depth[labels == 3]) < 0.4 < np.median(depth[labels == 2])


def test_normal_patients_have_no_scar():
    patient, _, labels = _scan(2, pathological=False)
    assert patient.scar is None
    assert set(np.unique(labels)) == {0, 1, 2}


def test_contrast_is_that_of_late_enhancement(infarcts):
    """Normal wall nulled below blood; scar bright; no-reflow dark inside it; lung darkest."""
    scar, core, lung = [], [], []
    for _, image, labels in infarcts:
        wall, blood = (np.median(image[labels == v]) for v in (2, 1))
        assert wall < blood
        relative = (image - wall) / (blood - wall)
        scar.append(np.median(relative[labels == 3]))
        lung.append(np.percentile(relative[labels == 0], 5))
        if (labels == 4).sum() > 10:
            core.append(np.median(relative[labels == 4]))
    assert min(scar) > 0.4 and 0.7 < np.median(scar) < 1.4
    assert max(core) < np.median(scar) and np.median(core) < 0.7
    assert max(lung) < -0.3


def test_right_ventricle_lies_at_small_columns(infarcts):
    """Blood-like signal beside the wall is found left of it, lung right of it."""
    for patient, image, labels in infarcts:
        z = int(0.6 * patient.shape[0])
        rows, columns = np.nonzero(labels[z] >= 2)
        row, gap = int(rows.mean()), round(12 / patient.spacing[2])
        band = image[z, row - 3:row + 4]
        left = np.median(band[:, columns.min() - gap])
        right = np.median(band[:, min(columns.max() + gap, band.shape[1] - 1)])
        assert left > right + 0.3 * patient.gain


def test_partial_volume_blurs_the_endocardium():
    """Without noise, texture and coil, pixels at the blood border lie between the two tissues."""
    patient = dataclasses.replace(draw_patient(np.random.default_rng(3), False), noise=0.0,
                                  bias=(0.0,) * 5, gain=100.0, pedestal=0.0, papillary=())
    image, labels, _ = render(patient, np.random.default_rng(0))
    z = patient.shape[0] // 2
    edge = (labels[z] == 2) & ndimage.binary_dilation(labels[z] == 1, SIDES)
    between = (image[z] > 100 * patient.myocardium + 8) & (image[z] < 92)
    inside = ndimage.binary_erosion(labels[z] == 2, SIDES, 2)
    assert between[edge].mean() > 0.3 and between[inside].mean() < 0.05


def test_same_seed_same_scan_and_other_seed_another():
    _, first, first_labels = _scan(1, True)
    _, again, again_labels = _scan(1, True)
    _, other, _ = _scan(4, True)
    assert (first == again).all() and (first_labels == again_labels).all()
    assert first.shape != other.shape or (first != other).any()


def test_rician_noise_is_a_magnitude():
    """Never negative; mean sigma sqrt(pi / 2) without signal, Gaussian where signal is high."""
    rng = np.random.default_rng(0)
    air = rician(np.zeros(100_000), 0.2, rng)
    blood = rician(np.ones(100_000), 0.05, rng)
    assert air.min() >= 0
    assert air.mean() == pytest.approx(0.2 * np.sqrt(np.pi / 2), rel=0.02)
    assert blood.std() == pytest.approx(0.05, rel=0.02)


def test_intensities_are_eight_bit(infarcts):
    for patient, image, _ in infarcts:
        assert image.dtype == np.float32 and (image == np.round(image)).all()
        assert image.min() >= patient.pedestal - 1 and image.max() <= 255


def test_files_follow_emidec_and_do_not_depend_on_their_number(tmp_path):
    few, more = tmp_path / "few", tmp_path / "more"
    assert write_phantom(few, 1, seed=5) == ["Case_P001"]
    assert write_phantom(more, 3, seed=5) == ["Case_P001", "Case_P002", "Case_N003"]
    for name in ("Case_P001", "Case_N003"):
        image, contours = (sitk.ReadImage(str(more / name / part / f"{name}.nii.gz"))
                           for part in ("Images", "Contours"))
        assert image.GetSize() == contours.GetSize()
        assert image.GetSpacing() == contours.GetSpacing()
        assert image.GetDirection() == tuple(np.eye(3).ravel())   # x left, y posterior, as EMIDEC
        column, row, through = image.GetSpacing()
        assert 1.4 < column == row < 1.8 and 8 < through < 12
        assert (sitk.GetArrayFromImage(contours).max() >= 3) == (name == "Case_P001")
    files = [folder / "Case_P001" / "Images" / "Case_P001.nii.gz" for folder in (few, more)]
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in files]
    assert (arrays[0] == arrays[1]).all()


def test_no_patients_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 1 patient"):
        write_phantom(tmp_path, 0)
