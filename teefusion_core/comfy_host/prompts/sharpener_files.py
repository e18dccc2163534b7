"""The sharpener files that nodes list: the included ones, and those in the LoRA folders of the host."""

from pathlib import Path

from ..demo_model import MODELS
from ..guidance.student_loader import student_file, update_files


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


def _included() -> dict[str, Path]:
    return {path.name: path for path in sorted(MODELS.glob("demo_*_sharpener.safetensors"))}
