"""Guidance over the course of sampling, against curves written out."""

import math

import pytest
import torch

from teefusion_core.errors import InvalidConfig
from teefusion_core.guidance.schedule import SHAPES, GuidanceSchedule, shares_of

HALF = {"start": 0.2, "end": 0.6}
CURVES = {
    "constant": lambda p: 1.0,
    "interval": lambda p: 1.0 if 0.199 <= p < 0.599 else 0.0,
    "linear up": lambda p: 0.0 if p < 0.2 else 1.0 if p > 0.6 else (p - 0.2) / 0.4,
    "linear down": lambda p: 1.0 if p < 0.2 else 0.0 if p > 0.6 else (0.6 - p) / 0.4,
    "cosine up": lambda p: 0.0 if p < 0.2 else 1.0 if p > 0.6 else 0.5 - 0.5 * math.cos(math.pi * (p - 0.2) / 0.4),
    "cosine down": lambda p: 1.0 if p < 0.2 else 0.0 if p > 0.6 else 0.5 + 0.5 * math.cos(math.pi * (p - 0.2) / 0.4),
    "list": lambda p: (0.5, 1.5, 1.0, 0.0)[min(int(4 * p), 3)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_its_curve(shape):
    schedule = GuidanceSchedule(shape, **HALF, low=0.5, shares=(0.5, 1.5, 1.0, 0.0) if shape == "list" else ())
    for place in [number / 97 for number in range(98)]:
        assert schedule.share(place) == pytest.approx(CURVES[shape](place))
        assert schedule.at(3.0, place) == pytest.approx(0.5 + 2.5 * CURVES[shape](place))
    torch.testing.assert_close(schedule.at(torch.tensor([0.5, 3.0]), 0.3)[0], torch.tensor(0.5))


@pytest.mark.parametrize("shape", SHAPES)
def test_as_text_and_back(shape):
    schedule = GuidanceSchedule(shape, **HALF, low=0.25, shares=(0.1, 2))
    again = GuidanceSchedule.of(schedule.json())
    assert [again.share(place / 50) for place in range(51)] == [schedule.share(place / 50) for place in range(51)]
    assert again.low == 0.25


def test_an_interval_may_reach_the_end_and_forgives_rounded_noise_levels():
    assert GuidanceSchedule("interval", 0.5, 1.0).share(1.0) == 1
    assert GuidanceSchedule("interval", 0.5, 0.75).share(0.5 - 6e-4) == 1
    assert GuidanceSchedule("interval", 0.5, 0.75).share(0.75 - 6e-4) == 0


@pytest.mark.parametrize("steps", (1, 4, 28, 50))
def test_a_list_gives_each_step_its_own_number(steps):
    schedule = GuidanceSchedule("list", shares=tuple(range(steps)))
    for step in range(steps):
        assert schedule.share((step + 0.5) / steps) == step


def test_extremes_are_where_the_share_is_smallest_and_largest():
    schedule = GuidanceSchedule("list", shares=(1.0, 0.25, 2.0, 1.0))
    low, high = schedule.extremes()
    assert (schedule.share(low), schedule.share(high)) == (0.25, 2.0)


@pytest.mark.parametrize("text, shares", [("", []), ("0, 1,1", [0, 1, 1]), ("0.5 1\n2", [0.5, 1, 2])])
def test_numbers_of_a_list(text, shares):
    assert shares_of(text) == shares


@pytest.mark.parametrize(
    "given, value",
    [
        ({"shape": "zigzag"}, "zigzag"),
        ({"start": 0.5, "end": 0.5}, "50"),
        ({"start": -0.1}, "-10"),
        ({"end": 1.5}, "150"),
        ({"low": -1.0}, "-1"),
        ({"low": math.nan}, "nan"),
        ({"shape": "list"}, "empty"),
        ({"shape": "list", "shares": (1, -2)}, "-2"),
        ({"shape": "list", "shares": (math.inf,)}, "inf"),
    ],
)
def test_what_is_no_curve_is_refused(given, value):
    with pytest.raises(InvalidConfig, match=value):
        GuidanceSchedule(**{"shape": "interval"} | given)


@pytest.mark.parametrize("given", [
    {"shape": "list", "start": 0.8, "end": 0.2, "shares": (1,)}, {"start": 0.8, "end": 0.2},
    {"shape": "interval", "shares": (-1,)},
])  # fmt: skip
def test_what_a_shape_does_not_use_is_not_checked(given):
    assert GuidanceSchedule(**given).share(0.5) == 1


def test_what_is_no_number_is_refused():
    with pytest.raises(InvalidConfig, match="a"):
        shares_of("0, a")
