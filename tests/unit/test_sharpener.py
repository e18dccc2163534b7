"""The DICE sharpener: shapes, rows, the kept token, refusals."""

import pytest
import torch

from teefusion_core.errors import InvalidConfig, ShapeMismatch
from teefusion_core.prompts.sharpener import HEADS, HIDDEN, Sharpener, sharpened

WIDTH = 16


@pytest.fixture
def network():
    return Sharpener(WIDTH, 8, 2).requires_grad_(False)


def tokens(rows, length, width=WIDTH):
    return torch.randn(rows, length, width)


def test_the_papers_sizes():
    """2 million parameters for SD1.5, 3 million for SDXL, 5 million for a width of 4096."""
    with torch.device("meta"):
        sizes = {width: sum(p.numel() for p in Sharpener(width).parameters()) for width in (768, 2048, 4096)}
    assert (HIDDEN, HEADS) == (512, 8)
    assert {width: round(size / 1e6) for width, size in sizes.items()} == {768: 2, 2048: 3, 4096: 5}


@pytest.mark.parametrize("sizes", [(0, 8, 2), (16, 0, 2), (16, 8, 0), (16, 8, 3)])
def test_impossible_sizes(sizes):
    with pytest.raises(InvalidConfig):
        Sharpener(*sizes)


def test_every_token_but_the_first_changes(network):
    context = tokens(2, 6)
    changed = (sharpened(network, context, tokens(1, 6)) != context).any(dim=-1)
    assert changed.tolist() == [[False] + 5 * [True]] * 2


def test_one_row_serves_all(network):
    context, against = tokens(3, 4), tokens(1, 5)
    spread = against.expand(3, -1, -1)
    torch.testing.assert_close(sharpened(network, context, against), sharpened(network, context, spread))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_prompt_stays(network, dtype):
    assert sharpened(network, tokens(1, 3).to(dtype), tokens(1, 3)).dtype == dtype


def test_the_negative_term(network):
    context, negative, null = tokens(2, 4), tokens(1, 4), tokens(1, 4)
    without = sharpened(network, context, negative)
    with_term = sharpened(network, context, negative, beta=0.5, null_BLW=null)
    torch.testing.assert_close((without - with_term)[:, 1:], 0.5 * (negative - null)[:, 1:].expand(2, -1, -1))


@pytest.mark.parametrize("wrong", [(1, 4, WIDTH + 1), (4, WIDTH)])
def test_another_width(network, wrong):
    for texts in ([tokens(1, 4), torch.randn(wrong)], [torch.randn(wrong), tokens(1, 4)]):
        with pytest.raises(ShapeMismatch, match=str(WIDTH)):
            network(*texts)


@pytest.mark.parametrize(
    ("context", "negative", "null"),
    [
        ((1, 5), (1, 4), (1, 4)), ((1, 4), (1, 5), (1, 4)), ((1, 4), (1, 4), (1, 5)), ((1, 4), (1, 4), (1, 4, 9)),
        ((2, 4), (2, 4), (3, 4)), ((1, 4), (1, 4), None),
    ],
)  # fmt: skip
def test_beta_pairs_tokens_so_it_is_stricter_than_the_network(network, context, negative, null):
    context, negative, null = (shape and tokens(*shape) for shape in (context, negative, null))
    with pytest.raises(ShapeMismatch if null is not None else InvalidConfig):
        sharpened(network, context, negative, beta=0.5, null_BLW=null)
    assert sharpened(network, context, negative, null_BLW=null).shape == context.shape
