"""What the config file of a training may say.

The fields of [distillation] and [training] have their rules in `DistillSettings` and `TrainSettings`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import comfy.samplers
import comfy.sd

from ...errors import InvalidConfig
from ...guidance.methods import DICE, GUIDANCE_LORA, METHODS, TEEFUSION
from ...training.loop_settings import TrainSettings
from ...training.parallel import PARALLEL
from ...training.setting_rules import Rule, check, choice, flag, number, text, texts, whole
from ...training.settings import DistillSettings
from ..demo_model import variants
from ..reflection.sampler import INVERSIONS

TEACHERS: dict[str, Collection[str]] = {
    "cfg": ("sampler",),
    "w2sd": ("weak_model", "strong_cfg", "weak_cfg", "reflect_steps", "inversion"),
    "z-sampling": ("strong_cfg", "weak_cfg", "reflect_steps", "inversion"),
}
"""Kind of a teacher -> the settings that it reads."""
SOURCES: dict[str, Collection[str]] = {
    "demo_model": (),
    "checkpoint": ("vae",),
    "diffusion_model": ("clip", "clip_type", "vae"),
}
"""Where the model comes from -> the files beside it that are read."""
OF_THE_TERM = ("initial_gain_ratio", "guidance_embedding_scale", "guidance_precision")
UNREAD_BY_DICE = ("trainable", "rank", "guidance_margin", *OF_THE_TERM)
"""Settings of the network and of its guidance term, which DICE leaves as they are."""

_SCALE = number(lambda scale: scale >= 0, "a CFG scale, 0 or more")
_RULES: dict[str, dict[str, Rule]] = {
    "model": {
        "demo_model": choice(variants()), "checkpoint": text(), "diffusion_model": text(), "clip": texts(),
        "clip_type": choice([kind.name.lower() for kind in comfy.sd.CLIPType]), "vae": text(),
    },
    "teacher": {
        "kind": choice(TEACHERS), "sampler": choice(comfy.samplers.SAMPLER_NAMES), "weak_model": text(),
        "strong_cfg": _SCALE, "weak_cfg": _SCALE, "inversion": choice(INVERSIONS),
        "reflect_steps": (lambda steps: type(steps) is int and (steps == -1 or steps > 0), "-1 (all), or 1 or more"),
    },
    "data": {
        "prompts": text(), "negative_prompts": text(), "images": text(), "subfolders": flag(), "width": whole(8),
        "height": whole(8),
    },
    "distillation": {},
    "training": {"parallel": choice(PARALLEL)},
    "output": {
        "runs": text(), "name": text(), "student": text(), "whole_model": flag(), "accept_changes": texts(least=0),
        "calibration": whole(0),
    },
}  # fmt: skip
LEGAL: dict[str, set[str]] = {section: set(rules) for section, rules in _RULES.items()}
LEGAL["distillation"] |= {field.name for field in fields(DistillSettings)}
LEGAL["training"] |= {field.name for field in fields(TrainSettings)}


def checked(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return all sections of a config file.

    Raises:
        InvalidConfig: a section or name is unknown, a value has the wrong type or is out of range, or a setting would
            have no effect beside the others.
    """
    for section, values in config.items():
        if section not in LEGAL or not isinstance(values, Mapping):
            raise InvalidConfig(f"[{section}] is not a section; allowed are {', '.join(f'[{name}]' for name in LEGAL)}")
        unknown = sorted(values.keys() - LEGAL[section])
        if unknown:
            names, allowed = ", ".join(unknown), ", ".join(sorted(LEGAL[section]))
            raise InvalidConfig(f"[{section}] has unknown names: {names}; allowed are {allowed}")
        rules = _RULES[section]
        check({name: value for name, value in values.items() if name in rules}, rules, where=f"[{section}] ")
    sections = {name: dict(config.get(name, {})) for name in LEGAL}
    _check_effects(sections)
    return sections


def _check_effects(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse settings that would be passed over."""
    model, teacher, data, distillation = (sections[n] for n in ("model", "teacher", "data", "distillation"))
    source, given = _one_of(model, "model", SOURCES), _one_of(data, "data", ("prompts", "images"))
    _refuse("model", model, {"clip", "clip_type", "vae"} - set(SOURCES[source]), f"beside {source}")
    kind = teacher.get("kind", "cfg")
    others = {name for names in TEACHERS.values() for name in names} - set(TEACHERS[kind])
    _refuse("teacher", teacher, others, f"with kind = {kind!r}")
    if given == "prompts":
        _refuse("model", model, {"vae"}, "without [data] images")
        _refuse("data", data, {"subfolders"}, "without images")
    _refuse("distillation", distillation, unread(distillation), "with this method and this trainable")


def unread(distillation: Mapping[str, Any]) -> set[str]:
    """Return the names of settings of a distillation that have no effect beside its method and what it trains."""
    method = str(distillation.get("method", TEEFUSION))
    if method == DICE:
        return set(UNREAD_BY_DICE)
    if method == GUIDANCE_LORA:
        return set(OF_THE_TERM)
    names = {"initial_gain_ratio"} if method in METHODS and METHODS[method].embeds else set()
    return names if "lora" in str(distillation.get("trainable", "lora")) else names | {"rank"}


def _one_of(section: Mapping[str, Any], where: str, names: Collection[str]) -> str:
    found = [name for name in names if name in section]
    if len(found) != 1:
        raise InvalidConfig(f"[{where}] has {' and '.join(found) or 'none'} of {', '.join(names)}; give one of them")
    return found[0]


def _refuse(where: str, section: Mapping[str, Any], names: Collection[str], why: str) -> None:
    unread = sorted(section.keys() & set(names))
    if unread:
        raise InvalidConfig(f"[{where}] {unread[0]} has no effect {why}; remove it")
