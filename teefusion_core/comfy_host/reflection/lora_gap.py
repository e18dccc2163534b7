"""Two LoRA settings on one copy of the weights.

Clones of one MODEL share their weights, so that only one of two LoRA settings can be merged into them. The
other is had from it by adding the difference of the two, which is again of low rank, to the output of every layer
concerned; a small tensor, or one changed by something else than a plain LoRA on a linear or convolution layer, is
exchanged as a whole. Both last only as long as the block, hence nothing is reloaded.

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
except ImportError:  # an older ComfyUI has it elsewhere, a newer one warns there at every call
    from comfy.model_patcher import string_to_seed

SMALL = 2**20
"""Elements up to which a second copy of a weight costs less than two more calls per layer."""


@dataclass
class Exchange:
    """Another value for one parameter."""

    network: nn.Module
    key: str
    value: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the value to where the parameter is."""
        self.value = self.value.to(comfy.utils.get_attr(self.network, self.key).device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the value in the parameter inside the block."""
        parameter = comfy.utils.get_attr(self.network, self.key)
        merged, parameter.data = parameter.data, self.value
        try:
            yield
        finally:
            parameter.data = merged


class LoraGap:
    """What turns the weights that one clone merges into those of another."""

    def __init__(self, changes: list[LowRank | Exchange]):
        self.changes = changes

    @classmethod
    def between(cls, strong, weak) -> LoraGap:
        """Compare two clones, one of which is loaded.

        Args:
            strong: the ComfyUI MODEL that is loaded, with its patches merged.
            weak: a clone of the same base with other patches.
        Raises:
            InvalidConfig: a change that needs a tensor which is kept out of video memory.
        """
        keys = [k for k in sorted({*strong.patches, *weak.patches}) if _differ(strong, weak, k) and _merged(strong, k)]
        originals = strong.get_key_patches()
        return cls([_change(strong.model, k, originals[k], strong.patches, weak.patches) for k in keys])

    def __bool__(self) -> bool:
        return bool(self.changes)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready for a run: tensors to the device, in the data type of the computation."""
        for change in self.changes:
            change.to(device, dtype)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the weak setting inside the block."""
        with ExitStack() as stack:
            if self.changes:
                stack.enter_context(_as_written())
            for change in self.changes:
                stack.enter_context(change.active())
            yield


def _as_written() -> AbstractContextManager:
    """Have compiled networks run as they are written: their graphs do not look for updates that come and go.

    Without torch._dynamo nothing has been compiled yet; importing it takes seconds.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _differ(strong, weak, key: str) -> bool:
    """Are the patches of a parameter others? Clones hand on the very same objects."""
    return [id(patch) for patch in strong.patches.get(key, [])] != [id(patch) for patch in weak.patches.get(key, [])]


def _merged(patcher, key: str) -> bool:
    """Does the host merge patches of this tensor? It passes over buffers with whatever is no leaf's parameter."""
    path, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(patcher.model, path)
    own = {name for name, _ in layer.named_parameters(recurse=False)}
    return name in own and own == {name for name, _ in layer.named_parameters()}


def _change(network: nn.Module, key: str, original: list, strong: dict, weak: dict) -> LowRank | Exchange:
    """The change of one parameter, in the leanest form that is exact."""
    path, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(network, path)
    lists = [(sign, patch) for sign, patches in ((1, weak), (-1, strong)) for patch in patches.get(key, [])]
    weight, convert = original[0]
    # the host applies its own patches on the fly to what it keeps out of video memory
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
            "memory; start ComfyUI with more of it, or load the weak model from a file of its own"
        )
    if not weak.get(key):
        return Exchange(network, key, weight.clone())  # rounding to 8 bits moves even what fits
    merged = comfy.lora.calculate_weight(weak[key], convert(weight.float().clone(), inplace=True), key)
    return Exchange(network, key, comfy.float.stochastic_rounding(merged, weight.dtype, seed=string_to_seed(key)))


def _is_linear(layer: nn.Module, name: str, weight: Tensor) -> bool:
    """Is the tensor the weight of a matrix product or an ungrouped convolution?"""
    return (
        name == "weight"
        and weight.ndim >= 2
        and getattr(layer, "groups", 1) == 1
        and not isinstance(layer, nn.Embedding)
    )


def _factors(patch: tuple, weight: Tensor, sign: int) -> tuple[Tensor, Tensor] | None:
    """Factors of a patch that is a plain LoRA with its strength, None for anything else."""
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
