"""The weights of a MODEL: what they are without patches, and what a forward pass reads.

Other loaders bring tensors of their own classes and entries of the state dict that are no tensors of the model, so
these functions ask for one parameter at a time.
"""

from __future__ import annotations

import comfy.utils
import torch
from torch import Tensor

from ..errors import InvalidConfig
from ..files.student_file import fingerprint
from ..training.adapters import PREFIX


def compute_dtype(base) -> torch.dtype:
    """Return the dtype that a host's model computes in, which may differ from that of its weights."""
    return base.manual_cast_dtype or base.get_dtype()


def is_dynamic(patcher) -> bool:
    """Return whether the host streams the weights of a MODEL (dynamic VRAM) instead of merging its LoRAs."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def merged(patcher):
    """Return a MODEL whose layers read their parameters: with dynamic VRAM one on a copy of the weights, else itself.

    Raises:
        InvalidConfig: the host cannot load the model again.
    """
    if not is_dynamic(patcher):
        return patcher
    if patcher.cached_patcher_init is None:
        raise InvalidConfig(
            "training with dynamic VRAM needs its own copy of the model, which the node that loaded this one cannot "
            "make; use Load Diffusion Model or Load Checkpoint, or start ComfyUI with --disable-dynamic-vram"
        )
    return patcher.get_non_dynamic_delegate()


def beside(patcher, other):
    """Return a clone of a MODEL on the copy of the weights that another clone of it has got from the host."""
    return patcher.clone(disable_dynamic=True, model_override=other.get_clone_model_override())


def unpatched(patcher, key: str) -> Tensor:
    """Return the stored weight of one parameter, without LoRAs and hooks."""
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]
    if key in patcher.backup:
        return patcher.backup[key].weight
    return comfy.utils.get_attr(patcher.model, key)


def is_patched(patcher, key: str) -> bool:
    """Return whether the host applies patches of this parameter.

    It skips buffers and parameters of modules that contain others. With dynamic VRAM it also skips modules that are not
    of its own classes.
    """
    path, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(patcher.model, path)
    own = {name for name, _ in layer.named_parameters(recurse=False)}
    if is_dynamic(patcher) and not hasattr(layer, "comfy_cast_weights"):
        return False
    return name in own and own == {name for name, _ in layer.named_parameters()}


def is_merged(patcher, key: str) -> bool:
    """Return whether the forward pass reads this parameter of a loaded MODEL as it is.

    The host patches weights that are kept out of video memory on the fly. With dynamic VRAM it keeps a patched copy.
    """
    path, _, name = key.rpartition(".")
    layer = comfy.utils.get_attr(patcher.model, path)
    on_the_fly = getattr(layer, f"{name}_function", None) or getattr(layer, f"{name}_lowvram_function", None)
    return not on_the_fly and (key in patcher.backup or not is_dynamic(patcher))


def stored_weights(patcher, prefix: str) -> dict[str, Tensor]:
    """Return the stored weight of every parameter and saved buffer whose name has a prefix."""
    model = patcher.model
    known = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {key: unpatched(patcher, key) for key in model.state_dict() if key.startswith(prefix) and key in known}


def base_fingerprint(patcher) -> str:
    """Return the fingerprint of a MODEL's weights without LoRAs and merges."""
    stored = stored_weights(patcher, PREFIX)
    return fingerprint({name.removeprefix(PREFIX): weight for name, weight in stored.items()})
