"""A tree of tensors in a safetensors file.

A tree is a nest of dicts with text as keys, lists, tensors, whatever else JSON can say. Its tensors are those of the
file, the rest stands in the file's metadata, so that nothing in it can run code when it is opened.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Tree = Any

_TENSOR = "__tensor__"


def write_tree(path: Path, tree: Tree) -> None:
    """Write a tree, then wait until it is on the disk.

    Args:
        path: a .safetensors file; tensors are named after their place ("data.generator").
        tree: tensors of any device.
    Raises:
        TypeError, ValueError: what JSON cannot say (NaN, keys other than text, objects).
        OSError, SafetensorError: the disk is full or not writable; the file may be there in part.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(tree, "", tensors), allow_nan=False)
    save_file(tensors, path, metadata={"tree": text})
    flush(path)


def read_tree(path: Path) -> Tree:
    """Read a tree back, tensors on the CPU, tuples as lists.

    Raises:
        OSError, SafetensorError, LookupError, TypeError, ValueError: not a file that `write_tree` wrote.
    """
    with safe_open(path, "pt") as file:
        # cloned, for what safetensors hands out is mapped from a file that will be deleted
        return _unpacked(json.loads(file.metadata()["tree"]), lambda key: file.get_tensor(key).clone())


def flush(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders; it writes renames through its journal
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _packed(tree: Tree, place: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a tree into `tensors`, each named after its place; return what remains for JSON."""
    if isinstance(tree, Tensor):
        while place in tensors or place in ("", "__metadata__"):
            place += "_"
        tensors[place] = _apart(tree.detach().to("cpu").contiguous(), tensors)
        return {_TENSOR: place}
    if isinstance(tree, Mapping):
        if _TENSOR in tree or not all(isinstance(key, str) for key in tree):
            raise TypeError(f"a checkpoint has text as keys, none of them {_TENSOR}; {place or 'it'} has {list(tree)}")
        return {key: _packed(value, f"{place}.{key}".lstrip("."), tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_packed(value, f"{place}.{index}".lstrip("."), tensors) for index, value in enumerate(tree)]
    return tree


def _apart(tensor: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    """The tensor, copied where it shares memory with others, which safetensors refuses."""
    storage = tensor.untyped_storage()
    shared = any(other.untyped_storage().data_ptr() == storage.data_ptr() for other in others.values())
    return tensor.clone() if shared or storage.nbytes() != tensor.nbytes else tensor


def _unpacked(tree: Any, tensor: Callable[[str], Tensor]) -> Tree:
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensor(tree[_TENSOR])
        return {key: _unpacked(value, tensor) for key, value in tree.items()}
    return [_unpacked(value, tensor) for value in tree] if isinstance(tree, list) else tree
