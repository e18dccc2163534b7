"""Noise levels of a trajectory, what the student shall learn there, what the loss says."""

import pytest
import torch
from literal_flow import denoised_of, shifted

from teefusion_core.errors import InvalidConfig
from teefusion_core.guidance.cfg import guided
from teefusion_core.guidance.flow import euler, sample
from teefusion_core.reflection.operator import exact, reflected
from teefusion_core.training import targets
from teefusion_core.training.targets import CLEAN, SECANT, TIMES, Example, Trajectory, levels, replay_loss, target_of

ROWS, STEPS = 5, 6
SCHEDULE = shifted(torch.linspace(1, 0, STEPS + 1), 3.0)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def randn(seed, *shape):
    return torch.randn(*shape, generator=seeded(seed))


class TestLevels:
    @pytest.mark.parametrize("time", TIMES)
    def test_they_go_down_from_end_to_end(self, time):
        for number in range(20):
            sigmas = levels(SCHEDULE, time, seeded(number))
            assert len(sigmas) == STEPS + 1 and bool((sigmas.diff() < 0).all())
            assert (float(sigmas[0]), float(sigmas[-1])) == (1.0, 0.0)

    def test_grid_is_the_schedule(self):
        assert torch.equal(levels(SCHEDULE, targets.SCHEDULE_LEVELS, seeded()), SCHEDULE)

    def test_between_keeps_within_half_a_step_of_the_schedule(self):
        all_levels = torch.stack([levels(SCHEDULE, targets.JITTERED, seeded(n)) for n in range(200)])
        for step in range(1, STEPS):
            high, low = ((SCHEDULE[step] + SCHEDULE[step + move]) / 2 for move in (-1, 1))
            here = all_levels[:, step]
            assert bool((here <= high + 1e-6).all() and (here >= low - 1e-6).all())
            assert float(here.max() - here.min()) > 0.8 * float(high - low)

    def test_even_covers_all_levels_alike(self):
        all_levels = torch.stack([levels(SCHEDULE, targets.UNIFORM, seeded(n)) for n in range(500)])[:, 1:-1]
        share = torch.histc(all_levels, STEPS, 0, 1)[1:-1] / len(all_levels)
        assert float(share.min()) > 0.8 and float(share.max()) < 1.2

    def test_a_single_step_is_the_whole_way(self):
        for time in TIMES:
            assert levels(torch.tensor([1.0, 0.0]), time, seeded()).tolist() == [1.0, 0.0]


class TestSubdivided:
    @pytest.mark.parametrize("parts", [1, 4])
    def test_the_levels_of_the_schedule_stay_and_others_come_between(self, parts):
        levels_S = targets.subdivided(SCHEDULE, parts)
        assert torch.equal(levels_S[::parts], SCHEDULE) and len(levels_S) == STEPS * parts + 1
        for step in range(STEPS):
            between = levels_S[step * parts : (step + 1) * parts + 1].diff()
            assert torch.allclose(between, (SCHEDULE[step + 1] - SCHEDULE[step]) / parts, atol=1e-6)


class TestTargets:
    STATES = [randn(n, 2, 1, 3, 3) for n in range(STEPS + 1)]
    LAST = [randn(50 + n, 2, 1, 3, 3) for n in range(STEPS)]

    def test_euler_on_the_secant_lands_where_the_teacher_lands(self):
        for step in range(STEPS):
            target = target_of(SECANT, self.STATES, self.LAST, SCHEDULE, step)
            landed = self.STATES[step] + (SCHEDULE[step + 1] - SCHEDULE[step]) * target
            torch.testing.assert_close(landed, self.STATES[step + 1])

    @pytest.mark.parametrize("teacher", ["CFG", "Z-Sampling", "W2SD"])
    def test_a_student_that_has_learned_a_linear_field_ends_where_its_teacher_does(self, teacher):
        width, sigmas = 5, torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
        fields = {name: randn(n, width, width).double() / 5 for n, name in enumerate(("prompt", "null", "weak"))}

        def at(scale, prompt="prompt"):
            field = guided(fields[prompt], fields["null"], scale)
            return lambda x, sigma: denoised_of(x @ field, x, sigma)

        weak = {"CFG": None, "Z-Sampling": at(0.0), "W2SD": at(1.0, "weak")}[teacher]
        step = euler(at(5.5)) if weak is None else reflected(euler(at(5.5)), exact(weak))
        basis, x = torch.eye(width, dtype=torch.float64), randn(9, 2, width).double()
        student = x
        for k in range(STEPS):
            # a linear field is known by what it does to a basis
            learned = target_of(SECANT, [basis, step(basis, *sigmas[k : k + 2])], [], sigmas[k : k + 2], 0)
            student = student + (sigmas[k + 1] - sigmas[k]) * student @ learned
        torch.testing.assert_close(student, sample(step, x, sigmas), rtol=1e-6, atol=1e-6)
        assert float((student - sample(euler(at(1.0)), x, sigmas)).norm()) > 0.1

    def test_one_step_on_clean_is_the_picture(self):
        for step in range(STEPS):
            target = target_of(CLEAN, self.STATES, self.LAST, SCHEDULE, step)
            torch.testing.assert_close(self.STATES[step] - SCHEDULE[step] * target, self.STATES[-1])

    def test_reevaluated_is_the_last_prediction(self):
        assert target_of(targets.REEVALUATED, self.STATES, self.LAST, SCHEDULE, 2) is self.LAST[2]

    def test_unknown_names_are_refused(self):
        with pytest.raises(InvalidConfig, match="x0"):
            target_of("x0", self.STATES, self.LAST, SCHEDULE, 0)
        with pytest.raises(InvalidConfig, match="lognormal"):
            levels(SCHEDULE, "lognormal", seeded())


