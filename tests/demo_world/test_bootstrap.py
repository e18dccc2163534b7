"""The bootstrap against a literal twin, its intervals at known spreads."""

import math

import numpy as np
import pytest
import torch

from lab.benches._bootstrap import FAILS, HOLDS, UNDECIDED, interval, resampled_means, resamples, verdict


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_means_draw_by_draw():
    values, prompts, students = normal(3, 6), resamples(6, draws=20), resamples(3, draws=20, seed=1)
    literal = []
    for draw in range(20):
        picked = [n for n in range(6) for _ in range(int(prompts[draw, n]))]
        ours = [k for k in range(3) for _ in range(int(students[draw, k]))]
        literal.append(np.mean([[float(values[k, n]) for n in picked] for k in ours]))
    np.testing.assert_allclose(resampled_means(values, prompts, students), literal, rtol=1e-12)


def test_prompts_without_a_value_are_left_out():
    values = torch.tensor([[1.0, math.nan, 0.0, math.nan]])
    prompts = torch.tensor([[1.0, 5.0, 1.0, 5.0], [3.0, 0.0, 1.0, 0.0]])
    assert resampled_means(values, prompts).tolist() == [0.5, 0.75]


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = normal(1, 400)
    low, high = interval(resampled_means(values, resamples(400, draws=4000)))
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)


@pytest.mark.parametrize(
    ("low", "high", "threshold", "said"),
    [(0.1, 0.2, 0, HOLDS), (-0.2, -0.1, 0, FAILS), (-0.1, 0.1, 0, UNDECIDED), (0.1, 0.2, 0.15, UNDECIDED)],
)
def test_verdicts(low, high, threshold, said):
    assert verdict(low, high, threshold) == said
