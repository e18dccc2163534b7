"""The picture of a training: it shows what it is given, whatever that is."""

import math

import numpy as np
import pytest

from teefusion_core.evaluation.plot import OTHER, STRONG
from teefusion_core.guidance.calibration import Calibration
from teefusion_core.training.preview import (
    CURVE,
    HELD_OUT,
    MARGIN,
    SIZE,
    SMOOTH,
    calibration_plot,
    loss_curve,
    preview_image,
)


def places(image, colour):
    """(x, y) of every pixel of a colour."""
    y, x = np.nonzero((np.asarray(image) == colour).all(2))
    return x, y


def test_a_falling_loss_falls_from_left_to_right():
    x, y = places(loss_curve([math.exp(-step / 20) for step in range(100)], 100), SMOOTH)
    first, last = y[x < x.min() + 5].mean(), y[x > x.max() - 5].mean()
    assert last - first > SIZE / 3 and np.corrcoef(x, y)[0, 1] > 0.95


def test_half_a_run_fills_half_of_the_picture():
    whole, half = (places(loss_curve([1.0 / (step + 1) for step in range(50)], steps), SMOOTH)[0] for steps in (50, 99))
    assert (half.max() - half.min()) == pytest.approx((whole.max() - whole.min()) / 2, abs=4)


def test_the_held_out_loss_is_drawn_where_it_was_measured():
    held_out = [(10, 1.0), (20, 0.5), (40, 0.25)]
    image = loss_curve([0.9 * 2 ** (-step / 20) for step in range(40)], 80, held_out)
    x, y = places(image, HELD_OUT)
    low = y > MARGIN + 20  # below the label
    assert x[low].max() - x[low].min() == pytest.approx((SIZE - 2 * MARGIN) * 30 / 79, abs=8)
    assert y[x == x[low].max()].max() > y[x == x[low].min()].min() + SIZE / 4


@pytest.mark.parametrize("losses", [[], [0.5], [0.5] * 9, [0.0, 1e9], [math.nan, 0.5, math.inf, 0.4]], ids=str)
def test_odd_losses_are_drawn_too(losses):
    image = loss_curve(losses, 20)
    assert image.size == (SIZE, SIZE)
    assert bool(len(places(image, SMOOTH)[0]) + len(places(image, CURVE)[0])) == any(map(math.isfinite, losses))


def test_the_calibration_is_plotted_beside_the_loss():
    teacher = [1.5, 3.0, 5.0]
    curve = Calibration([0.5, 2.0, 4.0], [0.7, 2.9, 5.5], teacher, [1.3, 2.2, 3.0], teacher)
    image = calibration_plot(curve)
    for column, colour in ((teacher, STRONG), (curve.before, OTHER)):
        x, y = places(image, colour)
        inside = (y > 2 * MARGIN) & (y < SIZE - MARGIN - 2)
        slope = np.polyfit(x[inside], -y[inside], 1)[0]
        assert slope == pytest.approx((column[-1] - column[0]) / (5.0 - 1.3), rel=0.2), "steeper after than before"
    both = preview_image(loss_curve([1.0, 0.5], 2), None, [], rows=1, calibration=curve)
    assert both.size == (2 * SIZE, SIZE) and np.array_equal(np.asarray(both)[:, SIZE:], np.asarray(image))


def test_pictures_stand_in_rows_of_prompts():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
    pictures = np.broadcast_to(colours[:, None, None], (4, 8, 8, 3))
    image = preview_image(loss_curve([1.0, 0.5], 4), pictures, ["w 1", "w 5"], rows=2)
    centres = [(np.mean(x), np.mean(y)) for x, y in (places(image, tuple(colour)) for colour in colours)]
    (red, green, blue, yellow) = centres
    assert SIZE < red[0] < green[0] and red[1] == green[1] < blue[1] == yellow[1] and red[0] == blue[0]
