"""A student file on a ComfyUI model."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import comfy.lora
import comfy.sd
import folder_paths
from torch import Tensor

from ...errors import CheckpointMismatch, InvalidConfig
from ...files.student_file import StudentInfo, check_base, fingerprint, read_student
from ...guidance.methods import EMBEDDER, METHODS, GuidanceEmbedder
from ...training.adapters import FULL, PREFIX
from .patch import EMBEDDER_KEY, STUDENT_KEY, why_no_base

UPDATES, MODELS = "loras", "diffusion_models"
"""The host's folders for students that change a base, for those that are models of their own."""
LOADED = "TeEFusion student"  # who speaks when another node saves it


def base_fingerprint(model_patcher) -> str:
    """Name the unpatched weights of a MODEL, LoRA and merges not counted."""
    originals = model_patcher.get_key_patches(PREFIX)
    return fingerprint({name.removeprefix(PREFIX): patches[0][0] for name, patches in originals.items()})


def student_files() -> list[str]:
    """Names of the files in the host's LoRA folders, then those of its diffusion model folders with their kind."""
    return [*update_files(), *(f"{MODELS}/{name}" for name in folder_paths.get_filename_list(MODELS))]


def update_files() -> list[str]:
    """Names of the files in the host's LoRA folders."""
    return folder_paths.get_filename_list(UPDATES)


def student_file(name: str) -> Path:
    """Return where a file of the host's folders is.

    Args:
        name: as `student_files` lists it.
    Raises:
        CheckpointMismatch: there is none of this name, or it lies outside of these folders.
    """
    kind, inside = UPDATES, name
    if name not in update_files() and name.startswith(f"{MODELS}/"):
        kind, inside = MODELS, name.removeprefix(f"{MODELS}/")
    path = folder_paths.get_full_path(kind, inside)
    if path is None or name not in student_files():
        raise CheckpointMismatch(f"{name} is in none of the {kind} folders; put the file there, then choose it again")
    return Path(path)


def file_stamp(name: str) -> str:
    """Tell a file of the host's folders from what stood there before under the same name."""
    try:
        found = student_file(name).stat()
    except (CheckpointMismatch, OSError):
        return name  # the node itself says what is wrong
    return f"{name} {found.st_size} {found.st_mtime_ns}"


def load_student(model_patcher, path: Path):
    """Return a MODEL that is the student of a file.

    Args:
        model_patcher: the base, of which a clone is patched; None where the file has all weights.
        path: student file.
    Raises:
        CheckpointMismatch: damaged file, foreign file, other base, a base that is none, or tensors that the model has
            no place for.
        InvalidConfig: no base for a file that changes one.
    """
    tensors, info = read_student(path)
    if info.method not in METHODS:
        raise CheckpointMismatch(
            f"{path.name} is a student by {info.method!r}, this pack knows {', '.join(METHODS)}; update the pack"
        )
    embedder = _embedder(tensors, info, path)
    if model_patcher is not None:
        check_base(info, base_fingerprint(model_patcher), path)
    elif info.mode != FULL:
        raise InvalidConfig(f"{path.name} changes the base {info.base}; connect the model that it was trained from")
    student = _whole(tensors, path) if info.mode == FULL else _patched(model_patcher, tensors, path)
    student.set_attachments(STUDENT_KEY, asdict(info))
    student.set_attachments(EMBEDDER_KEY, embedder)
    student.add_object_patch("state_dict_for_saving", partial(_refuse_saving, path.name))
    return student


def _refuse_saving(name: str, *args, **kwargs) -> None:
    raise InvalidConfig(
        f"{LOADED}: {name} is a student, more than weights; a checkpoint would lose its gain and its range of "
        "guidance, then sample wrongly. Keep the student file with its base, or train a whole student"
    )


def _embedder(tensors: dict[str, Tensor], info: StudentInfo, path: Path) -> GuidanceEmbedder | None:
    """Take the layers that the method has of its own out of the tensors."""
    names = [name for name in tensors if name.startswith(EMBEDDER)]
    weights = {name.removeprefix(EMBEDDER): tensors.pop(name) for name in names}
    if not METHODS[info.method].embeds:
        return None
    try:
        return GuidanceEmbedder.of(weights)
    except (KeyError, RuntimeError) as error:
        raise CheckpointMismatch(f"{path.name} lacks the layers of a {info.method} student; copy it again") from error


def _whole(tensors: Mapping[str, Tensor], path: Path):
    student = comfy.sd.load_diffusion_model_state_dict(dict(tensors))
    if student is None:
        raise CheckpointMismatch(f"{path.name} holds no model that this ComfyUI knows; update ComfyUI")
    return student


def _patched(model_patcher, tensors: Mapping[str, Tensor], path: Path):
    if why := why_no_base(model_patcher):
        raise CheckpointMismatch(
            f"{path.name} changes a base, this model {why}; connect the base itself (of the demo model: variant base)"
        )
    student = model_patcher.clone()
    places = comfy.lora.model_lora_keys_unet(student.model, {})
    patches = comfy.lora.load_lora(tensors, places, log_missing=False)
    updates = [name for name in tensors if not name.endswith((".alpha", ".lora_down.weight"))]
    if len(student.add_patches(patches)) != len(updates):
        raise CheckpointMismatch(
            f"{path.name} has {len(updates)} updates, only {len(patches)} fit this model; the file is damaged "
            "or for a newer version of this pack"
        )
    return student
