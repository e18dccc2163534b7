"""A training run from a ComfyUI graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...errors import InvalidConfig
from ...files.tensor_file import SUFFIX
from ...guidance.methods import DICE
from ...prompts.prompt_list import lines_of
from ...training.loop_settings import TrainSettings
from ...training.settings import DistillSettings
from ..guidance.student_loader import load_student
from ..notes import tell
from ..prompts.encoded import Prompts, encoded
from ..trained_files import MODELS, UPDATES
from .distillation import Distillation, check_negative_share
from .network import latent_shape, prompt_dtype
from .progress import TrainingProgress
from .run import Result, Training, described_calibration
from .teacher import Teacher

RUNS = "teefusion_runs"
"""Folder in ComfyUI's output folder; students are written beside it, to the folders that loaders list."""


_written: set[Path] = set()
_lost: Counter[Path] = Counter()


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
    calibration: int = 0,
) -> tuple[Result, Path]:
    """Train with progress display, cancellation and checkpoints, then write the student file.

    Args:
        model: MODEL that the student starts from.
        guider, sampler: the teacher.
        data: positives, nulls and images, from `graph_data`.
        settings, loop: settings of the distillation and of the loop.
        name: name of the run and of its file; an existing run is resumed.
        pixels: width and height of the images if the teacher starts from noise.
        accept_changes: names of settings that may differ from those of the stored run, separated by commas.
        whole_model: write all weights of the student instead of the change to its base.
        preview_every: steps between previews of the student.
        vae: VAE that decodes the previews.
        calibration: number of images per w that the student is calibrated with at the end; 0 does not calibrate.
    Returns:
        (result of the run, path of the student file).
    Raises:
        TeEFusionError: the model, the teacher, the data or the settings do not fit; raised before the first step.
    """
    tell("preparing the model for training")
    positives, nulls, images = data
    # the host runs nodes in inference mode, whose tensors autograd cannot use
    with torch.inference_mode(False), torch.enable_grad():
        check_negative_share(nulls, settings)
        start = {"images": images} if images else {"latent_CHW": latent_shape(model, *pixels)}
        distillation = Distillation(model, Teacher(guider, sampler), positives, nulls, settings, **start)
        described = f"{type(guider).__name__} at scale 1 + w, {_sampler_name(sampler)}"
        output = Path(folder_paths.get_output_directory())
        accepted = [part.strip() for part in accept_changes.split(",") if part.strip()]
        training = Training(
            distillation, loop, root=output / RUNS, name=name, teacher=described, accept_changes=accepted,
            whole_model=whole_model, calibration=calibration,
        )  # fmt: skip
        path = student_path(name, whole_model)
        training.check_target(path)
        training.check_disk()
        distillation.check_teacher()
        trained = _run(training, TrainingProgress(training, every=preview_every, vae=vae))
    training.write(trained, path)
    _written.add(path)
    (verdict, figures), steps = described_calibration(training, trained), trained.file.info.step
    saved = f"Saved as {path.relative_to(output.parent)}. "
    tell(f"{verdict}{figures}{saved}{steps} steps, last loss {trained.losses[-1]:.4f}")
    return trained, path


def student_in_graph(model, path: Path, settings: DistillSettings, whole_model: bool):
    """Return the student of a file as MODEL; what another node loads stops the nodes behind this output with a message.

    Args:
        model: MODEL that the student started from.
        path: its file.
        settings, whole_model: as in `train_in_graph`.
    """
    if settings.method == DICE:
        return ExecutionBlocker(f"{path.name} is a prompt sharpener, not a model; choose it in DICE Sharpen")
    if whole_model:
        return ExecutionBlocker(f"{path.name} is a whole model; choose it in Load TeEFusion Student")
    return load_student(model, path)


def _run(training: Training, progress: TrainingProgress) -> Result:
    try:
        trained = training.run(progress.on_step, progress.should_stop)
    except comfy.model_management.InterruptProcessingException:
        progress.stopped()
        raise
    progress.show_calibration(trained)
    return trained


def student_path(name: str, whole_model: bool) -> Path:
    """Return the path of the student file of a run, in the output folder."""
    return Path(folder_paths.get_output_directory()) / (MODELS if whole_model else UPDATES) / f"{name}{SUFFIX}"


def times_lost(name: str, whole_model: bool) -> int:
    """Return how often the student file of a run was gone after it had been written, so that it is written again."""
    path = student_path(name, whole_model)
    if path in _written and not path.exists():
        _written.discard(path)
        _lost[path] += 1
    return _lost[path]


def graph_data(
    model, method: str, clip, prompts: str, negatives: str, positive: Sequence[list], null: Sequence[list],
    latents: Sequence[dict],
) -> tuple[Prompts, Prompts, list[Tensor]]:  # fmt: skip
    """Return prompts, empty or negative prompts, and images from what is connected.

    Args:
        model, method: MODEL and method of the student, which decide how the prompts are kept: see `prompt_dtype`.
        clip: CLIP that encodes the texts; None if encoded prompts are connected.
        prompts, negatives: one prompt per line.
        positive: CONDITIONING list; with latents the caption of each.
        null: CONDITIONING list: the encoded empty prompt, then negative prompts.
        latents: LATENT list of single images or batches.
    Raises:
        InvalidConfig: an input is missing, or prompts are given as text and as CONDITIONING.
    """
    with torch.inference_mode(False), torch.no_grad():
        lines, others = lines_of(prompts), lines_of(negatives)
        if lines and positive:
            raise InvalidConfig("prompts has text and positive is connected; remove one of the two")
        if not lines and not positive:
            raise InvalidConfig("prompts is empty; write one prompt per line, or connect encoded prompts to positive")
        if (lines or others or not null) and clip is None:
            raise InvalidConfig("the prompts cannot be encoded without clip; connect clip, or positive and null")
        dtype = prompt_dtype(model, method)
        positives = Prompts(encoded(clip, lines) if lines else positive, "prompt", dtype)
        nulls = Prompts([*(null or encoded(clip, [""])), *encoded(clip, others)], "null", dtype)
        images = [row[None] for latent in latents for row in latent["samples"].clone()]
        return positives, nulls, images


def _sampler_name(sampler) -> str:
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
