"""Arithmetic of prompts: a text embedding plus or minus others.

    blend = base + sum_i w_i x_i

on the token embeddings, on the pooled vector likewise. What TeEFusion rests on: adding the embedding of one prompt to
that of another adds its content to the picture, taking it away removes it, so that the blend lies near the embedding of
the prompt that says it all.

Shapes: B batch, `...` the rest: L tokens by W width of a token, or P pooled width.
Source: TeEFusion, arXiv 2507.18192, section 4; weights other than 1, padding are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ShapeMismatch
from ..guidance.fusion import common_rows

SAME_ENCODERS = "encode all prompts with the same text encoders"


def blended(base: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Add weighted embeddings to one.

    A text with fewer tokens counts as zeros past its end, which keeps the blend linear.

    Args:
        base: [B,L,W] or [B,P].
        terms: (weight, embedding) pairs; one row serves any number. A negative weight takes away.
    Returns:
        As many tokens as the longest of them, dtype of base; inputs are not modified.
    Raises:
        ShapeMismatch: widths or rows differ.
    Source: module docstring.
    """
    texts = _padded([base, *(text for _, text in terms)])
    total = texts[0]
    for (weight, _), text in zip(terms, texts[1:], strict=True):
        total = total + weight * text
    return total.to(base.dtype)


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of the angle between two embeddings, all tokens as one vector, mean over the rows.

    Args:
        one, other: [B,L,W] or [B,P], one row serves any number; the shorter text is padded with zeros.
    Returns:
        From -1 to 1; 0 where one of them is all zeros.
    Raises:
        ShapeMismatch: widths or rows differ.
    """
    left, right = (text.flatten(1) for text in _padded([one, other]))
    return float(torch.nn.functional.cosine_similarity(left, right).mean())


def _padded(texts: Sequence[Tensor]) -> list[Tensor]:
    """Return the embeddings in float32 on one device, zeros after the shorter ones."""
    first = texts[0]
    for text in texts[1:]:
        if text.ndim != first.ndim or text.shape[-1] != first.shape[-1]:
            raise ShapeMismatch(
                f"embeddings of shape {list(first.shape)} with {list(text.shape)} do not add up: {SAME_ENCODERS}"
            )
    common_rows(**{f"prompt {number}": len(text) for number, text in enumerate(texts, 1)})
    texts = [text.to(first.device, torch.float32) for text in texts]
    if first.ndim == 2:
        return list(texts)
    longest = max(text.shape[1] for text in texts)
    return [torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts]
