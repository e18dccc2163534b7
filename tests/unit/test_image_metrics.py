"""Picture metrics against literal twins, at pictures with known answers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from lab.benches._image_metrics import contrast, diversity, psnr, ssim
from teefusion_core.errors import ShapeMismatch
from teefusion_core.evaluation.image_metrics import clipping, saturation


def some(num=3, size=20, seed=0):
    return torch.rand(num, size, size, 3, generator=torch.Generator().manual_seed(seed))


def test_saturation_pixel_by_pixel():
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    literal = np.mean([(max(p) - min(p)) / 255 for row in image.tolist() for p in row])
    for picture in (image, Image.fromarray(image), np.stack((image, image))):
        assert saturation(picture) == pytest.approx(literal, rel=1e-9)


def test_clipping_counts_both_ends():
    picture = np.array([[[0, 1, 254], [255, 255, 128]]], dtype=np.uint8)
    assert clipping(picture) == clipping(Image.fromarray(picture)) == 0.5


def test_contrast_pixel_by_pixel():
    images = some()
    luma = [[0.2126 * r + 0.7152 * g + 0.0722 * b for row in image.tolist() for r, g, b in row] for image in images]
    np.testing.assert_allclose(contrast(images), [np.std(values) for values in luma], rtol=1e-9)


def test_psnr_of_a_known_difference():
    a = torch.full((2, 4, 4, 3), 0.5)
    b = torch.stack((a[0] + 0.1, a[1]))
    assert psnr(a, b).tolist() == [pytest.approx(20, abs=1e-4), math.inf]


def literal_ssim(a_HW, b_HW):
    """Wang et al. window by window, in plain numpy."""
    offsets = np.arange(-5, 6)
    weight = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    found = []
    for row in range(5, a_HW.shape[0] - 5):
        for column in range(5, a_HW.shape[1] - 5):
            x, y = (im[row - 5 : row + 6, column - 5 : column + 6] for im in (a_HW, b_HW))
            mx, my = (weight * x).sum(), (weight * y).sum()
            vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
            cov = (weight * (x - mx) * (y - my)).sum()
            top = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
            found.append(top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    return np.mean(found)


def test_ssim_window_by_window():
    a = some()
    b = (a + 0.2 * some(seed=1)).clamp(0, 1)
    luma = np.array([0.2126, 0.7152, 0.0722])
    literal = [literal_ssim(x.double().numpy() @ luma, y.double().numpy() @ luma) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b), literal, rtol=1e-9)
    assert (ssim(a, b) < 0.99).all()


def test_diversity_pair_by_pair():
    images = torch.stack([some(seed=seed) for seed in range(3)])
    pairs = [(0, 1), (0, 2), (1, 2)]
    literal = [
        np.mean([np.sqrt(np.mean((images[i, b] - images[j, b]).double().numpy() ** 2)) for i, j in pairs])
        for b in range(3)
    ]
    np.testing.assert_allclose(diversity(images), literal, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "images"),
    [
        (contrast, [torch.zeros(2, 16, 8, 8)]), (psnr, [some(), some(size=21)]),
        (ssim, [some(size=10), some(size=10)]), (diversity, [some()[None]]),
    ],
)  # fmt: skip
def test_what_is_no_picture_or_does_not_fit_is_refused(call, images):
    with pytest.raises(ShapeMismatch):
        call(*images)
