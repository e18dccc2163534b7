"""The file of a trained student: tensors in safetensors with what is needed to run them right.

A student is only itself with its own gain, range of w and base; the file says which, the loader enforces it.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointMismatch

Info = TypeVar("Info")

FORMAT = "teefusion-student/1"
CONVENTION = "w of the paper; the equivalent CFG scale is 1 + w"


class Based(Protocol):
    """What a file says of itself, where it belongs to one base."""

    @property
    def base(self) -> str:
        """Return the fingerprint of that base."""


@dataclass(frozen=True)
class StudentInfo:
    """What a student file says of itself.

    Attributes:
        method: how guidance enters, a name in METHODS.
        mode: what the tensors are ("lora": low-rank updates of the base, "diff": differences from it, "full": all
            weights of the student).
        guidance_min, guidance_max: trained range of guidance.
        gain: multiplier of the guidance term.
        guidance_embedding_scale: factor on w before psi.
        guidance_precision: rounding of w, "exact" or "official bf16".
        teacher: the teacher in words.
        base: fingerprint of the base model.
        step: optimizer steps trained.
        pack_version: version of this pack that wrote it.
    """

    method: str
    mode: str
    guidance_min: float
    guidance_max: float
    gain: float
    guidance_embedding_scale: float
    guidance_precision: str
    teacher: str
    base: str
    step: int
    pack_version: str

    def metadata(self) -> dict[str, str]:
        """As safetensors metadata, all strings; the teacher comes with its hash."""
        return {"format": FORMAT, "guidance_convention": CONVENTION, **described(self, self.teacher)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> "StudentInfo":
        """Read metadata back.

        Raises:
            CheckpointMismatch: it is not a student's, or incomplete.
        """
        if metadata.get("format") != FORMAT:
            raise CheckpointMismatch(
                f"{path.name} says format {metadata.get('format')!r}, a student file says {FORMAT!r}; "
                "choose a student that this pack's trainer wrote, plain LoRA files belong in a LoRA loader, a "
                "sharpener belongs into DICE Sharpen"
            )
        return parsed(cls, metadata, path)


def described(info: Any, teacher: str) -> dict[str, str]:
    """Say a dataclass of numbers or text in metadata, all strings; the teacher comes with its hash."""
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in asdict(info).items()}
    return {"teacher_sha256": hashlib.sha256(teacher.encode()).hexdigest(), **values}


def parsed(cls: Any, metadata: Mapping[str, str], path: Path) -> Any:
    """Read a dataclass of numbers or text from metadata.

    Raises:
        CheckpointMismatch: a field is missing, or not of its type.
    """
    values = {}
    for field in fields(cls):
        read = _READERS[field.type if isinstance(field.type, str) else field.type.__name__]
        try:
            values[field.name] = read(metadata[field.name])
        except (KeyError, ValueError) as error:
            raise CheckpointMismatch(
                f"{path.name} has no usable {field.name} in its metadata; it was cut or edited, use the original file"
            ) from error
    return cls(**values)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_READERS: dict[str, Callable[[str], Any]] = {"float": _finite, "int": int, "str": str}


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Name a base model by the signs in its one-dimensional tensors, 16 hex digits.

    Biases and norms are a thousandth of a model, yet some change sign between any two trainings. Signs survive
    every rounding, so copies in float32, float16 or bfloat16 share a name; rounded values would not, since
    rounding twice (to float16, then to bfloat16) is not rounding once.

    Args:
        weights: parameters by name, any device; the names must not carry a loader's prefix.
    """
    digest = hashlib.sha256()
    for name in sorted(n for n, w in weights.items() if w.ndim == 1):
        digest.update(name.encode())
        digest.update(torch.signbit(weights[name].detach().to("cpu", torch.float32)).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_student(path: Path, tensors: Mapping[str, Tensor], info: StudentInfo) -> None:
    """Write a student file, whole or not at all."""
    write_described(path, tensors, info.metadata())


def write_described(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with their metadata, whole or not at all; folders above it are made."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.touch()
        mode = part.stat().st_mode
        save_file(dict(tensors), part, metadata=dict(metadata))
        part.chmod(mode)  # safetensors leaves it to its owner alone; a server may run as someone else
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_student(path: Path) -> tuple[dict[str, Tensor], StudentInfo]:
    """Read a student file.

    Args:
        path: a .safetensors file.
    Returns:
        (tensors by name, what the file says of itself).
    Raises:
        CheckpointMismatch: missing, truncated, not safetensors (pickles are never opened), or without our metadata.
    """
    return read_described(path, StudentInfo.from_metadata, "a student file")


def read_described(
    path: Path, from_metadata: Callable[[Mapping[str, str], Path], Info], kind: str
) -> tuple[dict[str, Tensor], Info]:
    """Read tensors with what their metadata says.

    Args:
        path: a .safetensors file.
        from_metadata: reads the metadata, knows the path for its errors.
        kind: what the file should be, in words.
    Raises:
        CheckpointMismatch: missing, truncated, not safetensors, or what `from_metadata` refuses.
    """
    if not path.is_file():
        raise CheckpointMismatch(f"{path.name} is not there; choose {kind} from the list")
    try:
        with safe_open(path, "pt") as file:
            info = from_metadata(file.metadata() or {}, path)
            return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118  not a dict
    except SafetensorError as error:
        raise CheckpointMismatch(
            f"{path.name} is not a whole safetensors file ({error}); download or copy it again "
            "(.ckpt, .pt and .pkl files can run code when opened, so they are not read)"
        ) from error


def check_base(info: Based, base: str, path: Path) -> None:
    """Refuse a student, or a sharpener, on a model that it was not trained from.

    Raises:
        CheckpointMismatch: the fingerprints differ.
    """
    if info.base != base:
        raise CheckpointMismatch(
            f"{path.name} was trained from the base {info.base}, this model is {base}; "
            "connect the base that it was made for, without merges"
        )
