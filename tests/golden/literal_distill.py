"""Algorithm 1 written out over single numbers, for classifier-free guidance as the teacher.

It shares no code with the pack. The network is any function of one row, (x, sigma, pooled, extra) -> velocity,
where `extra` is added to its modulation; it also has `embed_number`, which is G(psi(.)), with `embed_text`, which is F.
"""

import math

import torch


def shift_time(t, shift):
    """Return the noise level that SD3 uses in place of t."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def draw(latents, *, w_min, w_max, shift, num_steps, generator):
    """Return (x, sigma, sigma below, w) of each row, from t uniform in [0, 1] with w uniform in its range."""
    t_rows = torch.rand(len(latents), generator=generator).tolist()
    w_rows = torch.rand(len(latents), generator=generator).tolist()
    noise = torch.randn(latents.shape, generator=generator).to(latents.dtype)
    rows = []
    for latent, t, w01, unit in zip(latents, t_rows, w_rows, noise, strict=True):
        sigma, below = shift_time(t, shift), shift_time(max(0.0, t - 1.0 / num_steps), shift)
        rows.append(((1.0 - sigma) * latent + sigma * unit, sigma, below, w_min + (w_max - w_min) * w01))
    return rows


def guided_velocity(network, x, sigma, pooled, null, w):
    """Return (1 + w) v(x, c) - w v(x, null), as the paper writes it."""
    return (1.0 + w) * network(x, sigma, pooled, 0.0) - w * network(x, sigma, null, 0.0)


def loss(teacher, student, rows, pooled, null, gain):
    """Return the mean squared error of the student's velocity from the teacher's move, one number after another."""
    total, count = 0.0, 0
    for (x, sigma, below, w), c, n in zip(rows, pooled, null, strict=True):
        reached = x - (sigma - below) * guided_velocity(teacher, x, sigma, c, n, w)
        target = (x - reached) / (sigma - below)
        extra = gain * student.embed_number(1000.0 * w) * student.embed_text(c - n)
        prediction = student(x, sigma, c, extra)
        for mine, theirs in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
            total, count = total + (mine - theirs) ** 2, count + 1
    return total / count


def waves(value, width):
    """Return psi(value), half cosines then half sines, in single precision as the published models have it."""
    half = width // 2
    frequencies = [torch.exp(torch.tensor(-math.log(10000.0)) * k / half) for k in range(half)]
    angles = [torch.tensor(value, dtype=torch.float32) * f for f in frequencies]
    return torch.stack([torch.cos(a) for a in angles] + [torch.sin(a) for a in angles])
