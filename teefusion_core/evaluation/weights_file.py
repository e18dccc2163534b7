"""Safe loading of weight files: safetensors only, no pickles."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointMismatch

SUFFIX = ".safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file.

    Raises:
        CheckpointMismatch: no such file, a pickle, or a damaged file.
    """
    if path.suffix.lower() in PICKLES:
        raise CheckpointMismatch(
            f"{path.name} is a pickle, which can run code when it is opened; convert it with "
            f"python -m teefusion_core convert {path.name} {path.stem}{SUFFIX}"
        )
    if not path.is_file():
        raise CheckpointMismatch(f"there is no file {path}; copy it there or correct the name")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(
            f"{path.name} is not a whole safetensors file ({error}); copy or download it again"
        ) from error


def below(tensors: Mapping[str, Tensor], known: str) -> dict[str, Tensor] | None:
    """Return tensors without the name prefix of the file.

    Args:
        tensors: name in the file -> tensor.
        known: a name that the model always has; the result is None if no tensor name ends with it.
    """
    ends = (name for name in tensors if name == known or name.endswith(f".{known}"))
    found = min(ends, key=len, default=None)
    if found is None:
        return None
    prefix = found.removesuffix(known)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
