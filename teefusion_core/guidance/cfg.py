"""Classifier-free guidance as arithmetic on predictions.

Two numbers are in use for its strength: the CFG scale s (1 = prompt only, 0 = null only) that
ComfyUI shows, with guided = uncond + s * (cond - uncond), or the w of the TeEFusion paper, s = 1 + w.
Shapes: B batch, `...` any latent shape.
"""

import torch
from torch import Tensor

from .flow import per_row


def guided(cond: Tensor, uncond: Tensor, cfg_scale: float | Tensor) -> Tensor:
    """Combine two predictions, uncond + s * (cond - uncond).

    Holds for velocity as for denoised predictions, since both are affine in one another.

    Args:
        cond: prediction with the prompt, [B,...].
        uncond: prediction with the null prompt, [B,...].
        cfg_scale: s, a number or one value per row [B].
    Returns:
        Guided prediction [B,...]; a scale of exactly 1 gives `cond` up to rounding.
    Source: Ho et al., arXiv 2207.12598, with s = 1 + their w.
    """
    scale = per_row(cfg_scale, cond) if isinstance(cfg_scale, Tensor) else cfg_scale
    return uncond + scale * (cond - uncond)


def cfg_scale_of(w):
    """Return the CFG scale s = 1 + w that a guidance w stands for (number or tensor)."""
    return 1 + w


def w_of(cfg_scale):
    """Return the guidance w = s - 1 of a CFG scale s (number or tensor)."""
    return cfg_scale - 1


def effective_guidance(velocity: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """Measure which CFG scale a prediction amounts to, by projection.

    Formula: <v - uncond, cond - uncond> / |cond - uncond|^2 in each row; for v = guided(cond, uncond, s)
    it returns s.

    Args:
        velocity: prediction to judge, [B,...].
        cond: velocity of the base with the prompt, [B,...].
        uncond: velocity of the base with the null prompt, [B,...].
    Returns:
        One CFG scale per row, float64 [B]; nan where cond equals uncond.
    """
    direction = (cond - uncond).flatten(1).to(torch.float64)
    offset = (velocity - uncond).flatten(1).to(torch.float64)
    return (offset * direction).sum(1) / direction.square().sum(1)


def agreement(velocity: Tensor, other: Tensor) -> Tensor:
    """Cosine between two velocity fields, row by row.

    Args:
        velocity, other: [B,...], of one shape.
    Returns:
        float64 [B] from -1 to 1; nan where either is zero.
    """
    a, b = velocity.flatten(1).to(torch.float64), other.flatten(1).to(torch.float64)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def proxy_prompt(cond: Tensor, null: Tensor, alpha: float) -> Tensor:
    """Mix the prompt that the weak network of CHATS is given, -alpha * cond + (1 + alpha) * null.

    Args:
        cond: embedding of the prompt, token-wise [B,L,D] or pooled [B,P].
        null: embedding of the empty prompt, same shape up to the batch.
        alpha: how far beyond the empty prompt, 0.5 in the paper; 0 is the empty prompt.
    Returns:
        Embedding of the shape of `cond`.
    Source: CHATS, arXiv 2502.12579; the prediction with it takes the place of `uncond` in `guided`, 1 + their s
        being the CFG scale.
    """
    return null + alpha * (null - cond)
