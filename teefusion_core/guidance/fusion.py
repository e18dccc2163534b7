"""The guidance term of TeEFusion, a vector added to the modulation vector of the base model.

    vec = G(psi(t)) + F(c) + gain * G(psi(1000 w)) * F(c - null)

G embeds the timestep, psi is the sinusoidal embedding in front of it, F embeds the pooled text, w is the guidance. The
last term does not depend on t. F is a biased MLP, so F(c - null) is not F(c) - F(null).

Shapes: B batch, P pooled width, D model width, K sinusoid width.
Source: TeEFusion, arXiv 2507.18192, eq. 7; the factor 1000 and the gain 1/256 are from AIDC-AI/TeEFusion.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import InvalidConfig, ShapeMismatch

OFFICIAL_BF16 = "official bf16"
EXACT = "exact"
GUIDANCE_PRECISIONS = (OFFICIAL_BF16, EXACT)

SINUSOID_MAX_PERIOD = 10000.0  # longest wavelength of psi / 2 pi; the same in SD3, Flux and SDXL


def guidance_rows(guidance: float | Sequence[float] | Tensor) -> Tensor:
    """Convert a guidance to a tensor.

    Args:
        guidance: w, a number or one per row; finite, 0 or more.
    Returns:
        float64 on the CPU, [1] or [B].
    Raises:
        InvalidConfig: empty, NaN, infinite or negative values.
        ShapeMismatch: more than one dimension.
    """
    w_B = torch.as_tensor(guidance, dtype=torch.float64).detach().cpu()
    if w_B.ndim > 1:
        raise ShapeMismatch(
            f"guidance has shape {tuple(w_B.shape)}; give one number, or a flat list with one number per image"
        )
    w_B = w_B.reshape(-1)
    if w_B.numel() == 0 or not bool(torch.isfinite(w_B).all() and (w_B >= 0).all()):
        raise InvalidConfig(f"guidance is {shown(w_B)}; give a finite number, 0 or more (5 is usual)")
    return w_B


def shown(w_B: Tensor) -> str:
    """Return the values for a message."""
    return ", ".join(f"{w:g}" for w in w_B.tolist()) or "empty"


def guidance_timestep(w_B: Tensor, *, precision: str = OFFICIAL_BF16, scale: float = 1000.0) -> Tensor:
    """Return the input of the time embedder, scale * w.

    At this scale psi changes fast (the cosine between 4992 and 5000 is 0.72), so inference must round as training did.
    The published student was run with w in bf16 and multiplied in bf16 (5 -> 4992).

    Args:
        w_B: guidance, [B].
        precision: "official bf16" or "exact", independent of the dtype of the model.
        scale: guidance_embedding_scale of the architecture.
    Returns:
        float32 [B], device of w_B.
    Raises:
        InvalidConfig: unknown precision.
    Source: pipelines/sd3_teefusion_pipeline.py of the authors.
    """
    if precision == OFFICIAL_BF16:
        return (w_B.to(torch.bfloat16) * scale).to(torch.float32)
    if precision == EXACT:
        # on the CPU, because devices such as Apple's mps have no float64
        return (w_B.cpu().to(torch.float64) * scale).to(torch.float32).to(w_B.device)
    raise InvalidConfig(f"guidance_precision is {precision!r}; choose one of {', '.join(GUIDANCE_PRECISIONS)}")


def sinusoid(timestep_B: Tensor, width: int = 256) -> Tensor:
    """Return the sinusoidal embedding psi = [cos, sin] over decreasing frequencies.

    Keep float32 and this order of operations: with arguments in the thousands, other rounding changes the result.

    Args:
        timestep_B: on any scale, [B].
        width: K, even.
    Returns:
        float32 [B,K].
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=timestep_B.device)
    frequency = torch.exp(-math.log(SINUSOID_MAX_PERIOD) * index / half)
    angle = timestep_B.to(torch.float32)[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def common_rows(**rows: int) -> int:
    """Return the common number of rows of several tensors; one row is broadcast.

    Args:
        rows: name of a tensor -> its number of rows.
    Returns:
        The largest number.
    Raises:
        ShapeMismatch: a number is neither 1 nor the largest.
    """
    most = max(rows.values())
    if any(number not in (1, most) for number in rows.values()):
        given = ", ".join(f"{name} has {number}" for name, number in rows.items())
        raise ShapeMismatch(f"numbers of rows differ: {given}; give each 1 row, or all the same number")
    return most


def guidance_term(
    pooled_BP: Tensor,
    null_pooled_BP: Tensor,
    guidance_timestep_B: Tensor,
    *,
    time_embed: Callable[[Tensor], Tensor],
    pooled_embed: Callable[[Tensor], Tensor],
    gain: float,
) -> Tensor:
    """Return gain * G(psi(1000 w)) * F(c - null) per row.

    Args:
        pooled_BP: pooled text vector of the prompt, [B,P] or [1,P].
        null_pooled_BP: the same of the empty prompt, [B,P] or [1,P].
        guidance_timestep_B: 1000 w, [B] or [1].
        time_embed: G(psi(.)), [B] -> [B,D].
        pooled_embed: F, [B,P] -> [B,D].
        gain: multiplier that the student was trained with.
    Returns:
        Term [B,D] to add to the output of F(c).
    Raises:
        ShapeMismatch: rows or widths differ.
    Source: see the module; unlike the authors' code it takes one w per row.
    """
    if pooled_BP.shape[-1] != null_pooled_BP.shape[-1]:
        raise ShapeMismatch(
            f"the pooled text is {pooled_BP.shape[-1]} wide, that of the null prompt {null_pooled_BP.shape[-1]}; "
            "encode both with the same text encoders"
        )
    rows = {"pooled": len(pooled_BP), "null": len(null_pooled_BP), "guidance": len(guidance_timestep_B)}
    common_rows(**rows)
    return gain * time_embed(guidance_timestep_B) * pooled_embed(pooled_BP - null_pooled_BP)
