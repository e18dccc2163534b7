"""The loss scale: a gradient that passes through float16 is that of float32, whatever its size."""

import math

import pytest
import torch

from teefusion_core.errors import TrainingDiverged
from teefusion_core.training.run_state import FIRST_LOSS_SCALE

from .loop_parts import SETTINGS, Stop, Toy, opened, result, run, same


class Narrow(torch.autograd.Function):
    """The identity, whose gradient is rounded to float16 at another size."""

    @staticmethod
    def forward(ctx, x, size):
        ctx.size = size
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient * ctx.size).half().float() / ctx.size, None


class HalfToy(Toy):
    def __init__(self, size):
        super().__init__()
        self.size, self.passes = size, 0

    def loss(self, example):
        self.passes += 1
        return Narrow.apply(super().loss(example), self.size)


PASSES = SETTINGS.steps * SETTINGS.gradient_accumulation
TOO_SMALL, TOO_LARGE = 2.0**-30, 4.0


@pytest.fixture(scope="module")
def exact():
    return result(*run())


def test_gradients_too_small_for_float16_survive(exact):
    assert not same(result(*run(toy=HalfToy(TOO_SMALL))), exact)
    assert same(result(*run(toy=HalfToy(TOO_SMALL), loss_scale=FIRST_LOSS_SCALE)), exact)


def test_gradients_too_large_for_float16_halve_the_scale(exact):
    toy = HalfToy(TOO_LARGE)
    assert same(result(*run(toy=toy, loss_scale=FIRST_LOSS_SCALE)), exact)
    assert toy.passes == PASSES + 2 * SETTINGS.gradient_accumulation  # the scale falls to 2**14 in the first step


def test_a_resumed_run_keeps_its_scale(exact, tmp_path):
    first, second = HalfToy(TOO_LARGE), HalfToy(TOO_LARGE)
    run(opened(tmp_path), toy=first, loss_scale=FIRST_LOSS_SCALE, should_stop=Stop(5))
    resumed = run(opened(tmp_path), toy=second, loss_scale=FIRST_LOSS_SCALE)
    assert same(result(*resumed), exact)
    assert first.passes + second.passes == PASSES + 2 * SETTINGS.gradient_accumulation


def test_a_gradient_that_no_scale_makes_finite_ends_the_run():
    toy = HalfToy(math.inf)
    with pytest.raises(TrainingDiverged, match="gradient norm nan"):
        run(toy=toy, loss_scale=FIRST_LOSS_SCALE)
    assert toy.passes == 17 * SETTINGS.gradient_accumulation
