"""Laws of nearness: a copy lies at no distance, and further patients seldom stand out."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from nnunet_lgesynth.benchmark import nearest
from nnunet_lgesynth.benchmark.memorisation import Reference
from nnunet_lgesynth.benchmark.nearest import Library, Patch
from nnunet_lgesynth.config import AuditConfig

CONFIG = AuditConfig()
SIZE = 48
DISK = np.hypot(*(np.indices((SIZE, SIZE)) - (SIZE - 1) / 2)) < 7
DISK[24:, 24:] = False                                  # without symmetry


def patch(seed=0, mask=DISK, case="a", smooth=1.5) -> Patch:
    noise = np.random.default_rng(seed).standard_normal((SIZE, SIZE))
    image = ndimage.gaussian_filter(noise, smooth, mode="wrap")
    return Patch(case, 0, (image / image.std()).astype(np.float32), mask)


def moved(image, turn: float, mirror: bool, shift) -> np.ndarray:
    turned = ndimage.rotate(image, turn, reshape=False, order=3, mode="wrap")
    return np.roll(turned[:, ::-1] if mirror else turned, shift, (0, 1))


@pytest.mark.parametrize("turn, mirror, shift", [
    (0, False, (5, -7)), (10, False, (0, 3)), (-20, True, (-6, 0)), (0, True, (4, 4)),
    (5, False, (0, 0))])
def test_a_crop_that_is_turned_mirrored_and_shifted_lies_at_no_distance(turn, mirror, shift):
    one = patch()
    other = replace(one, image=moved(one.image, turn, mirror, shift))
    library = Library([other, patch(1), patch(2)])
    found = library.distances(one)
    # shifts are whole pixels, so turned crops match to half a pixel, between the steps less well
    most = {0: 1e-3, 5: 0.3}.get(turn, 0.2)
    assert found[0] < most and found[1:].min() > 0.5
    aligned = library.aligned(one, 0)
    assert np.sqrt(np.mean((aligned - one.image)[one.mask] ** 2)) < 1.2 * most


def test_what_lies_outside_the_mask_does_not_matter():
    one, library = patch(), Library([patch(k) for k in range(3)])
    other = replace(one, image=np.where(one.mask, one.image, 7 - 2 * one.image))
    assert np.array_equal(library.distances(one), library.distances(other))
    assert library.distances(one)[0] < 1e-3


def test_the_distance_is_the_least_over_all_shifts_that_keep_the_mask_inside(monkeypatch):
    monkeypatch.setattr(nearest, "TURNS", (0.0,))
    one, other = patch(), patch(1)
    rows, columns = np.nonzero(one.mask)
    least = np.inf
    for image, y, x in ((one.image, rows, columns), (one.image[:, ::-1], rows, SIZE - 1 - columns)):
        for i in range(-y.min(), SIZE - y.max()):
            for j in range(-x.min(), SIZE - x.max()):
                least = min(least, np.mean((image[y, x] - other.image[y + i, x + j]) ** 2))
    assert Library([other]).distances(one)[0] == pytest.approx(np.sqrt(least), abs=1e-3)


def patients(rng, count: int, each: int = 3, size: int = 20) -> np.ndarray:
    """Points (count * each, size) that stand for scars; those of one patient lie together."""
    return np.repeat(rng.standard_normal((count, size)), each, 0) + 0.4 * rng.standard_normal(
        (count * each, size))


def as_patches(points, each: int = 3) -> list[Patch]:
    masks = [np.arange(SIZE ** 2).reshape(SIZE, SIZE) < 20 + 7 * (k % 11)
             for k in range(len(points))]
    return [Patch(f"p{k // each:02d}", k % each, np.zeros(1), m) for k, m in enumerate(masks)]


def judged(reals, samples, config=CONFIG):
    known = as_patches(reals)
    return Reference.of(known, cdist(reals, reals), config).judge(
        as_patches(samples), cdist(samples, reals))


def test_further_patients_are_flagged_as_rarely_as_is_told():
    rng, share, failed = np.random.default_rng(0), [], 0
    for _ in range(30):
        found = judged(patients(rng, 21), patients(rng, 40, each=1))
        share.append(found.flagged / 40)
        failed += not found.passed
        assert found.expected >= 1 / 21 and len(found.reals) == 63 and found.twins == ()
    assert np.mean(share) == pytest.approx(1 / 21, abs=0.02)      # 20 patients to be held against
    assert failed <= 3


def test_near_copies_are_flagged_whatever_the_scale_and_name_their_patient():
    rng = np.random.default_rng(1)
    reals = patients(rng, 21)
    copies = reals[::2] + 0.05 * rng.standard_normal(reals[::2].shape)
    found, scaled = judged(reals, copies), judged(reals * 9, copies * 9)
    assert found.flagged == len(copies) > found.allowed and not found.passed
    assert [m.nearest_case for m in found.samples] == [p.case for p in as_patches(reals)[::2]]
    assert scaled.flagged == found.flagged
    assert [m.ratio for m in scaled.samples] == pytest.approx([m.ratio for m in found.samples])


def test_a_patient_who_is_there_twice_counts_once_and_hides_no_copy():
    rng = np.random.default_rng(2)
    reals = patients(rng, 21)
    reals[3:6] = reals[:3] + 0.05 * rng.standard_normal((3, reals.shape[1]))
    copies = reals[:3] + 0.05 * rng.standard_normal((3, reals.shape[1]))
    found = judged(reals, copies)
    assert found.twins == (("p00", "p01"),) and found.flagged == 3
    assert not [m for m in found.reals if m.case == "p00" and m.nearest_case == "p01"]
