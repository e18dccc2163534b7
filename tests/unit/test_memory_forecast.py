"""The memory forecast from two small trials, against what torch's own allocator reports."""

import pytest
import torch
from torch import nn

from teefusion_core.training.memory_forecast import Forecast, forecast

from .allocator import allocated


@pytest.fixture
def step():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))

    def run(rows):
        network(torch.randn(rows, 16, 64)).square().mean().backward()
        network.zero_grad()

    return run


@pytest.mark.parametrize("rows", [2, 3, 8, 100])
def test_equals_the_allocator_to_the_byte(step, rows):
    step(1)
    assert forecast(step).peak(rows) == allocated(lambda: step(rows))


def test_the_busiest_moment_may_change_with_the_rows():
    forecast = Forecast(two=[100, 10], three=[101, 20])
    assert [forecast.peak(rows) for rows in (2, 3, 40)] == [100, 101, 390]


def test_operations_that_change_in_number_leave_a_line_through_the_peaks():
    assert Forecast([10, 20], [10, 30, 5]).peak(5) == 50


def test_most_rows_that_fit():
    forecast = Forecast([30], [40], constant=5)
    assert forecast.most_rows(65, 100) == 5
    assert forecast.most_rows(10**9, 100) == 100
    assert forecast.most_rows(14, 100) == 0


class Coded(torch.Tensor):
    """As in loaders of quantised files: it cannot be made without arguments."""

    def __init__(self, values, *, coding):
        super().__init__()

    def __new__(cls, values, *, coding):
        return super().__new__(cls, values)


def test_classes_of_other_loaders_behave_as_without_a_forecast():
    weight = Coded(torch.ones(4, 4), coding="mine")
    assert type(torch.Tensor(weight * 2)) is torch.Tensor
    assert forecast(lambda rows: torch.ones(rows, 4) @ torch.Tensor(weight * 2)).peak(2) > 0
