"""Training steps and trajectories whose matrix products are in bfloat16."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from .distillation_parts import example_of, precision_of, shaken

LATENTS = ("x_SBCHW", "target_SBCHW", "guidance_SBCHW")


@pytest.fixture
def step(pack, distil, monkeypatch):
    def make(mixed, device_can=True, **options):
        monkeypatch.setattr(precision_of(pack), "_multiplies_bfloat16", lambda device: device_can)
        example = example_of(distil(**options).trajectory(0))
        distillation = shaken(distil(mixed_precision=mixed, **options))
        with distillation.in_training():
            loss = distillation.loss(example)
            loss.backward()
        grads = {name: weight.grad for name, weight in distillation.student.update.named_parameters()}
        return loss.detach(), {name: grad for name, grad in grads.items() if grad is not None}

    return make


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"trainable": "everything"}], ids=str)
def test_a_step_is_that_of_float32_but_for_rounding(step, options):
    (exact, wanted), (loss, found) = step(False, **options), step(True, **options)
    assert loss.dtype == torch.float32 and 0 < abs(float(loss / exact) - 1) < 1e-2
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    for name, grad in found.items():
        if float(wanted[name].norm()) > 1e-3:
            assert float(cosine_similarity(grad.flatten(), wanted[name].flatten(), dim=0)) > 0.99, name


def test_without_the_arithmetic_nothing_changes(step):
    assert torch.equal(step(True, device_can=False)[0], step(False)[0])


@pytest.mark.parametrize("mixed", [True, False])
def test_a_trajectory_is_that_of_float32_but_for_rounding(pack, distil, monkeypatch, mixed):
    exact = distil().trajectory(0)
    monkeypatch.setattr(precision_of(pack), "_multiplies_bfloat16", lambda device: True)
    found = distil(mixed_precision=mixed).trajectory(0)
    for name in LATENTS:
        wanted_SBCHW, found_SBCHW = getattr(exact, name), getattr(found, name)
        assert found_SBCHW.dtype == torch.float32
        error = float((found_SBCHW - wanted_SBCHW).square().sum() / wanted_SBCHW.square().sum())
        assert 0 < error < 0.02 if mixed else error == 0, name
