"""Slow text-book reflection: one loop per paper, every scale written out.

It shares no code with the pack. `cond`, `null`: networks (x, level) -> prediction with the prompt, without; the level
is sigma for flow models, for
noise-predicting models the number of the step, which a table of timesteps goes by.
"""

import math


def guided(cond, null, x, level, cfg):
    """Return the prediction at a guidance scale, (1 - s) null + s cond."""
    return (1 - cfg) * null(x, level) + cfg * cond(x, level)


# Flow models: x = (1 - sigma) latent + sigma noise, the network predicts dx/dsigma.


def flow_down(cond, null, x, sigmas, i, cfg):
    """Return x one Euler step on."""
    return x + (sigmas[i + 1] - sigmas[i]) * guided(cond, null, x, sigmas[i], cfg)


def flow_up(cond, null, x, sigmas, i, cfg, inversion):
    """Return x one Euler step back; the conventions differ in where the network is asked."""
    if inversion == "exact":
        level = sigmas[i + 1]
    elif inversion == "upper":
        level = sigmas[i]
    elif inversion == "core":
        level = max(0.0, sigmas[i] - 1 / (len(sigmas) - 1))
    return x - (sigmas[i + 1] - sigmas[i]) * guided(cond, null, x, level, cfg)


# Noise-predicting models in the variance-preserving space of their papers: x = sqrt(a) latent + sqrt(1 - a) noise.


def alpha_of(sigma):
    """Return the cumulative alpha of a noise level sigma = sqrt((1 - a) / a)."""
    return 1 / (1 + sigma * sigma)


def ddim(x, noise, alpha_from, alpha_to):
    """Return x at another alpha, with the predicted noise kept (DDIM, eta 0); up just as down."""
    latent = (x - math.sqrt(1 - alpha_from) * noise) / math.sqrt(alpha_from)
    return math.sqrt(alpha_to) * latent + math.sqrt(1 - alpha_to) * noise


def noise_down(cond, null, x, sigmas, i, cfg):
    """Return x one DDIM step on."""
    return ddim(x, guided(cond, null, x, i, cfg), alpha_of(sigmas[i]), alpha_of(sigmas[i + 1]))


def noise_up(cond, null, x, sigmas, i, cfg, inversion):
    """Return x one DDIM step back; `official` takes the alphas of the step after this one, as the authors' code."""
    noise = guided(cond, null, x, i + 1 if inversion == "exact" else i, cfg)
    if inversion == "official":
        return ddim(x, noise, alpha_of(sigmas[i + 2]), alpha_of(sigmas[i + 1]))
    return ddim(x, noise, alpha_of(sigmas[i + 1]), alpha_of(sigmas[i]))


def z_sampling(down, up, cond, null, x, sigmas, high, low, zigzags, rounds, inversion):
    """Return all states of Z-Sampling: down, then back with down once more in each of the first steps.

    Source: arXiv 2412.10891, algorithm 1.
    """
    states = [x]
    for i in range(len(sigmas) - 1):
        x = down(cond, null, x, sigmas, i, high)
        if i < zigzags and sigmas[i + 1] > 0:
            for _ in range(rounds):
                x = up(cond, null, x, sigmas, i, low, inversion)
                x = down(cond, null, x, sigmas, i, high)
        states.append(x)
    return states


def w2sd(down, up, strong, weak, x, sigmas, cfgs, reflections, rounds, inversion):
    """Return all states of W2SD: reflect in each of the first steps, then a step of its own scale.

    `strong`, `weak` are pairs (cond, null); `cfgs` the scales of strong, weak, last move.
    Source: arXiv 2502.00473, algorithm 1.
    """
    states = [x]
    for i in range(len(sigmas) - 1):
        if i < reflections and sigmas[i + 1] > 0:
            for _ in range(rounds):
                x = down(*strong, x, sigmas, i, cfgs[0])
                x = up(*weak, x, sigmas, i, cfgs[1], inversion)
        x = down(*strong, x, sigmas, i, cfgs[2])
        states.append(x)
    return states


# CHATS, arXiv 2502.12579.


def chats(win, lose, s):
    """Return the prediction of both networks together, number by number."""
    return [w + s * (w - v) for w, v in zip(win, lose, strict=True)]


def proxy_prompt(cond, null, alpha):
    """Return the prompt of the losing network, number by number."""
    return [-alpha * c + (1 + alpha) * n for c, n in zip(cond, null, strict=True)]
