"""A term on top of what a module returns, compiled or not."""

import pytest
import torch
from torch import nn

from teefusion_core.guidance.add_to_output import add_to_output

ROWS, WIDTH = 3, 4


class Network(nn.Module):
    """Something with a module to add to."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"text": nn.Sequential(nn.Linear(WIDTH, WIDTH))})
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BD):
        return self.last(self.parts["text"](x_BD).tanh())


@pytest.fixture
def network():
    return Network().requires_grad_(False)


@pytest.fixture
def x_BD():
    return torch.randn(ROWS, WIDTH)


@pytest.fixture
def term_BD():
    return torch.randn(ROWS, WIDTH)


def literally(network, x_BD, term_BD):
    return network.last((network.parts["text"](x_BD) + term_BD).tanh())


def test_rows_behind_the_term_stay_as_they_are(network, x_BD, term_BD):
    with add_to_output(network, "parts.text", term_BD[:2]):
        out = network(x_BD)
    assert torch.equal(out[2:], network(x_BD)[2:]) and not torch.equal(out[:2], network(x_BD)[:2])


def test_whoever_looks_for_its_parts_finds_them(network, term_BD):
    first = network.parts["text"][0]
    with add_to_output(network, "parts.text", term_BD):
        assert getattr(network.parts["text"], "0") is first
        with pytest.raises(AttributeError, match="gone"):
            _ = network.parts["text"].gone


def test_nothing_is_left_even_after_an_error(network, term_BD):
    text = network.parts["text"]
    with pytest.raises(ZeroDivisionError), add_to_output(network, "parts.text", term_BD):
        1 / 0  # noqa: B018
    assert network.parts["text"] is text


def test_a_network_compiled_before_gets_the_term(network, x_BD):
    """A forward hook is passed over here; every further term costs no compilation."""
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, backend=counted)
    assert torch.equal(compiled(x_BD), network(x_BD))
    for seed in range(4):
        term_BD = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))
        with add_to_output(compiled, "parts.text", term_BD):
            out = compiled(x_BD)
        assert torch.allclose(out, literally(network, x_BD, term_BD), atol=1e-6)
        assert torch.equal(compiled(x_BD), network(x_BD))
    assert len(graphs) == 2
