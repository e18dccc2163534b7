"""Measurement of the effective guidance of a run.

Shapes: B batch, C H W latent, S steps.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from statistics import fmean

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_sampling import CONST
from PIL import Image
from torch import Tensor

from ...errors import CheckpointMismatch, InvalidConfig
from ...evaluation.guidance_report import GuidanceReport
from ...evaluation.image_metrics import clipping, saturation
from ...files.tensor_file import not_finite, numbered
from ...guidance.cfg import effective_guidance
from ...guidance.flow import secant, velocity_of
from ..guidance.patch import note_student_as_lora
from ..model_files import check_vae
from ..notes import tell
from ..prompts.prompt_check import check_finite
from ..recording import Recording, count_rows, record
from ..sampling import start_of, with_samples
from .images import as_pictures

COUNTER_KEY = "teefusion_report"


def report_guidance(
    model, guider, sampler, sigmas_S: Tensor, latent: dict, positive, negative, seed: int, vae=None, *, name: str = ""
):
    """Sample with a guider, then measure the effective guidance at every state of the run.

    Args:
        model: MODEL whose predictions with and without the prompt are the reference; not modified.
        guider, sampler: what is measured; not modified.
        sigmas_S: noise levels [S+1].
        latent: LATENT; not modified.
        positive, negative: CONDITIONING of the reference, the prompt and the encoded empty prompt.
        seed: of the noise.
        vae: decodes the result to measure clipping and saturation; None skips this.
        name: what the user calls the run; if it is empty, the name of the guider.
    Returns:
        (LATENT, GuidanceReport).
    Raises:
        CheckpointMismatch: guider and model have different latent spaces or kinds of noise.
        InvalidConfig: no step, a latent of several kinds, or a sampler that does not report all steps.
    """
    if len(sigmas_S) < 2:
        raise InvalidConfig(f"sigmas holds {len(sigmas_S)} noise levels; give a schedule of 1 step or more")
    _check_same_latent_space(model, guider.model_patcher)
    note_student_as_lora(guider.model_patcher)
    check_vae(vae, model)
    check_finite(positive, "positive")
    check_finite(negative, "negative")
    if latent["samples"].is_nested:
        raise InvalidConfig(
            "latent_image holds several latents, such as video with audio; a report measures a latent of one kind"
        )
    if lost := not_finite(latent["samples"]):
        raise InvalidConfig(f"latent_image has NaN or infinite values in {numbered('image', lost)}; sample it again")
    start = start_of(latent, guider.model_patcher)
    noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    mask = latent.get("noise_mask")
    show = latent_preview.prepare_callback(guider.model_patcher, len(sigmas_S) - 1)
    counted, passes = _counted(guider)
    silent = not comfy.utils.PROGRESS_BAR_ENABLED
    run = record(
        counted, sampler, noise, start, sigmas_S, mask=mask, seed=seed, on_step=_within(show, len(sigmas_S) - 1),
        silent=silent,
    )  # fmt: skip
    out = with_samples(latent, run.samples)
    begin = time.perf_counter()
    predicted_SB, moved_SB, own, unmeasured = _measured(model, positive, negative, run, sigmas_S, mask, seed)
    broken = _first_broken(run) or unmeasured
    pictures = [] if vae is None or broken else _pictures(vae, out["samples"])
    report = GuidanceReport(
        name or _name_of(guider), sigmas_S[:-1].tolist(), predicted_SB, moved_SB,
        # a ReflectionGuider counts the passes of both models itself
        passes=getattr(counted, "passes", passes.rows / len(noise)), seconds=begin - (passes.started or begin),
        own_passes=own / len(noise), own_seconds=time.perf_counter() - begin,
        clipped=fmean(map(clipping, pictures)) if pictures else None,
        saturation=fmean(map(saturation, pictures)) if pictures else None, broken=broken,
    )  # fmt: skip
    # without a reading, what to do is more use than the cost
    tell(report.strength() if math.isnan(report.mean()) else f"{report.short()}, {report.seconds:.1f} s")
    return out, report


def _name_of(guider) -> str:
    """Return the node name of a guider; the host names its classes Guider_X for a node XGuider."""
    name = type(guider).__name__
    return f"{name.removeprefix('Guider_')}Guider" if name.startswith("Guider_") else name


def _check_same_latent_space(model, other) -> None:
    mine, theirs = (type(patcher.get_model_object("latent_format")).__name__ for patcher in (model, other))
    if mine != theirs:
        raise CheckpointMismatch(
            f"the guider works in the latent space {theirs}, model in {mine}; connect the base of the guider's model"
        )
    flow = [isinstance(patcher.get_model_object("model_sampling"), CONST) for patcher in (model, other)]
    if flow[0] != flow[1]:
        raise CheckpointMismatch(
            "one of guider and model is a flow model, the other predicts noise; connect the base of the guider's model"
        )


@dataclass
class _Passes:
    """Number of rows that the network has evaluated, and the time of the first, when the model is loaded."""

    rows: int = 0
    started: float = 0.0


def _counted(guider):
    """Return a copy of a guider that counts its passes; the guider and its model are not modified."""
    twin, passes = copy.copy(guider), _Passes()
    twin.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)

    def count(rows: int) -> None:
        passes.started = passes.started or time.perf_counter()
        passes.rows += rows

    count_rows(twin.model_options, COUNTER_KEY, count)
    return twin, passes


def _within(show, steps: int):
    """Return the host's preview callback with the number of steps of its progress bar."""
    return lambda step, denoised, x, total: show(step, denoised, x, steps)


