"""The crop's way there and back: nothing outside the feather changes, whatever is pasted."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_lgesynth.anatomy.caption import NO_ENHANCEMENT
from nnunet_lgesynth.anatomy.intensities import Intensities
from nnunet_lgesynth.anatomy.scar import NO_REFLOW, ScarSpec, paint_mask
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.generators.condition import (
    CONTROL_CHANNELS,
    Crop,
    Request,
    conditions,
    control_map,
    extract,
    feather,
    paste,
    paste_array,
)

PLAIN, RESAMPLED = (10.0, 1.4, 1.4), (10.0, 1.05, 1.8)
BOTH = pytest.mark.parametrize("spacing", [PLAIN, RESAMPLED], ids=["plain", "resampled"])
SPEC = ScarSpec("sector", 0.12, 0.8, angle=1.0, extent=1.6, slice=2, length=4,
                no_reflow=0.2)


def told(h, *, image=None, pixels=48, healthy=False, slices=(2,)):
    """Conditions of a scar painted into heart `h`."""
    image = h.image if image is None else image
    request = Request(paint_mask(h.anatomy, SPEC), 0.7, 0.2, healthy)
    intensities = Intensities.measure(image, h.labels, h.anatomy, h.roles)
    return conditions(image, h.anatomy, intensities, request, slices, pixels=pixels, mm=1.4,
                      feather_mm=4.0)


def noise(condition, seed=0):
    return np.random.default_rng(seed).normal(0, 5, condition.source.shape).astype(np.float32)


@BOTH
@pytest.mark.parametrize("centre", [None, (21, 24)], ids=["middle", "corner"])
def test_pixels_outside_the_feather_are_bit_identical(heart, spacing, centre):
    h = heart(spacing=spacing, size=72, centre=centre and (centre[0] * 1.4 / spacing[1],
                                                          centre[1] * 1.4 / spacing[2]))
    for condition, z in zip(told(h, pixels=64, slices=(1, 2)), (1, 2)):
        result = paste_array(h.image[z], noise(condition), condition)
        outside = condition.weight == 0
        distance = ndimage.distance_transform_edt(paint_mask(h.anatomy, SPEC)[z] == 0,
                                                  sampling=spacing[1:])
        assert outside[distance >= 4.0].all() and outside.any()
        assert result[outside].tobytes() == h.image[z][outside].tobytes()
        assert (result[~outside] != h.image[z][~outside]).mean() > 0.99
        assert np.isfinite(result).all() and np.isfinite(condition.source).all()


@BOTH
def test_mask_is_replaced_in_full(heart, spacing):
    """On the request itself the weight is 1: nothing of the source shines through."""
    h = heart(spacing=spacing, size=72)
    condition, = told(h)
    draft = np.full_like(condition.source, 2.0)
    result = paste_array(h.image[2], draft, condition)
    inside = paint_mask(h.anatomy, SPEC)[2] > 0
    assert np.allclose(result[inside], condition.intensities.invert(2.0), atol=1e-5)


@BOTH
def test_affine_changes_of_the_image_change_nothing(heart, spacing):
    h = heart(spacing=spacing, size=72)
    gain, offset = 37.5, -210.0
    (plain,), (changed,) = told(h), told(h, image=h.image * gain + offset)
    assert np.allclose(plain.source, changed.source, atol=2e-3)
    assert np.array_equal(plain.request, changed.request)
    result, other = (paste_array(i[2], noise(plain), c) for i, c in (
        (h.image, plain), (h.image * gain + offset, changed)))
    assert np.allclose(other, result * gain + offset, atol=2e-3 * gain)


def test_normal_wall_is_zero_and_scar_is_bright(heart):
    h = heart(scar=(4, 5, 0.8))
    values = Intensities.measure(h.image, h.labels, h.anatomy, h.roles).apply(h.image)
    assert abs(np.median(values[h.labels == 2])) < 1e-5
    assert np.median(values[h.labels == 3]) > 1
    low, high = np.percentile(values, [2, 98])
    assert 1.5 < high - low < 2.5


def test_intensities_need_a_heart_and_contrast(heart):
    h = heart()
    with pytest.raises(UserError, match="constant"):
        Intensities.measure(np.ones_like(h.image), h.labels, h.anatomy, h.roles)
    h.labels[:] = 0
    with pytest.raises(UserError, match="no normal myocardium"):
        Intensities.measure(h.image, h.labels, h.anatomy, h.roles)


def test_plain_window_copies_pixels(heart):
    h = heart()
    condition, = told(h)
    crop = condition.crop
    first = [round(c - (crop.pixels - 1) / 2) for c in crop.centre]
    window = h.image[2, first[0]:first[0] + 48, first[1]:first[1] + 48]
    assert np.array_equal(condition.source, condition.intensities.apply(window))
    full = torch.from_numpy(h.image[2])[None, None]
    cut = extract(full, [crop])
    covered = torch.from_numpy(crop.covers(full.shape[2:])).float()[None, None]
    pasted = paste(torch.zeros_like(full), cut, covered, [crop])
    assert torch.equal(pasted, full * covered)


def test_window_is_centred_on_the_heart(heart):
    for spacing in (PLAIN, RESAMPLED):
        h = heart(spacing=spacing, size=72)
        mask = torch.from_numpy((h.labels[:1] == 1).astype(np.float32))[None]
        crop = Crop.around(h.anatomy.lv_centre, spacing[1:], 48, 1.4)
        rows, columns = np.nonzero(extract(mask, [crop], mode="nearest")[0, 0].numpy())
        assert abs(rows.mean() - 23.5) < 0.8 and abs(columns.mean() - 23.5) < 0.8
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 1      # round: the crop's pixels are square


def test_resampling_follows_the_coordinates():
    """A linear ramp is sampled at the positions the crop's geometry says."""
    rows, columns = torch.meshgrid(torch.arange(40.), torch.arange(50.), indexing="ij")
    crop = Crop((20.3, 24.8), (0.7, 1.3), 16)
    values = extract(torch.stack([rows, columns])[None], [crop])[0]
    at_rows, at_columns = crop.slice_coordinates()
    assert torch.allclose(values[0], at_rows.float()[:, None].expand(16, 16), atol=1e-4)
    assert torch.allclose(values[1], at_columns.float()[None].expand(16, 16), atol=1e-4)


