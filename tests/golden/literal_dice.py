"""Slow text-book DICE sharpener, token by token, head by head, over a dict of weights.

It shares no code with the pack.
"""

import math

import torch

HEADS = 8


def relu(x):
    """Return x where it is positive, else zero."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def inner(weights, token):
    """Return the inner vector of one token."""
    return relu(weights["fc1.weight"] @ token + weights["fc1.bias"])


def one_head(query, keys, values):
    """Return what one query finds among keys with values."""
    scores = [float(query @ key) / math.sqrt(len(query)) for key in keys]
    shares = [math.exp(score - max(scores)) for score in scores]
    return sum(share / sum(shares) * value for share, value in zip(shares, values, strict=True))


def residual(weights, prompt, against):
    """Return r(c, n) of every token of one prompt [L,W]."""
    others = [inner(weights, token) for token in against]
    keys = [(weights["attention.to_k.weight"] @ other).chunk(HEADS) for other in others]
    values = [(weights["attention.to_v.weight"] @ other).chunk(HEADS) for other in others]
    out = []
    for token in prompt:
        query = (weights["attention.to_q.weight"] @ inner(weights, token)).chunk(HEADS)
        heads = [one_head(query[h], [k[h] for k in keys], [v[h] for v in values]) for h in range(HEADS)]
        found = weights["attention.to_out.0.weight"] @ torch.cat(heads) + weights["attention.to_out.0.bias"]
        out.append(weights["fc2.weight"] @ relu(found) + weights["fc2.bias"])
    return torch.stack(out)


def sharpened(weights, prompt, against, null, alpha, beta):
    """Return c + alpha r(c, n) - beta (n - null) of one prompt [L,W], with its first token as it was."""
    change = residual(weights, prompt, against)
    out = [prompt[0]]
    for i in range(1, len(prompt)):
        out.append(prompt[i] + alpha * change[i] - beta * (against[i] - null[i]))
    return torch.stack(out)