def _measured(model, positive, negative, run: Recording, sigmas_S: Tensor, mask, seed: int):
    """Return the effective guidance [S,B] of predictions and of steps, the number of evaluated rows, and where the
    predictions of the reference are first NaN or infinite."""
    reference = comfy.samplers.CFGGuider(model)
    reference.set_conds(positive, negative)
    counted, passes = _counted(reference)
    predicted, moved, steps, unmeasured = [], [], len(run.predicted), []
    mask_BCHW = torch.ones(()) if mask is None else comfy.utils.reshape_mask(mask, run.states[0].shape)

    def evaluate(denoiser, x, sigmas, extra_args=None, **_):
        inside, options = denoiser.inner_model, (extra_args or {}).get("model_options", {})
        conds, bar = [inside.conds[name] for name in ("positive", "negative")], comfy.utils.ProgressBar(steps)
        share, levels, states = mask_BCHW.to(x), sigmas_S.to(x), [state.to(x) for state in run.states]
        for number, (state, level) in enumerate(zip(states[:-1], levels[:-1], strict=True)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            both = comfy.samplers.calc_cond_batch(inside.inner_model, conds, state, level.expand(len(state)), options)
            cond, uncond = (share * velocity_of(denoised, state, level) for denoised in both)
            if lost := not_finite(cond + uncond):
                unmeasured.append(f"step {number + 1} ({numbered('image', lost)}, in the predictions of model)")
            velocity = secant(state, states[number + 1], level, levels[number + 1])
            predicted.append(effective_guidance(share * run.predicted[number].to(x), cond, uncond).cpu())
            moved.append(effective_guidance(share * velocity, cond, uncond).cpu())
            bar.update_absolute(number + 1)
        return x

    nothing = torch.zeros_like(run.samples)
    counted.sample(nothing, nothing, comfy.samplers.KSAMPLER(evaluate), sigmas_S, disable_pbar=True, seed=seed)
    return torch.stack(predicted), torch.stack(moved), passes.rows, next(iter(unmeasured), "")


def _first_broken(run: Recording) -> str:
    """Return the first step whose prediction or result has NaN or infinite values, with its images; empty if none."""
    for number, (velocity, state) in enumerate(zip(run.predicted, run.states[1:], strict=True), 1):
        if lost := sorted({*not_finite(velocity), *not_finite(state)}):
            return f"step {number} ({numbered('image', lost)})"
    return ""


def _pictures(vae, samples: Tensor) -> list[Image.Image]:
    """Decode to images as they would be saved."""
    images = vae.decode(samples)
    return as_pictures(images.reshape(-1, *images.shape[-3:]), "the output of vae")
