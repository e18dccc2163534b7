"""What makes a training run this run: everything that shapes its trajectories and its student, by name.

A checkpoint stores these values; a run that resumes with another one is refused.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from ..prompts.encoded import Prompts
from ..weights import base_fingerprint
from .distillation import Distillation
from .teacher import Teacher

_OF_EACH_RUN = ("cfg", "conds", "original_conds", "model_options")
"""Attributes of a guider that the trainer or the host sets for each sampling run."""
_DEEPEST = 12
"""Levels of nested containers that are read, because a function can contain itself."""


def identity_of(distillation: Distillation) -> dict[str, Any]:
    """Return the identity of a run, in values that JSON can hold; the settings of the distillation come beside it."""
    return {
        "model_patches": patches_fingerprint(distillation.model),
        "prompts": _of_prompts(distillation.positives),
        "negative_prompts": _of_prompts(distillation.nulls),
        "images": fingerprint_of(distillation.images),
        "latent_shape": list(distillation.latent_CHW),
        "noise_levels": fingerprint_of(distillation.grid_S.cpu()),
        **_of_teacher(distillation.teacher),
    }


def patches_fingerprint(model) -> str:
    """Return a fingerprint of all that nodes changed in a MODEL: LoRAs, object patches, options, wrappers."""
    parts = (model.patches, model.object_patches, model.model_options, getattr(model, "wrappers", {}))
    return fingerprint_of([dict(part) for part in parts])


def fingerprint_of(value: Any) -> str:
    """Return a fingerprint of numbers, texts, tensors, functions and containers of them, 16 hex digits.

    Of a function its name and the constants that it was made with count. Of any other object only the type counts,
    since its attributes may change while it is used.
    """
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest.update, value)
    return digest.hexdigest()


def _of_teacher(teacher: Teacher) -> dict[str, Any]:
    guider, sampler = teacher.guider, teacher.sampler
    described: dict[str, Any] = {"teacher_model": _of_model(teacher.model)}
    for part, name, skipped in ((guider, "guider", _OF_EACH_RUN), (sampler, "sampler", ())):
        described[name] = type(part).__name__
        if hasattr(part, "described"):
            described |= {key: _plain(value) for key, value in part.described().items()}
        else:
            options = vars(part) | dict(getattr(part, "extra_options", {}))
            kept = {key: value for key, value in options.items() if isinstance(value, bool | int | float | str)}
            described |= {f"{name}.{key}": value for key, value in kept.items() if key not in skipped}
    function = getattr(sampler, "sampler_function", None)
    return described | {"sampler_function": getattr(function, "__qualname__", "")}


def _plain(value: Any) -> Any:
    """Return a MODEL as its fingerprint and any other value as it is."""
    return _of_model(value) if hasattr(value, "model_options") else value


def _of_model(model) -> str:
    return fingerprint_of([base_fingerprint(model), patches_fingerprint(model)])


def _of_prompts(prompts: Prompts) -> str:
    return fingerprint_of(prompts.entries)


def _feed(update: Callable[[bytes], None], value: Any, depth: int = 0) -> None:
    if depth > _DEEPEST:
        return
    if isinstance(value, MethodType):
        value = value.__func__
    kind = type(value)
    update(f"<{kind.__module__}.{kind.__qualname__}".encode())
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        update(plain.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            update(str(key).encode())
            _feed(update, value[key], depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            _feed(update, part, depth + 1)
    elif isinstance(value, FunctionType):
        update(f"{value.__module__}.{value.__qualname__}".encode())
        for constant in inspect.getclosurevars(value).nonlocals.values():
            if isinstance(constant, bool | int | float | str | FunctionType | tuple):
                _feed(update, constant, depth + 1)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        update(repr(value).encode())
    elif hasattr(value, "weights"):  # an adapter of the host, such as a LoRA
        _feed(update, value.weights, depth + 1)
    update(b">")
