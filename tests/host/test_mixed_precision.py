"""Training steps whose matrix products are in bfloat16."""

import sys

import pytest
import torch
from torch.nn.functional import cosine_similarity

from .distillation_parts import example_of, shaken


@pytest.fixture
def step(pack, distil, monkeypatch):
    module = sys.modules[f"{pack.module.__name__}.teefusion_core.training.mixed_precision"]

    def make(mixed, device_can=True, **options):
        monkeypatch.setattr(module, "_multiplies_bfloat16", lambda device: device_can)
        distillation = shaken(distil(mixed_precision=mixed, **options))
        example = example_of(distillation.trajectory(0))
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
