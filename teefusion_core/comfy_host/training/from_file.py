"""A training run from a config file.

Sections: [model] to start from, [teacher] to imitate, [data] with prompts or images, [distillation] with the fields of
DistillSettings, [training] with those of TrainSettings and `parallel`, and [output].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import comfy.samplers
import torch

from ...errors import InvalidConfig
from ...files.image_folder import captioned
from ...files.tensor_file import SUFFIX
from ...files.text_file import read_text
from ...guidance.calibration import IMAGES_PER_W
from ...prompts.prompt_list import lines_of
from ...training.loop_settings import TrainSettings
from ...training.parallel import DDP
from ...training.processes import Processes
from ...training.settings import DistillSettings
from ..demo_model import load_demo
from ..notes import each, tell
from ..prompts.encoded import Prompts, encoded
from ..reflection.guider import ReflectionGuider, Scales
from ..reflection.sampler import ReflectionSampler
from .config_rules import checked
from .distillation import Distillation, check_negative_share
from .model_section import existing_file, load_models, load_network
from .network import latent_shape, prompt_dtype
from .run import Training
from .teacher import Teacher

REFLECTIONS = {"w2sd": ("W2SD", 1.0), "z-sampling": ("Z-Sampling", 0.0)}
"""Kind of a teacher -> its name and its usual weak_cfg."""


def training_of(config: Mapping[str, Any], folder: Path) -> tuple[Training, Path]:
    """Build the training run that a config file describes.

    Args:
        config: sections of the file.
        folder: folder that its paths are relative to.
    Returns:
        (training, path of the student file to write).
    Raises:
        InvalidConfig: a section or name is unknown or missing, or a file does not exist.
    """
    sections = checked(config)
    model, clip, vae = load_models(sections["model"], folder)
    teacher, description = teacher_of(sections["teacher"], model, folder)
    processes = Processes(sections["training"].pop("parallel", DDP))
    settings = _settings(DistillSettings, "distillation", sections["distillation"])
    loop = _settings(TrainSettings, "training", sections["training"])
    dtype = prompt_dtype(model, settings.method)
    positives, nulls, start = _data(sections["data"], model, clip, vae, folder, dtype)
    check_negative_share(nulls, settings)
    output = sections["output"]
    name = str(_needed(output, "output", "name"))
    tell("preparing the model for training")
    distillation = Distillation(model, teacher, positives, nulls, settings, **start)
    root = folder / output.get("runs", "runs")
    student = folder / output.get("student", f"{name}{SUFFIX}")
    accept_changes, whole_model = output.get("accept_changes", []), output.get("whole_model", False)
    training = Training(
        distillation, loop, root=root, name=name, teacher=description, accept_changes=accept_changes,
        whole_model=whole_model, processes=processes, calibration=output.get("calibration", IMAGES_PER_W),
    )  # fmt: skip
    training.check_target(student)
    training.check_disk()
    distillation.check_teacher()
    return training, student


def _needed(section: Mapping[str, Any], where: str, name: str) -> Any:
    if name not in section:
        raise InvalidConfig(f"[{where}] has no {name}; add it")
    return section[name]


def _settings(kind: Any, section: str, values: Mapping[str, Any]) -> Any:
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if needed:
        raise InvalidConfig(f"[{section}] has no {', '.join(needed)}; add the missing settings")
    return kind(**values)


def _cfg(section: Mapping[str, Any], model):
    name = section.get("sampler", "euler")
    return comfy.samplers.CFGGuider(model), comfy.samplers.sampler_object(name), f"CFG at scale 1 + w, {name}"


def _reflection(section: Mapping[str, Any], model, folder: Path):
    method, usual_weak_cfg = REFLECTIONS[section["kind"]]
    weak = None
    if "weak_model" in section:
        named = section["weak_model"]
        weak = load_demo(named)[0] if named == "weak" else load_network(named, folder, "[teacher] weak_model")
    strong, weak_scale = section.get("strong_cfg"), section.get("weak_cfg", usual_weak_cfg)
    # the trainer sets the final scale; a strong scale that equals it here follows it
    scales = Scales(1.0, weak_scale, 1.0) if strong is None else Scales(strong, weak_scale, strong + 1)
    sampler = ReflectionSampler(
        reflect_steps=section.get("reflect_steps", -1), inversion=section.get("inversion", "exact")
    )
    shown = "1 + w" if strong is None else f"{strong:g}"
    description = f"{method}, final_cfg 1 + w, strong_cfg {shown}, weak_cfg {weak_scale:g}"
    return ReflectionGuider(model, weak, scales=scales), sampler, description


def teacher_of(section: Mapping[str, Any], model, folder: Path) -> tuple[Teacher, str]:
    """Build the teacher that `[teacher]` describes.

    Args:
        section: settings by name.
        model: MODEL of the teacher.
        folder: folder that paths in the section are relative to.
    Returns:
        (teacher, its description).
    Raises:
        InvalidConfig: a file does not exist.
    """
    if section.get("kind", "cfg") == "cfg":
        guider, sampler, description = _cfg(section, model)
    else:
        guider, sampler, description = _reflection(section, model, folder)
    return Teacher(guider, sampler), description


def _lines(folder: Path, name: str) -> list[str]:
    lines = lines_of(read_text(existing_file(folder, name)))
    if not lines:
        raise InvalidConfig(f"{name} has no prompts; write one per line")
    return lines


@torch.no_grad()
def _data(section: Mapping[str, Any], model, clip, vae, folder: Path, dtype: torch.dtype | None):
    """Return prompts, nulls, and what the teacher starts from."""
    width, height = (section.get(name, 1024) for name in ("width", "height"))
    negatives = _lines(folder, section["negative_prompts"]) if "negative_prompts" in section else []
    nulls = Prompts(encoded(clip, ["", *negatives]), "null", dtype)
    if "prompts" in section:
        prompts = Prompts(encoded(clip, _lines(folder, section["prompts"])), "prompt", dtype)
        return prompts, nulls, {"latent_CHW": latent_shape(model, width, height)}
    if vae is None:
        raise InvalidConfig("[data] has images, but [model] has no vae to encode them; add one")
    found = captioned(folder / section["images"], subfolders=section.get("subfolders", False))
    latents = [vae.encode(one.pixels(width, height)) for one in each("encoding image", found)]
    captions = encoded(clip, [one.caption for one in found])
    return Prompts(captions, "caption", dtype), nulls, {"images": latents}
