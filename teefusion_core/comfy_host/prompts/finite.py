"""Encoded prompts whose numbers are no numbers."""

from __future__ import annotations

from ...errors import InvalidConfig
from ...tensors import not_finite, numbered
from .encoded import POOLED


def check_finite(conditioning, name: str) -> None:
    """Refuse a CONDITIONING with NaN or infinite values in its tokens or pooled text; None is no conditioning.

    Args:
        conditioning: list of [context [B,L,E], extras].
        name: of the input, for messages.
    Raises:
        InvalidConfig: with the numbers of the prompts.
    """
    lost = [
        number
        for number, (context, extras) in enumerate(conditioning or (), 1)
        for tensor in (context, extras.get(POOLED))
        if hasattr(tensor, "isfinite") and not_finite(tensor)
    ]
    if lost:
        raise InvalidConfig(
            f"{name} has NaN or infinite values in {numbered('prompt', sorted(set(lost)))}; encode the prompt again, "
            "with text encoders in 32 bits if it stays so"
        )
