"""The guidance term: constants, rounding, refusals."""

import math

import pytest
import torch

from teefusion_core.errors import InvalidConfig, ShapeMismatch
from teefusion_core.guidance.fusion import EXACT, OFFICIAL_BF16, guidance_rows, guidance_timestep, sinusoid
from teefusion_core.guidance.fusion import guidance_term as core_term

from .without_float64 import WithoutFloat64


def term(pooled, null, timestep, **options):
    embedders = dict(time_embed=lambda t: t[:, None].expand(-1, 3), pooled_embed=lambda p: p + 1)
    return core_term(pooled, null, timestep, **(embedders | dict(gain=0.5) | options))


@pytest.mark.parametrize(
    ("w", "rounded"),
    [(5.0, 4992), (7.5, 7488), (7.3, 7328), (3.0, 3008), (4.5, 4512), (6.0, 6016), (12.0, 12032), (8.0, 8000)],
)
def test_the_rounding_of_the_published_student(w, rounded):
    assert guidance_timestep(guidance_rows(w), precision=OFFICIAL_BF16).tolist() == [rounded]
    assert guidance_timestep(guidance_rows(w), precision=EXACT).tolist() == pytest.approx([1000 * w])


def test_a_guidance_on_a_device_without_float64():
    w_B = torch.tensor([1.5, 2.0])
    assert guidance_timestep(w_B.as_subclass(WithoutFloat64), precision=EXACT).tolist() == [1500, 2000]


def test_unknown_precision_is_refused():
    with pytest.raises(InvalidConfig, match="fp4"):
        guidance_timestep(guidance_rows(1.0), precision="fp4")


@pytest.mark.parametrize("w", [float("nan"), float("-inf"), -0.01, [2.0, float("nan")], []])
def test_guidance_that_is_no_strength_is_refused(w):
    with pytest.raises(InvalidConfig):
        guidance_rows(w)


def test_the_sinusoid_starts_with_the_fastest_cosine():
    wave = sinusoid(torch.tensor([0.0, 2.0]), 8)
    assert wave.dtype == torch.float32
    assert wave[0].tolist() == [1.0] * 4 + [0.0] * 4
    torch.testing.assert_close(wave[1, [0, 4]], torch.tensor([math.cos(2), math.sin(2)]))


def test_the_formula_row_by_row():
    out = term(torch.tensor([[3.0, 4.0, 5.0]]), torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([2.0, 10.0]))
    assert out.tolist() == [[3.0, 4.0, 5.0], [15.0, 20.0, 25.0]]


def test_widths_or_rows_that_differ_are_refused():
    with pytest.raises(ShapeMismatch, match="3.*4"):
        term(torch.ones(1, 3), torch.ones(1, 4), torch.ones(1))
    with pytest.raises(ShapeMismatch, match="3.*2"):
        term(torch.ones(3, 3), torch.ones(1, 3), torch.ones(2))
