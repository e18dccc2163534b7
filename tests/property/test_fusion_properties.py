"""Laws of the guidance term over random rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from teefusion_core.guidance.fusion import EXACT, OFFICIAL_BF16, guidance_rows, guidance_term, guidance_timestep

P, D = 5, 4
WEIGHTS = torch.Generator().manual_seed(7)
TIME, TEXT = (torch.randn(n, D, generator=WEIGHTS, dtype=torch.float64) for n in (3, P))

strengths = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=5)
seeds = st.integers(0, 2**31)


def term(pooled_BP, null_BP, timestep_B, gain=1.0):
    return guidance_term(
        pooled_BP, null_BP, timestep_B.double(),
        time_embed=lambda t: torch.stack((t.cos(), t.sin(), torch.ones_like(t)), -1) @ TIME,
        pooled_embed=lambda p: torch.tanh(p @ TEXT) + 0.3, gain=gain,
    )  # fmt: skip


def rows(seed, count):
    generator = torch.Generator().manual_seed(seed)
    pooled, null = torch.randn(2, count, P, generator=generator, dtype=torch.float64)
    return pooled, null, generator


@given(strengths, seeds)
def test_rows_do_not_see_each_other(w, seed):
    pooled, null, _ = rows(seed, len(w))
    timestep = guidance_timestep(guidance_rows(w), precision=EXACT)
    alone = [term(pooled[i : i + 1], null[i : i + 1], timestep[i : i + 1]) for i in range(len(w))]
    torch.testing.assert_close(term(pooled, null, timestep), torch.cat(alone))


@given(st.floats(0, 100), seeds, st.floats(-8, 8))
def test_the_term_is_linear_in_its_gain(w, seed, gain):
    pooled, null, _ = rows(seed, 2)
    timestep = guidance_timestep(guidance_rows(w))
    torch.testing.assert_close(term(pooled, null, timestep, gain), gain * term(pooled, null, timestep))


@given(st.floats(2**-10, 100))
def test_official_rounding_is_small_but_coarse(w):
    rounded = float(guidance_timestep(guidance_rows(w), precision=OFFICIAL_BF16))
    exact = float(guidance_timestep(guidance_rows(w), precision=EXACT))
    assert abs(rounded - exact) <= 2**-7 * 1.01 * exact
    again = guidance_timestep(guidance_rows(float(torch.tensor(w).bfloat16())), precision=OFFICIAL_BF16)
    assert float(again) == rounded
