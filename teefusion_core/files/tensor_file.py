"""Safetensors files with metadata: all reading and writing.

Opening such a file cannot run code. A file that this pack writes lists its tensors, so that one without some of them is
noticed.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointMismatch
from .comfyui_location import PACK
from .output_file import written

SUFFIX = ".safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
LIST = "tensor_shapes"
"""Metadata key of the shape of every tensor by name, as JSON."""
COMPUTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LOOKED_AT = 256  # bytes
NAMED = 5
"""Number of rows that a message lists."""
STARTS = {
    b"<": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file itself",
    b"GGUF": "a GGUF file",
    b"{": "a JSON file",
    b"PK": "a zip archive or a pickle",
    b"\x80": "a pickle",
}
"""First bytes of a file -> what it is."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file atomically; missing folders are created.

    Args:
        path: a .safetensors file; an existing one is replaced.
        tensors: contiguous tensors that share no memory, on any device.
        metadata: text by name.
    Raises:
        NotWritten: the disk is full or not writable.
    """
    shapes = json.dumps({name: list(tensor.shape) for name, tensor in tensors.items()})
    with written(path) as part:
        save_file(dict(tensors), part, metadata={**metadata, LIST: shapes})


def open_tensors(path: Path) -> Any:
    """Open a file whose tensors are read one by one, with `get_tensor`, `get_slice`, `keys` and `metadata`.

    Raises:
        CheckpointMismatch: the file is missing, cut off, or not safetensors.
    """
    if path.is_dir():
        raise CheckpointMismatch(f"{path.name} is a folder; give the {SUFFIX} file in it")
    if path.suffix.lower() in PICKLES:
        raise CheckpointMismatch(
            f"{path.name} is not a {SUFFIX} file; other kinds can run code when opened, so they are not read. Convert "
            f"weights once with the Python of ComfyUI, in the folder {PACK}: python -m teefusion_core convert "
            f'"{path.absolute()}" "{path.absolute().with_suffix(SUFFIX)}"'
        )
    if not path.is_file():
        raise CheckpointMismatch(f"{path.name} does not exist; choose another file, or copy it to its folder")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(
            f"{path.name} is not an intact safetensors file ({what_it_is(path) or error}); download or copy it again"
        ) from error


def what_it_is(path: Path) -> str:
    """Return what a file is that cannot be read as weights, by its first bytes; empty if nothing is known."""
    with suppress(OSError), path.open("rb") as file:
        if not (start := file.read(LOOKED_AT).lstrip()):
            return "it is empty"
        kinds = (kind for mark, kind in STARTS.items() if start.startswith(mark))
        return next(
            (f"it is {kind}" for kind in kinds if path.suffix.lower() not in PICKLES or "pickle" not in kind), ""
        )
    return ""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors on the CPU, mapped from the file, and metadata.

    Raises:
        CheckpointMismatch: as `open_tensors`, or tensors are missing that this pack wrote.
    """
    with open_tensors(path) as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    try:
        wanted = json.loads(metadata.get(LIST, "{}"))
    except ValueError as error:
        raise CheckpointMismatch(f"{path.name} has no usable {LIST} in its metadata; use the original file") from error
    check_shapes(tensors, wanted, path)
    return tensors, metadata


def check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], path: Path) -> None:
    """Refuse a file that lacks tensors, or has them in another shape.

    Args:
        tensors: of the file; there may be others than those in `wanted`.
        wanted: shapes by name.
    Raises:
        CheckpointMismatch: the file is not whole.
    """
    if missing := sorted(wanted.keys() - tensors.keys()):
        rest = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise CheckpointMismatch(f"{path.name} lacks the tensor {missing[0]}{rest}; copy or download the file again")
    for name, shape in wanted.items():
        if (found := list(tensors[name].shape)) != list(shape):
            raise CheckpointMismatch(
                f"{path.name} has {name} in the shape {found} instead of {list(shape)}; use the original file"
            )


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        CheckpointMismatch: with the name of the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            known = tensor if tensor.dtype in COMPUTED else tensor.float()
            if not bool(known.isfinite().all()):
                raise CheckpointMismatch(
                    f"{path.name} has NaN or infinite weights in {name}, so every result of it would be wrong; use "
                    "another file"
                )


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


def not_finite(rows: Tensor) -> list[int]:
    """Return which rows of a tensor [B, ...] hold NaN or infinite values, counted from 1."""
    if not rows.is_floating_point():
        return []
    broken_B = ~rows.isfinite().flatten(1).all(1) if rows.ndim > 1 else ~rows.isfinite()
    return [number + 1 for number in broken_B.nonzero().flatten().tolist()]


def numbered(what: str, numbers: Sequence[int]) -> str:
    """Return e.g. "image 2" or "images 2, 3, 5, 7, 9 and 4 more"."""
    listed = ", ".join(str(number) for number in numbers[:NAMED])
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {listed}{more}"
