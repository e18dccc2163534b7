"""Two LoRA settings on one copy of the weights.

Clones of a MODEL share their weights, so only one of two LoRA settings can be merged. For the other setting, the
difference of the two is added to the output of each affected layer; it has low rank as well. A small tensor, and one
that is not changed by a plain LoRA on a linear or convolution layer, is replaced as a whole. Both last only for the
length of a block, so nothing is loaded again.

Shapes: O output width, I input width, R rank (of all LoRAs of a layer together).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import comfy.float
import comfy.lora
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...errors import InvalidConfig
from ...reflection.low_rank import LowRank

try:
    from comfy.utils import string_to_seed
except ImportError:  # an older ComfyUI; a newer one logs a warning at every call of this name
    from comfy.model_patcher import string_to_seed

SMALL = 2**20
"""Number of elements up to which a second copy of a weight is cheaper than two extra calls per layer."""


@dataclass
class Exchange:
    """A replacement value of one parameter."""

    network: nn.Module
    key: str
    value: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the value to the device of the parameter."""
        self.value = self.value.to(comfy.utils.get_attr(self.network, self.key).device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set the parameter to the value inside the block."""
        parameter = comfy.utils.get_attr(self.network, self.key)
        merged, parameter.data = parameter.data, self.value
        try:
            yield
        finally:
            parameter.data = merged


class LoraGap:
    """The changes from the merged weights of one clone to those of another."""

    def __init__(self, changes: list[LowRank | Exchange]):
        self.changes = changes

    @classmethod
    def between(cls, strong, weak) -> LoraGap:
        """Return the changes between two clones, one of which is loaded.

        Args:
            strong: the ComfyUI MODEL that is loaded, with its patches merged.
            weak: a clone of the same base with other patches.
        Raises:
            InvalidConfig: a change needs a tensor that is kept out of video memory.
        """
        keys = [k for k in sorted({*strong.patches, *weak.patches}) if _differ(strong, weak, k) and _merged(strong, k)]
        originals = strong.get_key_patches()
        return cls([_change(strong.model, k, originals[k], strong.patches, weak.patches) for k in keys])

    def __bool__(self) -> bool:
        return bool(self.changes)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move all tensors to the compute device and dtype of a run."""
        for change in self.changes:
            change.to(device, dtype)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Apply the weak setting inside the block."""
        with ExitStack() as stack:
            if self.changes:
                stack.enter_context(_eager())
            for change in self.changes:
                stack.enter_context(change.active())
            yield


def _eager() -> AbstractContextManager:
    """Run compiled networks eagerly: their graphs would ignore hooks that are added later.

    If torch._dynamo is not imported, nothing has been compiled; importing it takes seconds.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _differ(strong, weak, key: str) -> bool:
    """Return whether two clones patch a parameter differently; clones share the patch objects."""
    return [id(patch) for patch in strong.patches.get(key, [])] != [id(patch) for patch in weak.patches.get(key, [])]


def _merged(patcher, key: str) -> bool:
    """Return whether the host merges patches of this tensor; it skips buffers and parameters of non-leaf modules."""
    path, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(patcher.model, path)
    own = {name for name, _ in layer.named_parameters(recurse=False)}
    return name in own and own == {name for name, _ in layer.named_parameters()}


def _change(network: nn.Module, key: str, original: list, strong: dict, weak: dict) -> LowRank | Exchange:
    """Return the change of one parameter, as a low-rank update if that is exact."""
    path, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(network, path)
    lists = [(sign, patch) for sign, patches in ((1, weak), (-1, strong)) for patch in patches.get(key, [])]
    weight, convert = original[0]
    # the host patches weights that are kept out of video memory on the fly
    whole = not getattr(layer, f"{name}_function", None)
    if not whole or weight.numel() > SMALL:
        factors = (
            [_factors(patch, weight, sign) for sign, patch in lists] if _is_linear(layer, name, weight) else [None]
        )
        if None not in factors:
            ups, downs = zip(*factors, strict=True)
            return LowRank(layer, torch.cat(ups, dim=1), torch.cat(downs))
    if not whole:
        raise InvalidConfig(
            f"the weak model changes {key} by something other than a LoRA while part of the model is kept out of video "
            "memory; free video memory, or load the weak model from its own file"
        )
    if not weak.get(key):
        return Exchange(network, key, weight.clone())  # stochastic rounding would change even unpatched 8-bit weights
    merged = comfy.lora.calculate_weight(weak[key], convert(weight.float().clone(), inplace=True), key)
    return Exchange(network, key, comfy.float.stochastic_rounding(merged, weight.dtype, seed=string_to_seed(key)))


def _is_linear(layer: nn.Module, name: str, weight: Tensor) -> bool:
    """Return whether the tensor is the weight of a linear layer or of an ungrouped convolution."""
    return (
        name == "weight"
        and weight.ndim >= 2
        and getattr(layer, "groups", 1) == 1
        and not isinstance(layer, nn.Embedding)
    )


def _factors(patch: tuple, weight: Tensor, sign: int) -> tuple[Tensor, Tensor] | None:
    """Return the factors (up, down) of a plain LoRA scaled by its strength, or None for any other patch."""
    strength, adapter, strength_model, offset, function = patch
    if not isinstance(adapter, LoRAAdapter) or strength_model != 1.0 or function is not None:
        return None
    up, down, alpha, mid, dora_scale, reshape = adapter.weights
    if mid is not None or dora_scale is not None or reshape is not None:
        return None
    scale = sign * strength * (1.0 if alpha is None else float(alpha) / len(down))
    up_OR, down_RI = scale * up.float().flatten(1), down.float()
    if offset is not None:
        axis, start, length = offset
        if axis != 0:
            return None
        whole = up_OR.new_zeros(len(weight), up_OR.shape[1])
        whole[start : start + length] = up_OR
        up_OR = whole
    return up_OR, down_RI.reshape(len(down_RI), *weight.shape[1:])
