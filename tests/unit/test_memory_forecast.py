"""The memory forecast without arithmetic, against what torch's own allocator reports."""

import pytest
import torch
from torch import nn

from teefusion_core.training.memory_forecast import LiveMemory, most_rows, passes_without_data, peak_of

from .allocator import allocated

CPU = torch.device("cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))


@pytest.fixture
def step(network):
    def run(rows):
        network(torch.randn(rows, 16, 64)).square().mean().backward()
        network.zero_grad()

    return run


@pytest.mark.parametrize("rows", [1, 2, 8, 100])
def test_equals_the_allocator_to_the_byte(network, step, rows):
    step(1)
    assert peak_of(lambda: step(rows), CPU, network, network) == allocated(lambda: step(rows))


def test_computes_nothing_and_leaves_nothing(network):
    class Remembers(nn.Module):
        def forward(self, x):
            self.last = x * network[0].weight.sum()
            return self.last

    remembers = Remembers()
    weights = list(network.parameters())
    before = torch.get_rng_state()
    # 4 TB of numbers, which no machine has
    peak = peak_of(lambda: network(remembers(torch.zeros(2**26, 256, 64))).sum().backward(), CPU, remembers, network)
    assert peak > 2**42 and not hasattr(remembers, "last")
    assert all(weight.grad is None for weight in network.parameters())
    assert all(a is b for a, b in zip(weights, network.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_number_that_code_reads_is_known_only_if_the_tensor_is(network):
    read = []
    real = torch.tensor(7.0)

    def work():
        made = torch.zeros(3)
        read.extend([float(real), float(made[0]), bool(made[0] > 0), int(made[0].long())])

    peak_of(work, CPU, network, network)
    assert read == [7.0, 1.0, True, 1]


def test_an_error_restores_the_weights(network):
    weights = list(network.parameters())
    with pytest.raises(ZeroDivisionError):
        peak_of(lambda: 1 / 0, CPU, network, network)
    assert all(a is b for a, b in zip(weights, network.parameters(), strict=True))


@torch.no_grad()
def test_passes_are_counted_and_not_computed(network):
    x = torch.randn(32, 16, 64)

    def passes():
        kept = [network(x) for _ in range(5)]
        return torch.stack(kept)

    with LiveMemory() as memory, passes_without_data(network, memory):
        out = passes()
    assert memory.peak == allocated(passes)
    assert torch.equal(out[0], out[1]) and not torch.equal(out[0], network(x)) and out.isfinite().all()
    assert "forward" not in vars(network)


def test_rows_that_fit():
    def peak(rows):
        return max(40 + 10 * rows, 20 * rows)

    for available in (49, 50, 69, 100, 120, 1000):
        rows = most_rows(peak, available, 100)
        assert rows == 0 if available < 50 else peak(rows) <= available and rows
    assert most_rows(lambda rows: 10 * rows, 65, 100) == 6
    assert [most_rows(peak, available, 1) for available in (49, 50)] == [0, 1]
    assert most_rows(peak, 2000, 100) == 100


class Coded(torch.Tensor):
    """As in loaders of quantised files: it cannot be made without arguments."""

    def __init__(self, values, *, coding):
        super().__init__()

    def __new__(cls, values, *, coding):
        return super().__new__(cls, values)


def test_classes_of_other_loaders_behave_as_without_a_forecast():
    weight = Coded(torch.ones(4, 4), coding="mine")
    assert type(torch.Tensor(weight * 2)) is torch.Tensor
    with LiveMemory() as memory:
        torch.ones(2, 4) @ torch.Tensor(weight * 2)
    assert memory.peak > 0
