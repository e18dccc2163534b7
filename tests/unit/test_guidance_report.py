"""A report's text with its plot: they show what was measured."""

import math
import re

import numpy as np
import pytest
import torch

from teefusion_core.evaluation.guidance_report import BOX, HEADROOM, SIZE, GuidanceReport
from teefusion_core.evaluation.plot import OTHER, STRONG

LEFT, TOP, RIGHT, BOTTOM = BOX


def report(moved_SB, predicted_SB=None, **options):
    moved_SB = torch.tensor(moved_SB, dtype=torch.float64)
    predicted_SB = moved_SB if predicted_SB is None else torch.tensor(predicted_SB, dtype=torch.float64)
    sigmas = [1 - step / len(moved_SB) for step in range(len(moved_SB))]
    return GuidanceReport("Mine", sigmas, predicted_SB, moved_SB, 8.0, 1.5, 4.0, 0.25, **options)


def inside(image, colour):
    """(x, y) of every pixel of a colour within the frame."""
    y, x = np.nonzero((np.asarray(image)[TOP : BOTTOM + 1] == colour).all(2))
    return x, y + TOP


def test_the_line_goes_where_the_numbers_go():
    x, y = inside(report([[0.0], [1.0], [2.0], [4.0]], [[5.0]] * 4).plot(), STRONG)
    first, last = y[x < LEFT + 4].mean(), y[x > RIGHT - 4].mean()
    top = 5 + HEADROOM * 5  # of the frame
    assert first == pytest.approx(BOTTOM, abs=4) and last == pytest.approx(BOTTOM - (BOTTOM - TOP) * 4 / top, abs=6)


def test_predictions_have_a_line_of_their_own():
    x, y = inside(report([[1.0]] * 3, [[3.0]] * 3).plot(), OTHER)
    assert x.max() - x.min() == pytest.approx(RIGHT - LEFT, abs=4) and y.max() - y.min() <= 3


@pytest.mark.parametrize(
    "moved",
    [[[2.0]], [[math.nan, math.nan]], [[1.0, math.nan], [2.0, 2.5]], [[0.0]] * 60, [[-3.0, 900.0]] * 2],
    ids=len,
)
def test_odd_numbers_are_drawn_too(moved):
    one = report(moved)
    assert one.plot().size == SIZE and len(one.text().splitlines()) == 6 + len(moved)


def test_the_text_has_every_number():
    lines = (
        report([[2.0, 3.0], [4.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]], clipped=0.0123, saturation=0.5).text().splitlines()
    )
    assert lines[0] == "Mine: 2 steps, 8 passes (4 per step), 1.50 s"
    numbers = [re.findall(r"\d+\.\d+|\d+", line) for line in lines[1:4]]
    assert numbers == [["3.50", "1.00"], ["1.23", "0.500"], ["4", "0.25"]]
    assert lines[-1] == "| 2 | 0.5 | 1.000 (1.000 to 1.000) | 4.500 (4.000 to 5.000) |"
