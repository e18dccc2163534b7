"""Guidance arithmetic at its fixed points."""

import torch

from teefusion_core.guidance.cfg import cfg_scale_of, effective_guidance, guided

from .without_float64 import WithoutFloat64


def test_the_formula_of_the_paper_is_scale_one_plus_w():
    cond, uncond, w = torch.randn(2, 3), torch.randn(2, 3), 5.0
    torch.testing.assert_close(guided(cond, uncond, cfg_scale_of(w)), (1 + w) * cond - w * uncond)


def test_each_row_may_have_its_scale():
    cond, uncond, scale = torch.randn(3, 2, 2), torch.randn(3, 2, 2), torch.tensor([0.0, 1.0, 4.5])
    together = guided(cond, uncond, scale)
    for i in range(3):
        torch.testing.assert_close(together[i], guided(cond[i], uncond[i], float(scale[i])))


def test_effective_guidance_ignores_what_is_across_the_direction():
    uncond, cond = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    assert effective_guidance(torch.tensor([[3.0, 99.0]]), cond, uncond).tolist() == [1.5]


def test_effective_guidance_is_measured_on_devices_without_float64():
    cond, uncond = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    there = [x.as_subclass(WithoutFloat64) for x in (guided(cond, uncond, 2.5), cond, uncond)]
    torch.testing.assert_close(effective_guidance(*there), torch.full((2,), 2.5).double(), rtol=1e-5, atol=1e-5)


def test_effective_guidance_without_a_direction_is_nan():
    same = torch.ones(1, 2)
    assert effective_guidance(same, same, same).isnan().all()
