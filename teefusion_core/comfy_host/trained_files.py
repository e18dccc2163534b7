"""The files that nodes offer: students and sharpeners in the host's folders, and the included sharpeners."""

from pathlib import Path

import folder_paths

from ..errors import CheckpointMismatch
from .demo_model import MODELS as INCLUDED

UPDATES, MODELS = "loras", "diffusion_models"
"""The host's folders of students that change a base (sharpeners too), and of students that are whole models."""


def update_files() -> list[str]:
    """Return the files of the host's LoRA folders."""
    return folder_paths.get_filename_list(UPDATES)


def student_files() -> list[str]:
    """Return the files of the host's LoRA folders, then those of its diffusion model folders with a prefix."""
    return [*update_files(), *(f"{MODELS}/{name}" for name in folder_paths.get_filename_list(MODELS))]


def student_file(name: str) -> Path:
    """Return the path of a file in the host's folders.

    Args:
        name: as `student_files` lists it.
    Raises:
        CheckpointMismatch: no such file, or it is outside of these folders.
    """
    kind, inside = UPDATES, name
    if name not in update_files() and name.startswith(f"{MODELS}/"):
        kind, inside = MODELS, name.removeprefix(f"{MODELS}/")
    path = folder_paths.get_full_path(kind, inside)
    if path is None or name not in student_files():
        raise CheckpointMismatch(f"{name} is in none of the {kind} folders; copy the file there and choose it again")
    return Path(path)


def sharpener_files() -> list[str]:
    """Return the included sharpeners, then the files of the host's LoRA folders."""
    listed = update_files()
    return [*(name for name in _included() if name not in listed), *listed]


def sharpener_file(name: str) -> Path:
    """Return the path of a file; one of the user hides an included one of the same name.

    Args:
        name: as `sharpener_files` lists it.
    Raises:
        CheckpointMismatch: no such file, or it is outside of these folders.
    """
    included = _included()
    return included[name] if name in included and name not in update_files() else student_file(name)


def file_stamp(name: str | None) -> str:
    """Return a string that changes when the file of this name changes.

    Args:
        name: as a node lists it. None, which the host gives for an input that is linked, has a stamp that stays: the
            host compares what the link comes from itself.
    """
    if name is None:
        return ""
    try:
        found = student_file(name).stat()
    except (CheckpointMismatch, OSError):
        return name  # the node itself reports the error
    return f"{name} {found.st_size} {found.st_mtime_ns}"


def _included() -> dict[str, Path]:
    return {path.name: path for path in sorted(INCLUDED.glob("demo_*_sharpener.safetensors"))}
