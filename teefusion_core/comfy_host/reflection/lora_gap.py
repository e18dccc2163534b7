"""Two LoRA settings on one copy of the weights.

Clones of a MODEL share their weights, so only one of two LoRA settings can be merged. For the other setting, the
difference of the two is added to the output of each affected layer; it has low rank as well. A small merged tensor,
and one that is not changed by a plain LoRA on a linear or convolution layer, is replaced as a whole. Both last only for
the length of a block, so nothing is loaded again.

Shapes: O output width, I input width, R rank (of all LoRAs of a layer together).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import comfy.float
import comfy.lora
import comfy.model_patcher
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...errors import InvalidConfig
from ...reflection.low_rank import LowRank
from ...training.update import is_plain
from ..weights import is_merged, is_patched, unpatched

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
    merged: bool
    """Whether the forward pass reads the parameter; otherwise it reads what the functions of the layer return."""
    functions: list | None = None
    """Those of the layer while others are in their place."""

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the value to where it is used; a large one of a streamed layer stays where its parameter is."""
        parameter = comfy.utils.get_attr(self.network, self.key)
        if self.merged:
            self.value = self.value.to(parameter.device)
        else:
            self.value = self.value.to(parameter.device if self.value.numel() > SMALL else device, dtype)

    @property
    def layer(self) -> nn.Module:
        """The module with the parameter."""
        return comfy.utils.get_attr(self.network, self.key.rpartition(".")[0])

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set the parameter to the value inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Undo `active` inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        if self.merged:
            parameter = comfy.utils.get_attr(self.network, self.key)
            self.value, parameter.data = parameter.data, self.value
            return
        layer, attribute = self.layer, f"{self.key.rpartition('.')[2]}_function"
        before = getattr(layer, attribute)
        others = [function for function in before if not isinstance(function, comfy.model_patcher.LowVramPatch)]
        setattr(layer, attribute, [self.value.to, *others] if self.functions is None else self.functions)
        self.functions = before if self.functions is None else None


