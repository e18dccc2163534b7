"""Conversion of weights in a pickle to safetensors, without running code in it.

Publishers nest the weights in a pickle: {"state_dict": ...}, or {"model": ..., "ema": ...} of which only one is right.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointMismatch, InvalidConfig
from .output_file import check_target
from .tensor_file import SUFFIX, read_tensors, what_it_is, write_tensors

TOP = "."
"""Name of the state that is not nested."""
DEEPEST = 3
OPTIMIZER = "optim"
"""How the names of the states of optimizers start, which hold tensors but no weights."""


def convert(source: Path, target: Path, state: str = "") -> tuple[str, int]:
    """Convert a pickle of tensors to safetensors.

    Args:
        source: a pickle of torch, or a safetensors file.
        target: a new .safetensors file.
        state: name of the state to take; empty if there is only one.
    Returns:
        (name of the state, number of tensors written).
    Raises:
        CheckpointMismatch: the source cannot be read as tensors, or the target has another suffix.
        InvalidConfig: the source has several states, and none of them is chosen.
        TargetExists, NotWritten: the target exists, or its folder is read-only.
    """
    if target.suffix != SUFFIX:
        raise CheckpointMismatch(f"{target.name} does not end with {SUFFIX}; give it this suffix")
    check_target(target)
    name, tensors = _chosen(_states(_read(source)), state, source)
    write_tensors(target, {name: value.clone().contiguous() for name, value in tensors.items()}, {})
    return name, len(tensors)


def _read(source: Path) -> Any:
    if source.suffix.lower() == SUFFIX:
        return read_tensors(source)[0]
    if not source.is_file():
        raise CheckpointMismatch(f"{source} is {'a folder' if source.is_dir() else 'missing'}; give a file of weights")
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = what_it_is(source) or type(error).__name__
        raise CheckpointMismatch(
            f"{source.name} cannot be read without running code in it ({reason}); get a file of tensors from its "
            "publisher"
        ) from error


def _states(loaded: Any, place: str = TOP, depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the states in a pickle by their place, e.g. "ema.shadow".

    A state is a mapping with text as keys and at least one tensor that is more than a number.
    """
    if not isinstance(loaded, Mapping) or depth > DEEPEST:
        return {}
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor) and isinstance(name, str)}
    found = {place: tensors} if any(value.ndim for value in tensors.values()) else {}
    for name, value in loaded.items():
        if isinstance(name, str) and not name.startswith(OPTIMIZER):
            found |= _states(value, name if place == TOP else f"{place}.{name}", depth + 1)
    return found


def _chosen(states: Mapping[str, dict[str, Tensor]], state: str, source: Path) -> tuple[str, dict[str, Tensor]]:
    if not states:
        raise CheckpointMismatch(f"{source.name} contains no tensors; get the original file from its publisher")
    listed = ", ".join(f"{name} ({len(tensors)} tensors)" for name, tensors in states.items())
    if state and state not in states:
        raise InvalidConfig(f"{source.name} has no state {state}; choose one of {listed}")
    if not state and len(states) > 1:
        raise InvalidConfig(f"{source.name} has several states: {listed}; choose one with --state NAME")
    name = state or next(iter(states))
    for weight, value in states[name].items():
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointMismatch(
                f"{source.name} has {weight} sparse or quantized, which safetensors cannot hold; get plain tensors"
            )
    return name, states[name]
