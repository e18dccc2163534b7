"""Laws of the sharpener with the blend, over random prompts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from teefusion_core.prompts.arithmetic import blended, cosine
from teefusion_core.prompts.sharpener import Sharpener, sharpened

WIDTH = 8
with torch.random.fork_rng():
    torch.manual_seed(7)
    NETWORK = Sharpener(WIDTH, 8, 2).requires_grad_(False)

seeds, lengths, rows = st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 3)
weights = st.floats(-4, 4, width=32)


def texts(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, WIDTH, generator=generator) for shape in shapes]


@given(seeds, rows, lengths, lengths)
def test_alpha_zero_changes_nothing(seed, count, length, other):
    context, null = texts(seed, (count, length), (1, other))
    assert torch.equal(sharpened(NETWORK, context, null, alpha=0.0), context)


@given(seeds, rows, lengths, weights, weights)
def test_the_first_token_is_never_touched(seed, count, length, alpha, beta):
    context, negative, null = texts(seed, (count, length), (1, length), (1, length))
    out = sharpened(NETWORK, context, negative, alpha=alpha, beta=beta, null_BLW=null)
    assert torch.equal(out[:, 0], context[:, 0])


@given(seeds, rows, lengths, lengths, weights)
def test_the_change_is_linear_in_alpha(seed, count, length, other, alpha):
    context, null = texts(seed, (count, length), (1, other))
    change = sharpened(NETWORK, context, null) - context
    torch.testing.assert_close(
        sharpened(NETWORK, context, null, alpha=alpha), context + alpha * change, atol=1e-5, rtol=0
    )


@given(seeds, lengths, lengths)
def test_the_order_of_the_null_tokens_does_not_matter(seed, length, other):
    context, null = texts(seed, (1, length), (1, other))
    order = torch.randperm(other, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sharpened(NETWORK, context, null[:, order]), sharpened(NETWORK, context, null))


@given(seeds, lengths, lengths, weights, weights)
def test_terms_add_up_one_by_one(seed, length, other, first, second):
    base, one, two = texts(seed, (2, length), (1, other), (2, length))
    together = blended(base, [(first, one), (second, two)])
    torch.testing.assert_close(together, blended(blended(base, [(first, one)]), [(second, two)]))
    torch.testing.assert_close(together, blended(blended(base, [(second, two)]), [(first, one)]), atol=1e-5, rtol=1e-5)


@given(seeds, st.floats(0.01, 100))
def test_a_cosine_does_not_see_lengths(seed, scale):
    one, other = texts(seed, (2, 3), (1, 3))
    assert abs(cosine(scale * one, other) - cosine(one, other)) < 1e-5
    assert abs(cosine(one, other) - cosine(other, one)) < 1e-5
    assert abs(cosine(one, scale * one) - 1) < 1e-5
