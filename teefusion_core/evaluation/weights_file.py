"""Weights that a user gives: safetensors, nothing that could run code."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointMismatch

SUFFIX = ".safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a file.

    Raises:
        CheckpointMismatch: no such file, a pickle, or no whole safetensors file.
    """
    if path.suffix.lower() in PICKLES:
        raise CheckpointMismatch(
            f"{path.name} is a pickle, which can run code when it is opened; write it as safetensors once, with "
            f"python -m teefusion_core convert {path.name} {path.stem}{SUFFIX}, then choose that"
        )
    if not path.is_file():
        raise CheckpointMismatch(f"there is no file {path}; put it there, or correct the name")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(
            f"{path.name} is no whole safetensors file ({error}); copy or download it again"
        ) from error


def below(tensors: Mapping[str, Tensor], known: str) -> dict[str, Tensor] | None:
    """Return tensors by the names that they have in their own model, whatever stands before these in the file.

    Args:
        tensors: as they are in a file.
        known: a name that the model always has; None is returned where no tensor ends with it.
    """
    ends = (name for name in tensors if name == known or name.endswith(f".{known}"))
    found = min(ends, key=len, default=None)
    if found is None:
        return None
    prefix = found.removesuffix(known)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
