"""Safetensors files with metadata: all reading and writing.

Opening such a file cannot run code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointMismatch
from .output_file import written

SUFFIX = ".safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file atomically; missing folders are created.

    Args:
        path: a .safetensors file; an existing one is replaced.
        tensors: contiguous tensors that share no memory, on any device.
        metadata: text by name.
    Raises:
        NotWritten: the disk is full or not writable.
    """
    with written(path) as part:
        save_file(dict(tensors), part, metadata=dict(metadata))


def open_tensors(path: Path) -> Any:
    """Open a file whose tensors are read one by one, with `get_tensor`, `get_slice`, `keys` and `metadata`.

    Raises:
        CheckpointMismatch: the file is missing, cut off, or not safetensors.
    """
    if path.suffix.lower() in PICKLES:
        raise CheckpointMismatch(
            f"{path.name} is not a {SUFFIX} file; other kinds can run code when opened, so they are not read. Convert "
            f"weights once: python -m teefusion_core convert {path.name} {path.stem}{SUFFIX}"
        )
    if not path.is_file():
        raise CheckpointMismatch(f"{path.name} does not exist; choose another file, or copy it to its folder")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(
            f"{path.name} is not an intact safetensors file ({error}); download or copy it again"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors on the CPU, mapped from the file, and metadata; raises what `open_tensors` raises."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  not a dict


def first_shape_mismatch(
    ours: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[str, list[int] | None, list[int] | None] | None:
    """Return the first name whose tensors differ in shape, with both shapes: ours and given; None if one is missing.

    Returns:
        None if all shapes are equal.
    """
    shapes, others = ({name: list(tensor.shape) for name, tensor in which.items()} for which in (ours, given))
    different = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
    return (different[0], shapes.get(different[0]), others.get(different[0])) if different else None


def without_prefix(tensors: Mapping[str, Tensor], known: str) -> dict[str, Tensor] | None:
    """Return tensors under the names of their own model, without the prefix that a file adds.

    Args:
        tensors: tensors of a file.
        known: a name that the model always has; the result is None if no tensor ends with it.
    """
    ends = (name for name in tensors if name == known or name.endswith(f".{known}"))
    found = min(ends, key=len, default=None)
    if found is None:
        return None
    prefix = found.removesuffix(known)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
