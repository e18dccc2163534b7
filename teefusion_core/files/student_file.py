"""The file of a trained student: weights with metadata that the loader enforces.

The weights are right only with the gain, guidance range and base that they were trained with.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointMismatch
from .tensor_file import check_finite, read_tensors, write_tensors

FORMAT = "teefusion-student/1"
FULL = "full"  # mode of a student that is a whole model
CONVENTION = "w of the paper; the equivalent CFG scale is 1 + w"


@dataclass(frozen=True)
class StudentInfo:
    """The metadata of a student file.

    Attributes:
        method: how guidance enters, a name in LOADABLE.
        mode: what the tensors are ("lora": low-rank updates of the base, "diff": differences from it, "full": all
            weights of the student).
        guidance_min, guidance_max: trained range of guidance.
        gain: multiplier of the guidance term.
        guidance_embedding_scale: factor on w before its sinusoidal embedding.
        guidance_precision: rounding of w, "exact" or "official bf16".
        teacher: description of the teacher.
        base: fingerprint of the base model.
        step: number of optimizer steps trained.
        pack_version: version of this pack that wrote the file.
        calibration: `Calibration.json`; empty without one, as in older files.
        reference_guidance: of a guidance LoRA, the w at which the LoRA strength is 1; 0 for other students.
        student_steps, scheduler: the only number of steps that the student has learned, with its schedule; 0 and empty
            for students of as many steps as their teacher, which work at other numbers too.
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
    calibration: str = ""
    reference_guidance: float = 0.0
    student_steps: int = 0
    scheduler: str = ""

    def metadata(self) -> dict[str, str]:
        """Return safetensors metadata, all strings, with a hash of the teacher."""
        return {"format": FORMAT, "guidance_convention": CONVENTION, **described(self, self.teacher)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> "StudentInfo":
        """Read metadata back.

        Raises:
            CheckpointMismatch: it is not a student's, or it is incomplete.
        """
        if metadata.get("format") != FORMAT:
            raise CheckpointMismatch(
                f"{path.name} has format {metadata.get('format')!r}, but a student file has {FORMAT!r}; "
                "choose a student that this pack's trainer wrote. Use a LoRA loader for plain LoRA files, and DICE "
                "Sharpen for sharpeners"
            )
        return parsed(cls, metadata, path)


def described(info: Any, teacher: str) -> dict[str, str]:
    """Return a dataclass of numbers and text as metadata, all strings, with a hash of the teacher."""
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in asdict(info).items()}
    return {"teacher_sha256": hashlib.sha256(teacher.encode()).hexdigest(), **values}


def parsed(cls: Any, metadata: Mapping[str, str], path: Path) -> Any:
    """Read a dataclass of numbers and text from metadata.

    Raises:
        CheckpointMismatch: a field is missing or has the wrong type.
    """
    values = {}
    for field in fields(cls):
        if field.default is not MISSING and field.name not in metadata:
            continue  # a file of an earlier version
        read = _READERS[field.type if isinstance(field.type, str) else field.type.__name__]
        try:
            values[field.name] = read(metadata[field.name])
        except (KeyError, ValueError) as error:
            raise CheckpointMismatch(
                f"{path.name} has no usable {field.name} in its metadata; it was cut or edited, so use the original"
            ) from error
    return cls(**values)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_READERS: dict[str, Callable[[str], Any]] = {"float": _finite, "int": int, "str": str}


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return a fingerprint of a base model from the signs in its one-dimensional tensors, 16 hex digits.

    Biases and norms are a thousandth of a model, yet some change sign between any two trainings. Signs survive
    every rounding, so copies in float32, float16 or bfloat16 have the same fingerprint. Rounded values would not,
    because rounding twice (to float16, then to bfloat16) differs from rounding once.

    Args:
        weights: parameters by name, on any device, without the prefix of a loader.
    """
    digest = hashlib.sha256()
    for name in sorted(n for n, w in weights.items() if w.ndim == 1):
        digest.update(name.encode())
        digest.update(torch.signbit(weights[name].detach().to("cpu", torch.float32)).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_student(path: Path, tensors: Mapping[str, Tensor], info: StudentInfo) -> None:
    """Write a student file atomically."""
    write_tensors(path, tensors, info.metadata())


def read_student(path: Path) -> tuple[dict[str, Tensor], StudentInfo]:
    """Read a student file.

    Args:
        path: a .safetensors file.
    Returns:
        (tensors by name, metadata of the student). Only the tensors of a whole model are still mapped from the file.
    Raises:
        CheckpointMismatch: the file is missing, cut off, not safetensors, or without our metadata; or it lacks tensors,
            or they are not finite.
    """
    tensors, metadata = read_tensors(path)
    info = StudentInfo.from_metadata(metadata, path)
    check_finite(tensors, path)
    if info.mode != FULL:  # Windows cannot replace a mapped file, as a training under the same name does
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return tensors, info


def check_base(trained_from: str, base: str, path: Path) -> None:
    """Refuse a student or a sharpener on a model that it was not trained from.

    Raises:
        CheckpointMismatch: the fingerprints differ.
    """
    if trained_from != base:
        raise CheckpointMismatch(
            f"{path.name} was trained from another base model than this one (fingerprints {trained_from} and {base}); "
            "connect the original base model, without merges"
        )
