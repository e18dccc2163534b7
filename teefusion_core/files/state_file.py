"""The state of a training process in a safetensors file.

A state is a tree of dicts with text as keys, lists, tensors and anything else that JSON can hold. Its tensors become
those of the file, and the rest goes into the file's metadata.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .tensor_file import read_tensors, write_tensors

Tree = Any

_TENSOR = "__tensor__"


def write_tree(path: Path, tree: Tree) -> None:
    """Write a tree atomically.

    Args:
        path: a .safetensors file; tensors are named after their place ("data.generator").
        tree: the tree, with tensors on any device.
    Raises:
        TypeError, ValueError: the tree has values that JSON cannot store (NaN, keys other than text, objects).
        NotWritten: the disk is full or not writable.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(tree, "", tensors), allow_nan=False)
    write_tensors(path, tensors, {"tree": text})


def read_tree(path: Path) -> Tree:
    """Read a tree; its tensors are on the CPU, and its tuples have become lists.

    Raises:
        CheckpointMismatch, LookupError, TypeError, ValueError: `write_tree` did not write this file.
    """
    tensors, metadata = read_tensors(path)
    # cloned, as they are mapped from a file that will be deleted
    return _unpacked(json.loads(metadata["tree"]), lambda key: tensors[key].clone())


def _packed(tree: Tree, place: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a tree into `tensors`, each named after its place; return what remains for JSON."""
    if isinstance(tree, Tensor):
        while place in tensors or place in ("", "__metadata__"):
            place += "_"
        tensors[place] = _apart(tree.detach().to("cpu").contiguous(), tensors)
        return {_TENSOR: place}
    if isinstance(tree, Mapping):
        if _TENSOR in tree or not all(isinstance(key, str) for key in tree):
            raise TypeError(f"{place or 'the tree'} has the keys {list(tree)}; use text other than {_TENSOR}")
        return {key: _packed(value, f"{place}.{key}".lstrip("."), tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_packed(value, f"{place}.{index}".lstrip("."), tensors) for index, value in enumerate(tree)]
    return tree


def _apart(tensor: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor, copied if it shares memory with others, which safetensors refuses."""
    storage = tensor.untyped_storage()
    shared = any(other.untyped_storage().data_ptr() == storage.data_ptr() for other in others.values())
    return tensor.clone() if shared or storage.nbytes() != tensor.nbytes else tensor


def _unpacked(tree: Any, tensor: Callable[[str], Tensor]) -> Tree:
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensor(tree[_TENSOR])
        return {key: _unpacked(value, tensor) for key, value in tree.items()}
    return [_unpacked(value, tensor) for value in tree] if isinstance(tree, list) else tree
