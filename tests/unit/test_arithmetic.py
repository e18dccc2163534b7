"""Arithmetic of prompts: closed forms, lengths, refusals."""

import pytest
import torch

from teefusion_core.errors import ShapeMismatch
from teefusion_core.prompts.arithmetic import blended, cosine


def test_the_sum():
    base, add, subtract = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert blended(base, [(0.5, add), (-1.0, subtract)]).tolist() == [[6.0, -2.0]]


def test_a_shorter_text_counts_as_zeros_past_its_end():
    short, long = torch.ones(1, 2, 3), torch.full((1, 3, 3), 2.0)
    expected = torch.tensor([3.0, 3.0, 2.0])[None, :, None].expand(1, 3, 3)
    assert torch.equal(blended(short, [(1.0, long)]), expected)
    assert torch.equal(blended(long, [(1.0, short)]), expected)


def test_inputs_are_not_modified():
    base, add = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    blended(base, [(1.0, add)])[:] = 9
    assert not base.any() and bool((add == 1).all())


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([[1.0, 0.0]], [[3.0, 0.0]], 1), ([[1.0, 0.0]], [[0.0, 2.0]], 0), ([[1.0, 0.0]], [[-1.0, 0.0]], -1),
        ([[0.0]], [[0.0]], 0), ([[[3.0], [4.0]]], [[[1.0]]], 0.6), ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], 0.5),
    ],
    ids=str,
)  # fmt: skip
def test_the_cosine_of_all_tokens_is_the_mean_over_rows(one, other, expected):
    assert cosine(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 2, 5), (1, 4), (3, 2, 4)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ShapeMismatch):
        blended(torch.zeros(2, 2, 4), [(1.0, torch.zeros(shape))])
    with pytest.raises(ShapeMismatch):
        cosine(torch.zeros(2, 2, 4), torch.zeros(shape))