class LoraGap:
    """The changes from the merged weights of one clone to those of another."""

    def __init__(self, changes: list[LowRank | Exchange]):
        self.changes, self.effective = changes, False
        """Whether a layer has been seen to compute something else because of a change."""

    @classmethod
    def between(cls, strong, weak) -> LoraGap:
        """Return the changes between two clones, one of which is loaded.

        Args:
            strong: the ComfyUI MODEL that is loaded, with its patches merged.
            weak: a clone of the same base with other patches.
        Raises:
            InvalidConfig: a change is not a LoRA, and the layer computes with weights of another loader; or a network
                is compiled by a torch that cannot run it eagerly.
        """
        keys = sorted({*strong.patches, *weak.patches})
        changes = (_change(strong, weak, k) for k in keys if _differ(strong, weak, k) and is_patched(strong, k))
        found = [change for change in changes if change is not None]
        if found and not hasattr(torch.compiler, "set_stance") and (_compiled(strong) or _compiled(weak)):
            raise InvalidConfig(
                "strong and weak model share their weights but differ in LoRAs, and torch.compile is on one of them, "
                "which needs torch 2.6 or newer; remove the compile node, or load the weak model from its own file"
            )
        return cls(found)

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
                if not self.effective:
                    stack.callback(self._watched(change))
            yield

    def _watched(self, change: LowRank | Exchange) -> Callable[[], None]:
        hook = partial(self._compare, change)
        return change.layer.register_forward_hook(hook, with_kwargs=True).remove

    def _compare(self, change: LowRank | Exchange, layer: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        """Compare what a layer returns with what it returns without the change, until one layer differs."""
        if self.effective:
            return
        with change.suspended() if isinstance(change, Exchange) else nullcontext():
            self.effective = not torch.equal(layer.forward(*args, **kwargs), out)


def _eager() -> AbstractContextManager:
    """Run compiled networks eagerly: their graphs would ignore hooks that are added later.

    If torch._dynamo is not imported, nothing has been compiled; importing it takes seconds.
    """
    known = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    return torch.compiler.set_stance("force_eager") if known else nullcontext()


def _compiled(patcher) -> bool:
    """Return whether a node has compiled a network of this MODEL, as a wrapper of the host or in its place."""
    replaced = (hasattr(value, "_orig_mod") for value in patcher.object_patches.values())
    return "torch_compile_kwargs" in patcher.model_options or any(replaced)


def _differ(strong, weak, key: str) -> bool:
    """Return whether two clones patch a parameter differently; clones share the patch objects."""
    return [id(patch) for patch in strong.patches.get(key, [])] != [id(patch) for patch in weak.patches.get(key, [])]


def _change(strong, weak, key: str) -> LowRank | Exchange | None:
    """Return the change of one parameter, as a low-rank update if that is exact; None if LoRAs cancel out."""
    path, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(strong.model, path)
    weight, merged = unpatched(strong, key), is_merged(strong, key)
    coded = not is_plain(weight) or hasattr(layer, f"convert_{name}")
    patches = weak.patches.get(key, [])
    if coded or weight.numel() > SMALL:
        lists = [(1, patch) for patch in patches] + [(-1, patch) for patch in strong.patches.get(key, [])]
        linear = _is_linear(layer, name, weight)
        factors = [_factors(patch, weight, sign) if linear else None for sign, patch in lists]
        plain = [found for found in factors if found is not None]
        if len(plain) == len(lists):
            return _low_rank(layer, plain)
    if not coded and not merged:  # the host casts what it reads from the file first
        weight = weight.to(getattr(layer, f"{name}_comfy_model_dtype", None) or weight.dtype)
    if is_plain(weight) and not patches:
        value = weight.clone()  # stochastic rounding would change even unpatched 8-bit weights
    elif coded:
        raise InvalidConfig(
            f"the weak model changes {key} by something other than a LoRA, which is not possible while it shares its "
            "quantised weights with the strong one; load the weak model from its own file"
        )
    else:
        value = comfy.lora.calculate_weight(patches, weight.float().clone(), key)
        if merged:  # as the host does
            value = comfy.float.stochastic_rounding(value, weight.dtype, seed=string_to_seed(key))
    return Exchange(strong.model, key, value, merged)


def _is_linear(layer: nn.Module, name: str, weight: Tensor) -> bool:
    """Return whether the tensor is the weight of a linear layer or of an ungrouped convolution."""
    return (
        name == "weight"
        and weight.ndim >= 2
        and getattr(layer, "groups", 1) == 1
        and not isinstance(layer, nn.Embedding)
    )


def _low_rank(layer: nn.Module, factors: list[tuple[float, Tensor, Tensor]]) -> LowRank | None:
    """Return the sum of LoRAs as one update, or None if it is zero.

    Equal LoRAs are added up first: one file on both sides at two strengths needs only one of them.
    """
    different: list[tuple[float, Tensor, Tensor]] = []
    for scale, up_OR, down_RI in factors:
        same = (n for n, (_, *other) in enumerate(different) if all(map(torch.equal, other, (up_OR, down_RI))))
        if (found := next(same, None)) is None:
            different.append((scale, up_OR, down_RI))
        else:
            different[found] = (different[found][0] + scale, up_OR, down_RI)
    left = [(scale * up_OR, down_RI) for scale, up_OR, down_RI in different if scale]
    if not left:
        return None
    ups, downs = zip(*left, strict=True)
    return LowRank(layer, torch.cat(ups, dim=1), torch.cat(downs))


def _factors(patch: tuple, weight: Tensor, sign: int) -> tuple[float, Tensor, Tensor] | None:
    """Return the scale and the factors (scale, up, down) of a plain LoRA, or None for any other patch."""
    strength, adapter, strength_model, offset, function = patch
    if not isinstance(adapter, LoRAAdapter) or strength_model != 1.0 or function is not None:
        return None
    up, down, alpha, mid, dora_scale, reshape = adapter.weights
    if mid is not None or dora_scale is not None or reshape is not None:
        return None
    scale = sign * strength * (1.0 if alpha is None else float(alpha) / len(down))
    up_OR, down_RI = up.float().flatten(1), down.float()
    if offset is not None:
        axis, start, length = offset
        if axis != 0:
            return None
        whole = up_OR.new_zeros(len(weight), up_OR.shape[1])
        whole[start : start + length] = up_OR
        up_OR = whole
    return scale, up_OR, down_RI.reshape(len(down_RI), *weight.shape[1:])
