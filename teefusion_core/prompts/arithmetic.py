"""Weighted sums of text embeddings.

    blend = base + sum_i w_i x_i

The formula applies to token embeddings and to pooled vectors. TeEFusion assumes that adding the embedding of a prompt
adds its content to the image, and that subtracting it removes the content.

Shapes: B batch, L tokens, W token width, P pooled width.
Source: TeEFusion, arXiv 2507.18192, section 4; weights other than 1 and the padding are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ShapeMismatch
from ..guidance.fusion import common_rows

SAME_ENCODERS = "encode all prompts with the same text encoders"


def blended(base: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Add weighted embeddings to an embedding.

    Shorter texts are padded with zeros, which keeps the blend linear.

    Args:
        base: [B,L,W] or [B,P].
        terms: (weight, embedding) pairs; one row is broadcast. A negative weight subtracts.
    Returns:
        [B,L,W] with the largest L, or [B,P]; dtype of base. Inputs are not modified.
    Raises:
        ShapeMismatch: widths or rows differ.
    Source: see the module.
    """
    texts = _padded([base, *(text for _, text in terms)])
    total = texts[0]
    for (weight, _), text in zip(terms, texts[1:], strict=True):
        total = total + weight * text
    return total.to(base.dtype)


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine between two embeddings, with all tokens as one vector, averaged over the rows.

    Args:
        one, other: [B,L,W] or [B,P]; one row is broadcast, and the shorter text is padded with zeros.
    Returns:
        From -1 to 1; 0 if one of them is all zeros.
    Raises:
        ShapeMismatch: widths or rows differ.
    """
    left, right = (text.flatten(1) for text in _padded([one, other]))
    return float(torch.nn.functional.cosine_similarity(left, right).mean())


def _padded(texts: Sequence[Tensor]) -> list[Tensor]:
    """Return the embeddings in float32 on one device, padded with zeros to equal length."""
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
