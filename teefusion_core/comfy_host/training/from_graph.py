"""A training that a graph asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...errors import InvalidConfig
from ...prompts.prompt_list import lines_of
from ...training.loop_settings import TrainSettings
from ...training.settings import DistillSettings
from ..guidance.student_loader import MODELS, UPDATES
from ..prompts.encoded import Prompts, encoded
from ..sampling import tell
from .distillation import Distillation, latent_shape
from .progress import TrainingProgress
from .run import Student, Training
from .teacher import Teacher

RUNS = "teefusion_runs"
"""Folder inside ComfyUI's output folder; students go to those beside it that the host's loaders list."""


def train_in_graph(
    model,
    guider,
    sampler,
    data: tuple[Prompts, Prompts, list[Tensor]],
    settings: DistillSettings,
    loop: TrainSettings,
    *,
    name: str,
    pixels: tuple[int, int],
    accept_changes: str = "",
    whole_model: bool = False,
    preview_every: int = 0,
    vae=None,
) -> tuple[Student, Path]:
    """Train with display, cancel, checkpoints; write the student file.

    Args:
        model: MODEL that the student starts from.
        guider, sampler: the teacher.
        data: what `graph_data` gives.
        settings, loop: how.
        name: of the run with its file; a run that is there is gone on with.
        pixels: width with height of the teacher's pictures, where it paints from noise.
        accept_changes: names of settings that may differ from those of the stored run, separated by commas.
        whole_model: write all weights of the student, instead of what changes the base.
        preview_every: steps between pictures of the student.
        vae: decodes them.
    Returns:
        (student, its file; a sharpener is a student of the method "dice").
    Raises:
        TeEFusionError: what is wrong with model, teacher, data or settings, before the first step.
    """
    positives, nulls, pictures = data
    # the host runs nodes in inference mode, whose tensors take part in no gradient
    with torch.inference_mode(False), torch.enable_grad():
        start = {"pictures": pictures} if pictures else {"latent_CHW": latent_shape(model, *pixels)}
        distillation = Distillation(model, Teacher(guider, sampler), positives, nulls, settings, **start)
        described = f"{type(guider).__name__} at scale 1 + w, {_sampler_name(sampler)}"
        output = Path(folder_paths.get_output_directory())
        accepted = [part.strip() for part in accept_changes.split(",") if part.strip()]
        training = Training(
            distillation, loop, root=output / RUNS, name=name, teacher=described, accept_changes=accepted,
            whole_model=whole_model,
        )  # fmt: skip
        distillation.check_teacher()
        watch = TrainingProgress(training, every=preview_every, vae=vae)
        try:
            student = training.run(
                watch.on_step, watch.should_stop, watch.on_trajectory, on_forecast=lambda need: tell(str(need))
            )
        except comfy.model_management.InterruptProcessingException:
            watch.stopped()
            raise
    path = output / (MODELS if whole_model else UPDATES) / f"{name}.safetensors"
    student.write(path)
    tell(f"{student.info.step} steps, loss {student.losses[-1]:.4f}, written to {path.relative_to(output.parent)}")
    return student, path


def graph_data(
    clip, prompts: str, negatives: str, positive: Sequence[list], null: Sequence[list], latents: Sequence[dict]
) -> tuple[Prompts, Prompts, list[Tensor]]:
    """Prompts, what they are guided away from, pictures, out of what is connected.

    Args:
        clip: CLIP that encodes the texts; None where encoded prompts are connected.
        prompts, negatives: one prompt per line.
        positive: CONDITIONING list; with latents the caption of each.
        null: CONDITIONING list: the encoded empty prompt, then negative ones.
        latents: LATENT list, of single pictures or batches.
    Raises:
        InvalidConfig: too little is connected, or two things that mean the same.
    """
    with torch.inference_mode(False), torch.no_grad():
        lines, others = lines_of(prompts), lines_of(negatives)
        if bool(lines) == bool(positive):
            raise InvalidConfig("give prompts, one per line, with a clip, or connect encoded prompts, one of the two")
        if (lines or others or not null) and clip is None:
            raise InvalidConfig("texts cannot be encoded without text encoders; connect clip, or positive with null")
        positives = encoded(clip, lines) if lines else positive
        nulls = [*(null or encoded(clip, [""])), *encoded(clip, others)]
        pictures = [row[None] for latent in latents for row in latent["samples"].clone()]
        return Prompts(positives, "prompt"), Prompts(nulls, "null"), pictures


def _sampler_name(sampler) -> str:
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
