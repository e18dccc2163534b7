"""A student file on a ComfyUI model."""

from dataclasses import asdict
from pathlib import Path

import comfy.lora
import folder_paths

from ..errors import CheckpointMismatch
from ..student_file import check_base, fingerprint, read_student
from .fuse import STUDENT_KEY

PREFIX = "diffusion_model."


def base_fingerprint(model_patcher) -> str:
    """Name the unpatched weights of a MODEL, LoRA and merges not counted."""
    originals = model_patcher.get_key_patches(PREFIX)
    return fingerprint({name.removeprefix(PREFIX): patches[0][0] for name, patches in originals.items()})


def student_files() -> list[str]:
    """Names of the files in the host's LoRA folders, students among them."""
    return folder_paths.get_filename_list("loras")


def student_file(name: str) -> Path:
    """Return where a file of the host's LoRA folders is.

    Raises:
        CheckpointMismatch: there is none of this name, or it lies outside of these folders.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None or name not in student_files():
        raise CheckpointMismatch(f"{name} is in none of the loras folders; put the file there, then choose it again")
    return Path(path)


def load_student(model_patcher, path: Path):
    """Return a clone of a base MODEL that is the student of a file.

    Args:
        model_patcher: the base; not modified.
        path: student file.
    Raises:
        CheckpointMismatch: damaged file, foreign file, other base, or tensors that this model has no place for.
    """
    tensors, info = read_student(path)
    check_base(info, base_fingerprint(model_patcher), path)
    student = model_patcher.clone()
    places = comfy.lora.model_lora_keys_unet(student.model, {})
    patches = comfy.lora.load_lora(tensors, places, log_missing=False)
    updates = [name for name in tensors if not name.endswith((".alpha", ".lora_down.weight"))]
    if len(student.add_patches(patches)) != len(updates):
        raise CheckpointMismatch(
            f"{path.name} has {len(updates)} updates, only {len(patches)} fit this model; the file is damaged "
            "or for a newer version of this pack"
        )
    student.set_attachments(STUDENT_KEY, asdict(info))
    return student
