"""Compare Grid on the host's IMAGE."""

import numpy as np
import pytest
import torch


@pytest.fixture
def grid(pack):
    return pack.nodes["CompareGrid"].execute


def test_pictures_arrive_as_they_are_saved(grid):
    images = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    (out,) = grid(images, "", "", "", 0).args
    stored = np.clip(255.0 * images[0].numpy(), 0, 255).astype(np.uint8)  # as SaveImage has it
    assert out.dtype == torch.float32 and np.array_equal((out[0, 24:40, 24:40].numpy() * 255).round(), stored)


def test_alpha_is_left_out(grid):
    images = torch.ones(1, 16, 16, 4)
    assert grid(images, "", "", "", 16).args[0].shape[-1] == 3


def test_inputs_that_are_not_connected_take_no_column(grid):
    images = torch.zeros(2, 16, 16, 3)
    two = grid(images, "a\nb", "x\ny", "", 32, images_b=images).args[0]
    assert torch.equal(two, grid(images, "a\nb", "x\ny", "", 32, images_e=images).args[0])
    assert two.shape[2] > grid(images, "a\nb", "x", "", 32).args[0].shape[2]


def test_errors_carry_the_name_of_the_node(grid, pack):
    with pytest.raises(pack.errors.InvalidConfig, match="^Compare Grid: images_a.*2.*3"):
        grid(torch.zeros(2, 8, 8, 3), "a\nb\nc", "", "", 32)


def test_grey_images_and_alpha_are_drawn_as_they_are_seen(grid):
    grey = torch.full((1, 8, 8, 1), 0.5)
    assert torch.equal(grid(grey, "", "", "", 8).args[0], grid(grey.expand(-1, -1, -1, 3), "", "", "", 8).args[0])
    clear = torch.zeros(1, 8, 8, 4)
    assert torch.equal(grid(clear, "", "", "", 8).args[0], grid(torch.ones(1, 8, 8, 3), "", "", "", 8).args[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_nan_is_named(grid, pack, value):
    broken = torch.zeros(3, 8, 8, 3)
    broken[1, 0, 0, 0] = value
    with pytest.raises(pack.errors.InvalidConfig, match="^Compare Grid: images_c has NaN.* in image 2;"):
        grid(torch.zeros(3, 8, 8, 3), "", "", "", 8, images_c=broken)
    with pytest.raises(pack.errors.ShapeMismatch, match=r"^Compare Grid: images_a has the shape \[8, 8, 3\]"):
        grid(torch.zeros(8, 8, 3), "", "", "", 8)
