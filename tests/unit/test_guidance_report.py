"""A report's text with its plot: they show what was measured."""

import math
import re

import numpy as np
import pytest
import torch

from teefusion_core.evaluation.guidance_overlay import overlay
from teefusion_core.evaluation.guidance_report import BOX, HEADROOM, SIZE, GuidanceReport
from teefusion_core.evaluation.plot import OTHER, PALE, STRONG

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


def test_several_runs_have_a_line_each_over_the_same_steps():
    teacher, student = report([[3.0]] * 8), report([[2.0], [1.0]])
    image = overlay([teacher, student])
    top, bottom = BOX[1], BOX[3]
    y_of = {colour: inside(image, colour)[1] for colour in (OTHER, STRONG)}
    assert image.size == SIZE and all(len(y) for y in y_of.values())
    height = (bottom - top) / (3 * (1 + HEADROOM))
    lines_in_legend = y_of[OTHER][y_of[OTHER] > top + 4]
    assert bottom - lines_in_legend.mean() == pytest.approx(3 * height, abs=6)
    assert bottom - y_of[STRONG].max() == pytest.approx(1 * height, abs=6)
    x = inside(image, STRONG)[0]
    assert x.max() == pytest.approx((LEFT + RIGHT) / 2, abs=6), "its second step of two begins in the middle"


@pytest.mark.parametrize("moved", [[[math.nan]], [[-3.0, 900.0]] * 2])
def test_odd_runs_are_drawn_beside_others(moved):
    assert overlay([report(moved), report([[1.0]], broken="step 1")]).size == SIZE


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


def test_an_image_without_a_guidance_does_not_hide_the_range_of_the_others():
    one = report([[2.0, math.nan, 4.0], [2.0, 3.0, 4.0]])
    assert one.text().splitlines()[-2].endswith("| 3.000 (2.000 to 4.000) | 3.000 (2.000 to 4.000) |")
    x, _ = inside(one.plot(), PALE)
    assert x.max() - x.min() == pytest.approx(RIGHT - LEFT, abs=6), "the band has both steps"
