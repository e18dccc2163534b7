"""Laws of the reflection operator over random schedules, against a literal twin."""

import literal_reflection as literal
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_flow import denoised_of

from teefusion_core.guidance.cfg import guided, proxy_prompt
from teefusion_core.guidance.flow import euler, sample
from teefusion_core.reflection.operator import core, exact, official, reflected, upper, upper_epsilon, window

BIASES = {"cond": 0.3, "null": -0.1, "weak cond": 0.15, "weak null": -0.35}
TIMESTEP = 90.0
"""From one level of the noise schedules to the next."""

some = settings(max_examples=25)
scales, rounds, seeds = st.floats(0, 4), st.integers(1, 2), st.integers(0, 2**31)


@st.composite
def schedules(draw, top):
    """Decreasing levels, ending at 0 or above."""
    inner = st.floats(0.02 * top, top)
    levels = draw(st.lists(inner, min_size=2, max_size=5, unique_by=lambda level: round(20 * level / top)))
    return [*sorted(levels, reverse=True), *([0.0] if draw(st.booleans()) else [])]


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(sigmas):
    return torch.tensor(sigmas, dtype=torch.float64)


def trajectory(step, x, sigmas):
    states = [x]
    sample(step, x, levels(sigmas), lambda index, sigma, state: states.append(state))
    return torch.stack(states)


def close(found, wanted):
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6


class Flow:
    """v(x, sigma) = tanh(0.8 x + bias + 0.5 sigma)."""

    top = 1.0
    down, up = staticmethod(literal.flow_down), staticmethod(literal.flow_up)

    def __init__(self, sigmas):
        self.inversions = {"exact": exact, "upper": upper, "core": core(len(sigmas) - 1)}

    def network(self, name):
        return lambda x, sigma: torch.tanh(0.8 * x + BIASES[name] + 0.5 * sigma)

    def denoiser(self, cond, null, cfg):
        def denoiser(x, sigma):
            return denoised_of(guided(self.network(cond)(x, sigma), self.network(null)(x, sigma), cfg), x, sigma)

        return denoiser

    def there(self, x, _):
        return x

    def back(self, states):
        return torch.stack(states)


class Noise:
    """eps(x, t) = tanh(0.8 x + bias + 0.0005 t) of the variance-preserving x, where the papers' loops live."""

    top = 14.0
    down, up = staticmethod(literal.noise_down), staticmethod(literal.noise_up)

    def __init__(self, sigmas):
        self.sigmas = sigmas
        self.inversions = {"exact": exact, "upper": upper_epsilon, "official": official(levels(sigmas))}

    def network(self, name):
        return lambda x, i: torch.tanh(0.8 * x + BIASES[name] - 0.0005 * TIMESTEP * i)

    def denoiser(self, cond, null, cfg):
        def denoiser(x, sigma):
            i = int((levels(self.sigmas) - sigma).abs().argmin())
            x_vp = x / (1 + sigma**2) ** 0.5
            return denoised_of(guided(self.network(cond)(x_vp, i), self.network(null)(x_vp, i), cfg), x, sigma)

        return denoiser

    def there(self, x, sigma):
        return x / (1 + sigma**2) ** 0.5

    def back(self, states):
        return torch.stack([x * (1 + sigma**2) ** 0.5 for x, sigma in zip(states, self.sigmas, strict=True)])


each_inversion = pytest.mark.parametrize(
    ("kind", "inversion"),
    [(Flow, "exact"), (Flow, "upper"), (Flow, "core"), (Noise, "exact"), (Noise, "upper"), (Noise, "official")],
)


def draw_window(data, kind, inversion):
    """Return a schedule with how many steps reflect; two conventions ask for levels that not every step has."""
    sigmas = data.draw(schedules(kind.top))
    most = len(sigmas) - 1
    if inversion == "core":
        most = sum(sigma > 1 / most + 1e-6 for sigma in sigmas[:-1])
    if inversion == "official":
        most -= 1
    return sigmas, data.draw(st.integers(0, most))


@each_inversion
@some
@given(data=st.data(), seed=seeds, high=scales, low=scales, rounds=rounds)
def test_z_sampling_is_the_literal_loop(kind, inversion, data, seed, high, low, rounds):
    sigmas, reflections = draw_window(data, kind, inversion)
    toy, x = kind(sigmas), randn(seed, 2, 3) * max(1.0, sigmas[0])
    step = reflected(
        euler(toy.denoiser("cond", "null", high)), toy.inversions[inversion](toy.denoiser("cond", "null", low)),
        until=window(levels(sigmas), reflections), rounds=rounds,
    )  # fmt: skip
    networks = toy.network("cond"), toy.network("null")
    arguments = (toy.there(x, sigmas[0]), sigmas, high, low, reflections, rounds, inversion)
    close(trajectory(step, x, sigmas), toy.back(literal.z_sampling(toy.down, toy.up, *networks, *arguments)))


@each_inversion
@some
@given(data=st.data(), seed=seeds, cfgs=st.tuples(scales, scales, scales), rounds=rounds)
def test_w2sd_is_the_literal_loop(kind, inversion, data, seed, cfgs, rounds):
    sigmas, reflections = draw_window(data, kind, inversion)
    toy, x = kind(sigmas), randn(seed, 2, 3) * max(1.0, sigmas[0])
    step = reflected(
        euler(toy.denoiser("cond", "null", cfgs[0])),
        toy.inversions[inversion](toy.denoiser("weak cond", "weak null", cfgs[1])),
        euler(toy.denoiser("cond", "null", cfgs[2])), until=window(levels(sigmas), reflections), rounds=rounds,
    )  # fmt: skip
    strong, weak = ((toy.network(f"{side}cond"), toy.network(f"{side}null")) for side in ("", "weak "))
    arguments = (toy.there(x, sigmas[0]), sigmas, cfgs, reflections, rounds, inversion)
    close(trajectory(step, x, sigmas), toy.back(literal.w2sd(toy.down, toy.up, strong, weak, *arguments)))


@some
@given(schedules(1.0), seeds, st.floats(-3, 3), rounds, st.sampled_from([exact, upper]))
def test_equal_sides_of_a_constant_field_are_plain_euler(sigmas, seed, value, rounds, inversion):
    def denoiser(x, sigma):
        return denoised_of(torch.full_like(x, value), x, sigma)

    x = randn(seed, 2, 3)
    step = reflected(euler(denoiser), inversion(denoiser), rounds=rounds)
    close(trajectory(step, x, sigmas), trajectory(euler(denoiser), x, sigmas))


@each_inversion
@some
@given(data=st.data(), seed=seeds, high=scales, low=scales, rounds=rounds)
def test_an_empty_window_is_plain_euler_bit_for_bit(kind, inversion, data, seed, high, low, rounds):
    sigmas = data.draw(schedules(kind.top))
    toy, x = kind(sigmas), randn(seed, 2, 3)
    plain = euler(toy.denoiser("cond", "null", high))
    up = toy.inversions[inversion](toy.denoiser("weak cond", "weak null", low))
    step = reflected(plain, up, until=window(levels(sigmas), 0), rounds=rounds)
    assert torch.equal(trajectory(step, x, sigmas), trajectory(plain, x, sigmas))


@some
@given(seeds, st.floats(-1, 10), st.floats(0, 10))
def test_chats_is_the_literal_combination(seed, alpha, s):
    win, lose = randn(seed, 2, 4)
    close(guided(win, lose, 1 + s), torch.stack(literal.chats(list(win), list(lose), s)))
    close(proxy_prompt(win, lose, alpha), torch.stack(literal.proxy_prompt(list(win), list(lose), alpha)))
