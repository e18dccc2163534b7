"""Figures of pictures in closed form."""

import pytest
import torch

from teefusion_core.pixels import clipped, saturation


def test_values_at_the_limits_are_clipped():
    values = torch.tensor([0.0, 0.001, 0.003, 0.5, 0.997, 0.999, 1.0, 0.25, 0.75]).reshape(1, 1, 3, 3)
    assert clipped(values) == pytest.approx(4 / 9)


def test_clipping_is_what_a_file_shows():
    values = torch.rand(2, 16, 16, 3) * 1.2 - 0.1
    stored = (values.clamp(0, 1) * 255).round()
    assert clipped(values) == pytest.approx(float(((stored == 0) | (stored == 255)).float().mean()))


@pytest.mark.parametrize(("colour", "found"), [((0.4, 0.4, 0.4), 0.0), ((1.0, 0.0, 0.5), 1.0), ((0.2, 0.5, 0.4), 0.3)])
def test_saturation(colour, found):
    assert saturation(torch.tensor(colour).expand(1, 4, 4, 3)) == pytest.approx(found)
