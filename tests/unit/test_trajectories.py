"""Walks of the teacher: what is kept of them, what is drawn, what the loss says."""

import pytest
import torch

from teefusion_core.distill import cfg_teacher
from teefusion_core.errors import InvalidConfig
from teefusion_core.flow import euler, per_row, sample, shifted
from teefusion_core.trajectories import Replay, jittered_grid, replay_loss, walk

ROWS, STEPS, SHIFT = 3, 6, 3.0
W = torch.tensor([0.5, 2.0, 6.0])
PROMPTS = torch.tensor([4, 5, 6])


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def cond(x_BCHW, sigma_B):
    return torch.sin(x_BCHW) + per_row(sigma_B, x_BCHW)


def uncond(x_BCHW, sigma_B):
    return 0.5 * x_BCHW * per_row(sigma_B, x_BCHW)


def noise():
    return torch.randn(ROWS, 2, 4, 4, generator=seeded(7))


def replayed(walks=1):
    replay = Replay(walks)
    for number in range(walks):
        grid = jittered_grid(ROWS, STEPS, SHIFT, seeded(number))
        replay.add(walk(cfg_teacher(cond, uncond, W), noise() + number, grid), cond, W, PROMPTS)
    return replay


class TestGrid:
    def test_it_goes_from_one_to_zero(self):
        grid = jittered_grid(50, STEPS, SHIFT, seeded())
        assert grid.shape == (STEPS + 1, 50)
        assert bool((grid[0] == 1).all() and (grid[-1] == 0).all() and (grid.diff(dim=0) < 0).all())

    def test_inner_levels_stay_within_half_a_step_of_the_even_grid(self):
        grid = jittered_grid(200, STEPS, SHIFT, seeded())
        even = torch.arange(STEPS + 1) / STEPS
        for index in range(1, STEPS):
            low, high = (shifted(1 - (even[index] + move / STEPS), SHIFT) for move in (0.5, -0.5))
            assert bool((grid[index] >= low - 1e-6).all() and (grid[index] <= high + 1e-6).all())
            assert float(grid[index].std()) > 0.01

    def test_one_step_is_the_whole_way(self):
        assert jittered_grid(2, 1, SHIFT, seeded()).tolist() == [[1.0, 1.0], [0.0, 0.0]]


class TestWalk:
    def test_it_passes_where_the_teacher_passes(self):
        teacher = cfg_teacher(cond, uncond, W.double())
        sigmas = torch.linspace(1, 0, STEPS + 1).double()
        x = noise().double()
        visited = [x]
        sample(teacher, x, sigmas, lambda index, sigma, state: visited.append(state))
        walked = list(walk(teacher, x, sigmas[:, None].expand(-1, ROWS)))
        assert len(walked) == STEPS
        for (state, sigma, _), theirs, level in zip(walked, visited, sigmas, strict=False):
            torch.testing.assert_close(state, theirs)
            assert sigma.tolist() == [level] * ROWS

    def test_targets_are_the_guided_velocity_row_by_row(self):
        for x, sigma, target in walk(
            cfg_teacher(cond, uncond, W), noise(), jittered_grid(ROWS, STEPS, SHIFT, seeded())
        ):
            for row in range(ROWS):
                c, u = (field(x[row : row + 1], sigma[row : row + 1])[0] for field in (cond, uncond))
                torch.testing.assert_close(target[row], u + (1 + float(W[row])) * (c - u), rtol=1e-4, atol=1e-4)

    def test_a_student_that_learnt_them_lands_where_the_teacher_lands(self):
        grid = jittered_grid(ROWS, STEPS, SHIFT, seeded()).double()
        teacher = cfg_teacher(cond, uncond, W.double())
        known = list(walk(teacher, noise().double(), grid))
        answers = iter(known)

        def student(x, sigma):
            return x - per_row(sigma, x) * next(answers)[2]

        x = theirs = noise().double()
        for index in range(STEPS):
            x = euler(student)(x, grid[index], grid[index + 1])
            theirs = teacher(theirs, grid[index], grid[index + 1])
        torch.testing.assert_close(x, theirs)


class TestReplay:
    def test_rows_stay_together(self):
        example = replayed(walks=2).draw(200, seeded())
        assert set(example.prompt_B.tolist()) == set(PROMPTS.tolist())
        for row in range(200):
            x, sigma = example.x_BCHW[row : row + 1], example.sigma_B[row : row + 1]
            w = float(W[PROMPTS.tolist().index(int(example.prompt_B[row]))])
            assert float(example.w_B[row]) == w
            c, u = cond(x, sigma)[0], uncond(x, sigma)[0]
            # kept in half precision, magnified by the guidance
            torch.testing.assert_close(example.target_BCHW[row], u + (1 + w) * (c - u), rtol=0.02, atol=0.02)

    def test_every_place_is_drawn(self):
        example = replayed(walks=2).draw(1000, seeded())
        assert len({(float(s), int(p)) for s, p in zip(example.sigma_B, example.prompt_B, strict=True)}) == (
            2 * (STEPS - 1) * ROWS + ROWS  # noise level 1 is the same in both walks
        )

    def test_the_oldest_walk_goes_first(self):
        replay = replayed(walks=2)
        newest = replay.walks[-1]
        grid = jittered_grid(ROWS, STEPS, SHIFT, seeded(9))
        replay.add(walk(cfg_teacher(cond, uncond, W), noise(), grid), cond, W, PROMPTS)
        assert len(replay.walks) == 2 and replay.walks[0] is newest

    def test_the_unguided_base_has_loss_one_at_every_step(self):
        replay = replayed()
        walked = replay.walks[0]
        for step in range(STEPS):
            rows = slice(step * ROWS, (step + 1) * ROWS)
            part = type(walked)(**{name: column[rows].float() for name, column in vars(walked).items()})
            assert float(replay_loss(cond, part)) == pytest.approx(1.0, rel=0.02)

    def test_the_teacher_has_loss_zero(self):
        example = replayed().draw(64, seeded())
        assert float(replay_loss(lambda x, sigma: example.target_BCHW, example)) == 0.0

    def test_the_loss_is_the_literal_mean(self):
        example = replayed().draw(5, seeded())
        total = 0.0
        for row in range(5):
            error = (example.x_BCHW[row] - example.target_BCHW[row]).flatten().tolist()
            total += float(example.weight_B[row]) * sum(e * e for e in error) / len(error) / 5
        assert float(replay_loss(lambda x, sigma: x, example)) == pytest.approx(total, rel=1e-5)

    def test_the_same_seed_draws_the_same(self):
        first, second = (replayed().draw(8, seeded(3)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))

    def test_walks_of_another_length_are_refused(self):
        replay, teacher = replayed(), cfg_teacher(cond, uncond, W)
        with pytest.raises(InvalidConfig, match="a walk of 4 steps with 3 rows"):
            replay.add(walk(teacher, noise(), jittered_grid(ROWS, 4, SHIFT, seeded())), cond, W, PROMPTS)

    def test_no_walks_is_refused(self):
        with pytest.raises(InvalidConfig, match="keeps 0 walks"):
            Replay(0)
