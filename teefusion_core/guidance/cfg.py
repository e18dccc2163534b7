"""Classifier-free guidance as arithmetic on predictions.

Its strength is given in two ways: as the CFG scale s of ComfyUI, guided = uncond + s * (cond - uncond), where 1 is the
prompt only and 0 the null prompt only; or as the guidance w of the TeEFusion paper, s = 1 + w.

Shapes: B batch, `...` any latent shape.
"""

import torch
from torch import Tensor

from .flow import per_row


def guided(cond: Tensor, uncond: Tensor, cfg_scale: float | Tensor) -> Tensor:
    """Combine two predictions, uncond + s * (cond - uncond).

    It is the same for velocities and for denoised predictions, because each is an affine function of the other.

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
    """Return the CFG scale s = 1 + w of a guidance w (number or tensor)."""
    return 1 + w


def effective_guidance(velocity: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """Return the CFG scale that a velocity is equivalent to.

    Formula: <v - uncond, cond - uncond> / |cond - uncond|^2 per row, the projection on the guidance direction. For
    v = guided(cond, uncond, s) it is s.

    Args:
        velocity: prediction to measure, [B,...].
        cond: velocity of the base with the prompt, [B,...].
        uncond: velocity of the base with the null prompt, [B,...].
    Returns:
        One CFG scale per row, float64 [B] on the CPU; nan where cond equals uncond.
    """
    # on the CPU, because devices such as Apple's mps have no float64
    direction = (cond - uncond).flatten(1).cpu().to(torch.float64)
    offset = (velocity - uncond).flatten(1).cpu().to(torch.float64)
    return (offset * direction).sum(1) / direction.square().sum(1)


def proxy_prompt(cond: Tensor, null: Tensor, alpha: float) -> Tensor:
    """Return the proxy prompt of CHATS for the weak model, -alpha * cond + (1 + alpha) * null.

    Args:
        cond: embedding of the prompt, token-wise [B,L,D] or pooled [B,P].
        null: embedding of the empty prompt, same shape up to the batch.
        alpha: distance beyond the empty prompt, 0.5 in the paper; 0 gives the empty prompt.
    Returns:
        Embedding of the shape of `cond`.
    Source: CHATS, arXiv 2502.12579; its prediction replaces `uncond` in `guided`, with CFG scale 1 + their s.
    """
    return null + alpha * (null - cond)
