"""Distillation: draws, teacher, loss, the fused network."""

import math
from itertools import pairwise

import literal_distill
import pytest
import torch
from torch import nn

from teefusion_core.architectures import Architecture
from teefusion_core.distill import Draw, Draws, FusedNetwork, calibrated_gain, cfg_teacher, distillation_loss
from teefusion_core.errors import InvalidConfig
from teefusion_core.flow import denoised_of, euler, per_row, sample, secant
from teefusion_core.fusion import EXACT, OFFICIAL_BF16
from teefusion_core.guidance import guided

WIDTH, POOLED, WAVES = 6, 5, 8
TINY = Architecture(
    name="tiny", landmarks=("time",), time_mlp="time", pooled_embed="text", modulation="mix",
    sinusoid_width=WAVES, guidance_timestep_scale=1000.0, gain=0.1, source="test",
)  # fmt: skip


class TinyNetwork(nn.Module):
    """Velocity = A x modulated by vec, with the argument names of the host's networks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.time = nn.Sequential(nn.Linear(WAVES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.text = nn.Sequential(nn.Linear(POOLED, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.double()

    def forward(self, x_BCHW, timesteps, *, context=None, y=None):
        psi = torch.stack([literal_distill.waves(float(t), WAVES) for t in timesteps]).to(x_BCHW)
        vec_BD = self.time(psi) + self.text(y) + 0 * context.sum()
        return x_BCHW * self.mix(vec_BD).tanh()[:, :, None, None]


class LiteralNetwork:
    """The same for one row [C,H,W], written with matrices instead of layers."""

    def __init__(self, network):
        self.weights = network.state_dict()

    def layer(self, name, x):
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def mlp(self, name, x):
        hidden = self.layer(f"{name}.0", x)
        return self.layer(f"{name}.2", hidden / (1.0 + torch.exp(-hidden)))

    def embed_number(self, value):
        return self.mlp("time", literal_distill.waves(value, WAVES).double())

    def embed_text(self, pooled):
        return self.mlp("text", pooled)

    def __call__(self, x, sigma, pooled, extra):
        vec = self.embed_number(1000.0 * sigma) + self.embed_text(pooled) + extra
        modulation = torch.tanh(self.layer("mix", vec))
        return torch.stack([channel * m for channel, m in zip(x, modulation, strict=True)])


def prompts(rows):
    generator = torch.Generator().manual_seed(9)
    pooled, null = torch.randn(2, rows, POOLED, generator=generator).double()
    return pooled, null, torch.zeros(rows, 3, 2).double()


def fused(network=None, *, gain=0.7, precision=EXACT):
    return FusedNetwork(network or TinyNetwork(), TINY, gain=gain, scale=1000.0, precision=precision)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestDraws:
    LATENT = torch.randn(4000, 1, 2, 2)

    def test_w_fills_its_range(self):
        w_B = Draws(2.0, 14.0)(self.LATENT, seeded()).w_B
        assert 2.0 <= w_B.min() < 2.05 and 13.95 < w_B.max() <= 14.0
        assert abs(w_B.mean() - 8.0) < 0.3

    @pytest.mark.parametrize("num_steps", [1, 20, 50])
    def test_the_step_goes_down_inside_the_noise_levels(self, num_steps):
        draw = Draws(0.0, 4.0, num_steps=num_steps)(self.LATENT, seeded())
        assert (draw.sigma_to_B < draw.sigma_from_B).all()
        assert (draw.sigma_to_B >= 0).all() and (draw.sigma_from_B <= 1).all()

    def test_the_step_is_one_of_the_schedule_before_the_shift(self):
        draw = Draws(0.0, 4.0, shift=3.0, num_steps=20)(self.LATENT, seeded())
        t_from, t_to = (s / (3 - 2 * s) for s in (draw.sigma_from_B, draw.sigma_to_B))
        torch.testing.assert_close(t_to, (t_from - 0.05).clamp(min=0), rtol=1e-4, atol=1e-5)
        assert abs(t_from.mean() - 0.5) < 0.02, "t is uniform"

    def test_a_larger_shift_trains_at_higher_noise(self):
        low, high = (Draws(0.0, 4.0, shift=shift)(self.LATENT, seeded()).sigma_from_B for shift in (1.0, 3.0))
        assert (high >= low).all() and high.mean() - low.mean() > 0.1

    def test_x_is_the_latent_at_sigma(self):
        draw = Draws(0.0, 4.0)(torch.full((500, 3, 8, 8), 5.0), seeded())
        noise = (draw.x_BCHW - (1 - per_row(draw.sigma_from_B, draw.x_BCHW)) * 5.0) / per_row(
            draw.sigma_from_B, draw.x_BCHW
        )
        noise = noise[draw.sigma_from_B > 0.05]
        assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02

    def test_the_same_seed_draws_the_same(self):
        draws, latent = Draws(2.0, 14.0), torch.randn(5, 2, 4, 4)
        a, b, c = (draws(latent, seeded(seed)) for seed in (3, 3, 4))
        for name in ("x_BCHW", "sigma_from_B", "sigma_to_B", "w_B"):
            assert torch.equal(getattr(a, name), getattr(b, name))
            assert not torch.equal(getattr(a, name), getattr(c, name))

    def test_one_batch_equals_the_literal_algorithm(self):
        latent, settings = torch.randn(9, 2, 3, 3), dict(w_min=2.0, w_max=14.0, shift=3.0, num_steps=20)
        draw = Draws(**settings)(latent, seeded(5))
        for i, row in enumerate(literal_distill.draw(latent, generator=seeded(5), **settings)):
            mine = (draw.x_BCHW[i], draw.sigma_from_B[i], draw.sigma_to_B[i], draw.w_B[i])
            for a, b in zip(mine, row, strict=True):
                torch.testing.assert_close(a, torch.as_tensor(b, dtype=torch.float32), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_x_has_the_precision_of_the_latent_sigmas_do_not(self, dtype):
        draw = Draws(2.0, 14.0)(torch.randn(3, 2, 4, 4).to(dtype), seeded())
        assert draw.x_BCHW.dtype == dtype
        assert draw.sigma_from_B.dtype == draw.sigma_to_B.dtype == draw.w_B.dtype == torch.float32

    @pytest.mark.parametrize(
        "bad",
        [
            dict(w_min=-1.0), dict(w_max=2.0), dict(w_max=1.0), dict(w_min=math.nan), dict(w_max=math.inf),
            dict(num_steps=0), dict(shift=0.0), dict(shift=-3.0), dict(shift=math.nan), dict(shift=math.inf),
        ],
        ids=str,
    )  # fmt: skip
    def test_settings_that_make_no_sense_are_refused(self, bad):
        with pytest.raises(InvalidConfig, match="needs 0 <= w_min < w_max"):
            Draws(**dict(w_min=2.0, w_max=14.0) | bad)


def cond_field(x, sigma_B):
    return 0.6 * x + 0.1 * per_row(sigma_B, x)


def uncond_field(x, sigma_B):
    return -0.3 * x + 0.2


W = torch.tensor([0.0, 2.5, 7.0]).double()


def test_the_secant_of_the_guided_teacher_is_the_guided_velocity():
    x = torch.randn(3, 2, 4, 4).double()
    a, b = torch.tensor([1.0, 0.7, 0.2]).double(), torch.tensor([0.9, 0.5, 0.0]).double()
    expected = guided(cond_field(x, a), uncond_field(x, a), 1 + W)
    torch.testing.assert_close(secant(cfg_teacher(cond_field, uncond_field, W), x, a, b), expected, rtol=0, atol=1e-10)


def test_the_teacher_costs_two_passes():
    passes = []

    def counted(field):
        return lambda x, sigma: (passes.append(field), field(x, sigma))[1]

    one = torch.ones(3).double()
    cfg_teacher(counted(cond_field), counted(uncond_field), W)(torch.ones(3, 1, 1, 1).double(), one, 0.5 * one)
    assert passes == [cond_field, uncond_field]


def test_a_student_on_the_targets_lands_where_the_teacher_lands():
    """Fold both over a schedule of a linear field: the student knows nothing but the secants on its own path."""
    teacher = cfg_teacher(cond_field, uncond_field, W)
    x, sigmas = torch.randn(3, 2, 4, 4).double(), torch.linspace(1, 0, 9).double()
    below = {float(a): b for a, b in pairwise(sigmas)}

    def student(x, sigma):
        rows = sigma.expand(len(x))
        return denoised_of(secant(teacher, x, rows, below[float(sigma)].expand(len(x))), x, sigma)

    theirs = x
    for a, b in pairwise(sigmas):
        theirs = teacher(theirs, a.expand(3), b.expand(3))
    mine = sample(euler(student), x, sigmas)
    assert float((mine - theirs).abs().max()) < 1e-6
    assert float((theirs - x).abs().max()) > 0.1


class TestLoss:
    def test_it_is_zero_for_the_guided_velocity_itself(self):
        x, half = torch.randn(3, 2, 4, 4).double(), torch.full((3,), 0.5).double()
        draw = Draw(x, half, half - 0.1, W)
        teacher = cfg_teacher(cond_field, uncond_field, W)
        perfect = distillation_loss(lambda x, s: guided(cond_field(x, s), uncond_field(x, s), 1 + W), teacher, draw)
        off_by_two = distillation_loss(
            lambda x, s: guided(cond_field(x, s), uncond_field(x, s), 1 + W) + 2, teacher, draw
        )
        assert float(perfect) < 1e-20
        torch.testing.assert_close(float(off_by_two), 4.0)

    def test_only_the_student_gets_a_gradient(self):
        strength = torch.tensor(1.0, requires_grad=True)
        teacher_weight = torch.tensor(1.0, requires_grad=True)
        x, half = torch.ones(3, 1, 2, 2), torch.full((3,), 0.5)
        teacher = cfg_teacher(lambda x, s: teacher_weight * x, lambda x, s: 0 * x, W.float())
        distillation_loss(lambda x, s: strength * x, teacher, Draw(x, half, half - 0.1, W.float())).backward()
        assert strength.grad is not None and teacher_weight.grad is None
        # target is (1 + w) x, so d/ds mean (s - 1 - w)^2 = -2 mean w
        torch.testing.assert_close(strength.grad, -2 * W.float().mean())

    def test_one_batch_equals_the_literal_algorithm(self):
        teacher, student, rows = TinyNetwork(), TinyNetwork(), 7
        with torch.no_grad():
            student.mix.weight.mul_(1.2)
        pooled, null, context = prompts(rows)
        draw = Draws(2.0, 14.0)(torch.randn(rows, WIDTH, 2, 2).double(), seeded(5))
        base, learner = fused(teacher), fused(student)
        loss = distillation_loss(
            lambda x, s: learner(x, s, context, pooled, null, draw.w_B),
            cfg_teacher(lambda x, s: base(x, s, context, pooled), lambda x, s: base(x, s, context, null), draw.w_B),
            draw,
        )
        numbers = (t.tolist() for t in (draw.sigma_from_B, draw.sigma_to_B, draw.w_B))
        drawn = list(zip(draw.x_BCHW, *numbers, strict=True))
        expected = literal_distill.loss(LiteralNetwork(teacher), LiteralNetwork(student), drawn, pooled, null, 0.7)
        assert expected > 1e-2
        assert loss.item() == pytest.approx(expected, rel=1e-6)


class TestFusedNetwork:
    X = torch.randn(3, WIDTH, 2, 2).double()
    SIGMA = torch.tensor([0.9, 0.5, 0.1]).double()

    def test_it_is_the_base_without_guidance(self):
        network = TinyNetwork()
        pooled, null, context = prompts(3)
        expected = network(self.X, 1000 * self.SIGMA, context=context, y=pooled)
        assert torch.equal(fused(network)(self.X, self.SIGMA, context, pooled), expected)

    @pytest.mark.parametrize(("precision", "timestep"), [(EXACT, 7300.0), (OFFICIAL_BF16, 7328.0)])
    def test_it_is_the_formula_with_guidance(self, precision, timestep):
        network = TinyNetwork()
        pooled, null, context = prompts(3)
        slow = LiteralNetwork(network)
        out = fused(network, precision=precision)(
            self.X, self.SIGMA, context, pooled, null, torch.full((3,), 7.3).double()
        )
        for i in range(3):
            extra = 0.7 * slow.embed_number(timestep) * slow.embed_text(pooled[i] - null[i])
            torch.testing.assert_close(out[i], slow(self.X[i], float(self.SIGMA[i]), pooled[i], extra))

    def test_every_row_has_its_own_guidance(self):
        pooled, null, context = prompts(3)
        network, w_B = fused(), torch.tensor([0.0, 3.0, 9.0]).double()
        together = network(self.X, self.SIGMA, context, pooled, null, w_B)
        for i in range(3):
            row = slice(i, i + 1)
            alone = network(self.X[row], self.SIGMA[row], context[row], pooled[row], null[row], w_B[row])
            torch.testing.assert_close(together[row], alone)

    def test_no_hook_stays_behind(self):
        pooled, null, context = prompts(3)
        network = TinyNetwork()
        before = network(self.X, 1000 * self.SIGMA, context=context, y=pooled)
        fused(network)(self.X, self.SIGMA, context, pooled, null, W)
        with pytest.raises(RuntimeError, match="size of tensor"):
            fused(network)(self.X[:, :-1], self.SIGMA, context, pooled, null, W)
        assert not network.text._forward_hooks
        assert torch.equal(network(self.X, 1000 * self.SIGMA, context=context, y=pooled), before)

    def test_weights_can_be_swapped_as_a_whole(self):
        """The term is made of the swapped weights too, with their gradient."""
        pooled, null, context = prompts(3)
        student = fused()
        weights = {name: (p.detach() * 1.3).requires_grad_() for name, p in student.named_parameters()}
        arguments = (self.X, self.SIGMA, context, pooled, null, W)
        swapped = torch.func.functional_call(student, weights, arguments)
        scaled = TinyNetwork()
        with torch.no_grad():
            for parameter in scaled.parameters():
                parameter.mul_(1.3)
        torch.testing.assert_close(swapped, fused(scaled)(*arguments))
        swapped.square().sum().backward()
        assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights.values())


class TestCalibratedGain:
    ROWS = 64

    def rms(self, x):
        return float(x.square().mean().sqrt())

    @pytest.mark.parametrize("share", [0.05, 0.25, 1.0])
    def test_the_term_has_the_share_asked_for(self, share):
        network = TinyNetwork()
        pooled, null, _ = prompts(self.ROWS)
        w_B, sigma_B = torch.rand(2, self.ROWS, generator=seeded()).double()
        gain = calibrated_gain(network, TINY, pooled, null, 4 * w_B, sigma_B, share=share)
        slow = LiteralNetwork(network)
        rows = range(self.ROWS)
        vec = [slow.embed_number(1000 * float(sigma_B[i])) + slow.embed_text(pooled[i]) for i in rows]
        term = [gain * slow.embed_number(4000 * float(w_B[i])) * slow.embed_text(pooled[i] - null[i]) for i in rows]
        assert self.rms(torch.stack(term)) / self.rms(torch.stack(vec)) == pytest.approx(share, rel=1e-3)

    def test_it_is_a_plain_number(self):
        pooled, null, _ = prompts(2)
        gain = calibrated_gain(TinyNetwork(), TINY, pooled, null, W[1:], W[1:] / 10, share=0.25)
        assert type(gain) is float and gain > 0
