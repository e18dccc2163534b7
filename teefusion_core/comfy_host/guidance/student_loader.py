"""Student files on ComfyUI models."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import comfy.lora
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...errors import CheckpointMismatch, InvalidConfig
from ...files.student_file import FULL, StudentInfo, check_base, read_student
from ...files.tensor_file import LIST, check_shapes, open_tensors
from ...guidance.architectures import family_of
from ...guidance.methods import EMBEDDER, GUIDANCE_LORA, LOADABLE, METHODS, GuidanceEmbedder
from ...training.adapters import LORA_ENDS, file_names, file_shapes
from ..model_files import network_of
from ..weights import base_fingerprint
from .attachments import EMBEDDER_KEY, LORA_KEY, STUDENT_KEY, why_no_base
from .guidance_range import check_guidance
from .patch import weaken_backup
from .wiring import note_unguided

LABEL = "TeEFusion student"  # prefix of errors that another node triggers


def load_student(model_patcher, path: Path):
    """Return the MODEL of a student file.

    Args:
        model_patcher: the base; a clone of it is patched. None if the file holds a whole model.
        path: student file.
    Raises:
        CheckpointMismatch: the file is damaged, of another kind or for another base, the base is already a student, or
            the model lacks layers that the file changes.
        InvalidConfig: the file needs a base model, but model is not connected.
    """
    tensors, info = read_student(path)
    if info.method not in LOADABLE:
        raise CheckpointMismatch(
            f"{path.name} was trained by {info.method!r}, this pack knows {', '.join(LOADABLE)}; update the pack"
        )
    check_guidance(info, path)
    embedder = _embedder(tensors, info, path)
    if model_patcher is not None:
        check_base(info.base, base_fingerprint(model_patcher), path)
    elif info.mode != FULL:
        raise InvalidConfig(f"{path.name} changes the base {info.base}; connect the model that it was trained from")
    student = _whole(tensors, path) if info.mode == FULL else _patched(model_patcher, tensors, info.method, path)
    _check_embedder(embedder, student.model.diffusion_model, path)
    student.set_attachments(STUDENT_KEY, asdict(info))
    student.set_attachments(EMBEDDER_KEY, embedder)
    student.add_object_patch("state_dict_for_saving", partial(_refuse_saving, path.name))
    student.add_callback_with_key(CallbacksMP.ON_PRE_RUN, STUDENT_KEY, weaken_backup)
    student.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, STUDENT_KEY, note_unguided)
    return student


def _refuse_saving(name: str, *args, **kwargs) -> None:
    raise InvalidConfig(
        f"{LABEL}: {name} is a student and cannot be saved as a checkpoint, which would lose its gain and its guidance "
        "range. Keep the student file"
    )


def _embedder(tensors: dict[str, Tensor], info: StudentInfo, path: Path) -> GuidanceEmbedder | None:
    """Remove the weights of the GuidanceEmbedder from the tensors and return it, or None."""
    names = [name for name in tensors if name.startswith(EMBEDDER)]
    weights = {name.removeprefix(EMBEDDER): tensors.pop(name) for name in names}
    if info.method not in METHODS or not METHODS[info.method].embeds:
        return None
    try:
        return GuidanceEmbedder.of(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointMismatch(f"{path.name} lacks the layers of a {info.method} student; copy it again") from error


def _check_embedder(embedder: GuidanceEmbedder | None, network, path: Path) -> None:
    family = family_of(network)
    if embedder is None or family is None:
        return
    wanted = {"mlp.0.weight": (family.widths(network)[1], family.sinusoid_width(network))}
    check_shapes(embedder.state_dict(), wanted, path)


def _check_whole(network, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse an update without some of its tensors; a file without a list of them must be one that can be trained."""
    check_shapes(tensors, file_shapes(tensors, network), path)
    family = family_of(network)
    if family is None or LIST in (open_tensors(path).metadata() or {}):
        return
    ways = file_names(network, family).values()
    if not any(names == tensors.keys() for names in ways):
        missing = min(
            (sorted(names - tensors.keys()) for names in ways if tensors.keys() <= names), key=len, default=[]
        )
        found = f"lacks the tensor {missing[0]}" if missing else "changes other layers than a training does"
        raise CheckpointMismatch(f"{path.name} {found}, so it was cut or edited; use the original file")


def _whole(tensors: Mapping[str, Tensor], path: Path, **options):
    student = network_of(tensors, path, **options)
    student.cached_patcher_init = (_whole_again, (path,))
    return student


def _whole_again(path: Path, **options):
    """Load the weights of a whole student once more, for torch.compile and LoRA hooks with dynamic VRAM."""
    tensors = {name: tensor for name, tensor in read_student(path)[0].items() if not name.startswith(EMBEDDER)}
    return _whole(tensors, path, **options)


def _patched(model_patcher, tensors: Mapping[str, Tensor], method: str, path: Path):
    """Return a clone with the update; a guidance LoRA waits on it for its strength."""
    if why := why_no_base(model_patcher):
        raise CheckpointMismatch(
            f"{path.name} changes a base, but this model {why}; connect the base itself (demo model: variant base)"
        )
    _check_whole(model_patcher.model.diffusion_model, tensors, path)
    student = model_patcher.clone()
    places = comfy.lora.model_lora_keys_unet(student.model, {})
    patches = comfy.lora.load_lora(tensors, places, log_missing=False)
    updates = [name for name in tensors if not name.endswith(LORA_ENDS[:2])]
    if method == GUIDANCE_LORA:
        student.set_attachments(LORA_KEY, patches)
    if len((student.clone() if method == GUIDANCE_LORA else student).add_patches(patches)) != len(updates):
        raise CheckpointMismatch(
            f"{path.name} has {len(updates)} updates, only {len(patches)} fit this model; copy the file again or "
            "update this pack"
        )
    return student
