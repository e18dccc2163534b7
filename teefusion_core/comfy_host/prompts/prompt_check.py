"""Encoded prompts that a model cannot use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch
from ...files.tensor_file import not_finite, numbered
from ...guidance.architectures import family_of
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


OF_SAMPLING = ("control", "gligen", "hooks", "area", "mask", "start_percent", "end_percent")
"""Extras that the host's samplers apply around a forward pass, so that a teacher obeys them and its student cannot."""


def check_prompts(entries: Sequence[tuple[Tensor, dict]], model, name: str) -> None:
    """Refuse prompts that cannot be learned from.

    They are of other text encoders than the model's, lack the pooled text that it takes, hold NaN, or ask the sampler
    for more than a forward pass with their text.

    Args:
        entries: (context [1,L,E], extras) of each prompt.
        model: MODEL that will take them.
        name: of a prompt, for messages.
    Raises:
        InvalidConfig: a prompt has NaN or infinite values, lacks the pooled text, or has an area, a mask, a ControlNet
            or the like.
        ShapeMismatch: the tokens or the pooled text have another width than the model takes.
    """
    check_finite(entries, f"{name} list")
    for number, (_, extras) in enumerate(entries, 1):
        if asked := [extra for extra in OF_SAMPLING if extras.get(extra) is not None]:
            raise InvalidConfig(
                f"{name} {number} has {' and '.join(asked)}, which a student cannot learn; connect the prompt as CLIP "
                "Text Encode gives it"
            )
    network = model.model.diffusion_model
    family = family_of(network)
    if family is None:
        return
    wanted = {"tokens": family.context_width(network)}
    if family.pooled_module(network) is not None:
        wanted["pooled text"] = family.widths(network)[0]
    for number, (context, extras) in enumerate(entries, 1):
        given: dict[str, Tensor | None] = {"tokens": context, "pooled text": extras.get(POOLED)}
        for part, width in wanted.items():
            tensor = given[part]
            if tensor is None:
                raise InvalidConfig(f"{name} {number} has no {POOLED}; encode it with the text encoders of the model")
            if width is not None and tensor.shape[-1] != width:
                raise ShapeMismatch(
                    f"{name} {number} has {part} of width {tensor.shape[-1]}, but this {family.name} model takes "
                    f"{width}; encode it with the text encoders of the model"
                )