def example():
    shape = (ROWS, 2, 4, 4)
    ones = torch.ones(ROWS)
    return Example(
        x_BCHW=randn(1, *shape), sigma_B=ones, w_B=ones, prompt_B=ones, null_B=ones, target_BCHW=randn(2, *shape),
        guidance_BCHW=randn(3, *shape), weight_B=torch.rand(ROWS, generator=seeded(4)),
    )  # fmt: skip


class TestLoss:
    @pytest.mark.parametrize("along", [1.0, 4.0, 0.5])
    def test_it_is_the_literal_mean(self, along):
        drawn, total = example(), 0.0
        for row in range(ROWS):
            error = (drawn.x_BCHW[row] - drawn.target_BCHW[row]).flatten().double().tolist()
            guidance = drawn.guidance_BCHW[row].flatten().double().tolist()
            length = sum(g * g for g in guidance)
            dot = sum(e * g for e, g in zip(error, guidance, strict=True))
            along_part = [dot / length * g for g in guidance]
            across = [e - a for e, a in zip(error, along_part, strict=True)]
            squares = sum(e * e for e in across) + along * sum(a * a for a in along_part)
            total += float(drawn.weight_B[row]) * squares / len(error) / ROWS
        assert float(replay_loss(lambda x, sigma: x, drawn, along)) == pytest.approx(total, rel=1e-5)

    def test_weight_on_the_guidance_keeps_an_unsure_student_from_shrinking_it(self):
        """A student that knows the direction only by half: plain squares halve its guidance, ours let it keep more."""
        guidance = randn(5, 400, 1, 8, 8)
        hint = guidance + randn(6, *guidance.shape)
        rows = len(guidance)
        drawn = Example(
            x_BCHW=hint, sigma_B=torch.ones(rows), w_B=torch.ones(rows), prompt_B=torch.zeros(rows),
            null_B=torch.zeros(rows), target_BCHW=guidance, guidance_BCHW=guidance, weight_B=torch.ones(rows),
        )  # fmt: skip
        learned = {}
        for along in (1.0, 4.0):
            strength = torch.zeros((), requires_grad=True)
            optimizer = torch.optim.Adam([strength], lr=0.05)
            for _ in range(200):
                optimizer.zero_grad()
                replay_loss(lambda x, sigma, k=strength: k * x, drawn, along).backward()
                optimizer.step()
            learned[along] = strength.item()
        assert learned[1.0] == pytest.approx(0.5, abs=0.02)
        assert learned[4.0] == pytest.approx(4 / 5, abs=0.02)


def test_a_student_without_guidance_has_loss_one_in_every_step():
    guidance = randn(1, STEPS, ROWS, 2, 4, 4) * torch.arange(1, STEPS + 1)[:, None, None, None, None]
    zeros = torch.zeros_like(guidance)
    numbers = torch.zeros(STEPS, ROWS)
    trajectory = Trajectory(zeros, SCHEDULE[:-1], guidance, guidance, torch.tensor(1.0), numbers, numbers)
    weight_S = targets.step_weights(trajectory)
    for step in range(STEPS):
        drawn = Example(
            x_BCHW=zeros[step], sigma_B=SCHEDULE[step].expand(ROWS), w_B=torch.ones(ROWS), prompt_B=numbers[step],
            null_B=numbers[step], target_BCHW=guidance[step], guidance_BCHW=guidance[step],
            weight_B=weight_S[step].expand(ROWS),
        )  # fmt: skip
        assert float(replay_loss(lambda x, sigma: torch.zeros_like(x), drawn)) == pytest.approx(1.0, rel=1e-5)


def test_below_a_small_w_the_weight_of_cfg_stays_the_same():
    """The guidance of CFG is w times a difference, whose own weight is that of w = 1."""
    difference = randn(2, STEPS, ROWS, 2, 4, 4)
    numbers = torch.zeros(STEPS, ROWS)

    def weight_S(w: float) -> torch.Tensor:
        guidance = w * difference
        return targets.step_weights(
            Trajectory(difference, SCHEDULE[:-1], guidance, guidance, torch.tensor(w), numbers, numbers)
        )

    for w in (0.01, 0.2, targets.SMALL_W):
        torch.testing.assert_close(weight_S(w), weight_S(1.0) / targets.SMALL_W**2)
    torch.testing.assert_close(weight_S(2.0), weight_S(1.0) / 4)
    assert weight_S(0.0).isfinite().all()


def test_steps_without_guidance_are_weighted_as_if_they_had_a_little():
    guidance = randn(3, STEPS, ROWS, 2, 4, 4)
    guidance[1:] = 0
    numbers = torch.zeros(STEPS, ROWS)
    weight_S = targets.step_weights(
        Trajectory(guidance, SCHEDULE[:-1], guidance, guidance, torch.tensor(1.0), numbers, numbers)
    )
    mean = guidance.square().mean()
    torch.testing.assert_close(weight_S[1:], (1 / (targets.LITTLE * mean)).expand(STEPS - 1))
    torch.testing.assert_close(weight_S[0], 1 / guidance[0].square().mean())