@BOTH
def test_extract_then_paste_gives_the_image_back(heart, spacing):
    """Exactly for a plain window; for a resampled one as well as a smooth image allows."""
    h = heart(spacing=spacing, size=72)
    smooth = ndimage.gaussian_filter(h.image[2], 3)
    condition, = told(h)
    draft = extract(torch.from_numpy(smooth)[None, None], [condition.crop])[0, 0].numpy()
    result = paste_array(smooth, condition.intensities.apply(draft), condition)
    assert np.abs(result - smooth).max() < (1e-6 if spacing is PLAIN else 0.02)


def test_border_is_repeated_outside_the_slice():
    image = torch.arange(36.).reshape(1, 1, 6, 6)
    crop = Crop((0.5, 0.5), (1.0, 1.0), 6)                  # rows and columns -2 .. 3
    values = extract(image, [crop])[0, 0]
    assert torch.equal(values[:3, :3], torch.zeros(3, 3)) and values[5, 5] == image[0, 0, 3, 3]
    assert crop.covers((6, 6)).sum() == 16


def test_shifted_crop_sees_the_same_pixels():
    canvas = torch.rand(1, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    for crop in (Crop((15.5, 13.5), (1.0, 1.0), 8), Crop((15.2, 13.7), (0.8, 1.1), 8)):
        part = extract(canvas[..., 4:, 6:], [crop.shifted((4, 6))])
        assert torch.allclose(part, extract(canvas, [crop]), atol=1e-5)


@pytest.mark.parametrize("step", [(1.0, 1.0), (0.8, 1.25)])
def test_paste_passes_the_gradient_where_it_writes(step):
    generator = torch.Generator().manual_seed(0)
    slices = torch.rand(2, 1, 20, 20, generator=generator, dtype=torch.float64)
    drafts = torch.rand(2, 1, 10, 10, generator=generator, dtype=torch.float64).requires_grad_()
    crops = [Crop((9.5, 10.5), step, 10)] * 2
    weights = torch.zeros_like(slices)
    weights[:, :, 8:12, 8:13] = torch.linspace(0.2, 1, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda d: paste(slices, d, weights, crops), [drafts])
    paste(slices, drafts, weights, crops).sum().backward()
    rows, columns = crops[0].slice_coordinates()
    margin = max(step)
    inside = ((rows >= 8) & (rows <= 11))[:, None] & ((columns >= 8) & (columns <= 12))[None]
    beyond = ((rows < 8 - margin) | (rows > 11 + margin))[:, None] | (
        (columns < 8 - margin) | (columns > 12 + margin))[None]
    assert (drafts.grad[:, 0, inside] > 0).all() and (drafts.grad[:, 0, beyond] == 0).all()


def test_feather_falls_from_one_to_zero():
    mask = np.zeros((31, 31), bool)
    mask[15, 15] = True
    weight = feather(mask, (1.0, 2.0), 4.0)
    assert weight[15, 15] == 1 and weight.dtype == np.float32
    assert (np.diff(weight[15:20, 15]) < 0).all() and weight[19, 15] == 0 == weight[15, 17]
    assert 0 < weight[15, 16] == weight[17, 15] < 1          # 2 mm away both
    assert not feather(mask & False, (1.0, 1.0), 4.0).any()


@BOTH
def test_control_map_does_not_show_what_it_hides(heart, spacing):
    condition, = told(heart(spacing=spacing, size=72))
    assert control_map(condition).shape == (CONTROL_CHANNELS, 48, 48)
    brighter = dataclasses.replace(
        condition, source=np.where(condition.region, condition.source + 3, condition.source))
    assert np.array_equal(control_map(condition), control_map(brighter))
    edges, image, region, contrast = control_map(condition)
    assert (image[condition.region] == 0).all() and region.any()
    assert np.array_equal(image[~condition.region], condition.source[~condition.region])
    assert condition.region[condition.request > 0].all()
    for value, asked in ((1, 0.7), (NO_REFLOW, 0.2)):
        assert np.allclose(contrast[condition.request == value], asked)
    assert (contrast[condition.request == 0] == 0).all()
    assert set(np.unique(edges)) == {0, 1}


@BOTH
def test_edges_are_closed(heart, spacing):
    condition, = told(heart(spacing=spacing, size=72))
    edges = control_map(condition)[0] > 0
    scar = condition.request > 0
    assert np.array_equal(ndimage.binary_fill_holes(edges), ndimage.binary_fill_holes(scar))
    assert edges.sum() < scar.sum()
    touching = dataclasses.replace(condition, request=np.ones_like(condition.request))
    assert control_map(touching)[0][[0, -1]].all()           # also along the crop's border


def test_healthy_request_asks_for_nothing_in_the_same_region(heart):
    (scar,), (healthy,) = (told(heart(), healthy=healthy) for healthy in (False, True))
    assert np.array_equal(scar.region, healthy.region) and not healthy.request.any()
    assert healthy.caption == NO_ENHANCEMENT != scar.caption
    assert not control_map(healthy)[[0, 3]].any()
    assert np.array_equal(control_map(scar)[1:3], control_map(healthy)[1:3])


@pytest.mark.parametrize("step", [1.0, 1.25])
def test_the_window_moves_no_further_than_a_request_needs(step):
    crop = Crop((40.0, 41.5) if step != 1 else (40.5, 41.5), (step, step), 32)
    mask = np.zeros((96, 96), bool)
    mask[30:45, 30:45] = True
    assert crop.holding(mask) == crop == crop.holding(np.zeros_like(mask))
    mask[60, 40] = True
    moved = crop.holding(mask)
    pixels = np.subtract(moved.centre, crop.centre) / step
    assert np.allclose(pixels, pixels.round()) and pixels[1] == 0
    assert moved.covers(mask.shape)[mask].all()
    nearer = dataclasses.replace(moved, centre=(moved.centre[0] - step, moved.centre[1]))
    assert not nearer.covers(mask.shape)[mask].all()
    mask[10, 40] = True                      # 51 rows are more than the window holds
    rows = np.flatnonzero(crop.holding(mask).covers(mask.shape).any(axis=1))
    assert abs((rows[0] - 10) - (60 - rows[-1])) <= 2


def test_a_request_far_from_the_lv_centre_is_in_its_crop(heart):
    condition = told(heart(), pixels=32)[0]
    near = told(heart(), pixels=48)[0]
    assert (condition.request > 0).sum() == (near.request > 0).sum()
    assert condition.crop.centre != near.crop.centre
