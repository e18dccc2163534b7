"""Guidance terms of a run, from what a conditioning holds.

With a schedule there is one term per noise level of the run; each forward pass then only looks its term up. Between two
noise levels the guidance is that of the higher one, where the step began.

Shapes: B batch, P pooled width, D model width, K noise levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch
from ...files.tensor_file import not_finite
from ...guidance.architectures import Architecture
from ...guidance.fusion import guidance_rows, guidance_timestep
from ...guidance.methods import METHODS, TEEFUSION, Ingredients
from ...guidance.schedule import GuidanceSchedule
from ..weights import compute_dtype
from .attachments import EMBEDDER_KEY, STUDENT_KEY
from .guidance_range import inner_guidance
from .position import CLOSE, Positions

NULL_KEY = "teefusion_null_pooled"  # in conditioning: [1,P] or [B,P]
TIMESTEP_KEY = "teefusion_guidance_timestep"  # in conditioning: 1000 w, float32, [1] or [B]
GAIN_KEY = "teefusion_gain"  # in conditioning: float
SCHEDULE_KEY = "teefusion_schedule"  # in conditioning: dict of w, its rounding and scale, and the schedule as JSON
LEVELS_KEY = "teefusion_levels"  # in conditioning during a run with a schedule, and among its model conds: [1,K]
TERM_KEY = "teefusion_term"  # among the model conds of a run: [1,D] or [B,D]; with a schedule [1,K,D] or [B,K,D]


class RunTerm:
    """Computes the terms of the prompts of a run."""

    def __init__(self, model_patcher, architecture: Architecture):
        """Read what the student needs from a MODEL."""
        self.architecture, self.embedder = architecture, model_patcher.get_attachment(EMBEDDER_KEY)
        self.student: Mapping = model_patcher.get_attachment(STUDENT_KEY) or {}

    def __call__(self, base, *, device, noise, **prompt) -> dict[str, Tensor]:
        """Return the model conds of one prompt; the term of a prompt without guidance is zero."""
        levels_1K = prompt.get(LEVELS_KEY)
        dtype = compute_dtype(base)
        if prompt.get(TIMESTEP_KEY) is None:
            _, model_width = self.architecture.widths(base.diffusion_model)
            levels = () if levels_1K is None else levels_1K.shape[1:]
            term = torch.zeros(1, *levels, model_width, device=device, dtype=dtype)
        else:
            term = self._guided(base, device, prompt).to(dtype)
            _check(term, len(noise), dtype)
        return {TERM_KEY: term} if levels_1K is None else {TERM_KEY: term, LEVELS_KEY: levels_1K.to(device)}

    def _guided(self, base, device, prompt: Mapping) -> Tensor:
        # float32 until after the subtraction: half precision would lose the difference of two similar prompts
        pooled_BP, null_BP = (prompt[key].to(device, torch.float32) for key in ("pooled_output", NULL_KEY))
        timestep_B = prompt[TIMESTEP_KEY].to(device)
        _check_hooks(base, self.architecture)
        time_embed, pooled_embed = self.architecture.embedders(base.diffusion_model, compute_dtype(base))
        embedder = None if self.embedder is None else self.embedder.to(device)
        term = METHODS[self.student.get("method", TEEFUSION)].term
        parts = Ingredients(pooled_BP, null_BP, timestep_B, time_embed, pooled_embed, prompt[GAIN_KEY], embedder)
        levels_1K = prompt.get(LEVELS_KEY)
        if levels_1K is None:
            return term(parts)
        wanted = [timestep_B] * levels_1K.shape[1]
        if held := prompt.get(SCHEDULE_KEY):
            wanted = self._timesteps(base.model_sampling, levels_1K[0].tolist(), held)
        return torch.stack([term(replace(parts, timestep_B=one_B.to(device))) for one_B in wanted], dim=1)

    def _timesteps(self, model_sampling, levels: list[float], held: Mapping) -> list[Tensor]:
        """Return the scaled guidance [B] at each noise level."""
        schedule, w_B = GuidanceSchedule.of(held["schedule"]), guidance_rows(held["guidance"])
        found, position = [], Positions(schedule, model_sampling, levels)
        for number, sigma in enumerate(levels[:-1] or levels, 1):
            own_B = schedule.at(w_B, position(sigma))
            try:
                inner_B = inner_guidance(own_B, self.student)
            except InvalidConfig as error:
                raise InvalidConfig(f"in step {number} of {max(len(levels) - 1, 1)} {error}") from error
            found.append(guidance_timestep(inner_B, precision=held["precision"], scale=held["scale"]))
        return [*found, found[-1]][: len(levels)]


def note_levels(conds: Mapping[str, list[dict]], sigmas_K: Tensor) -> None:
    """Write the noise levels of a run into its prompts, if one of them has a schedule.

    All prompts get them, because the host batches prompts only if their conds have one shape.

    Args:
        conds: prompts of the run, copies that the guider made for it.
        sigmas_K: noise levels of the run, in any order.
    """
    prompts = [cond for group in conds.values() for cond in group]
    if any(SCHEDULE_KEY in cond for cond in prompts):
        for cond in prompts:
            cond[LEVELS_KEY] = sigmas_K.sort(descending=True).values[None]


def at_level(term_BKD: Tensor, levels_BK: Tensor, sigma_B: Tensor) -> Tensor:
    """Return the term [B,D] of each row at its noise level."""
    passed_B = (levels_BK * (1 + CLOSE) >= sigma_B.to(levels_BK)[:, None]).sum(1)
    row_B = torch.arange(len(term_BKD), device=term_BKD.device)
    return term_BKD[row_B, (passed_B - 1).clamp(min=0)]


def _check(term: Tensor, rows: int, dtype: torch.dtype) -> None:
    if not_finite(term):
        raise InvalidConfig(
            f"the guidance term is beyond the range of {str(dtype).removeprefix('torch.')}; lower guidance, or run the "
            "model in bfloat16"
        )
    if rows % len(term):
        raise ShapeMismatch(
            f"the prompt with its guidance has {len(term)} rows, the latent batch {rows}; "
            f"use a batch size that is a multiple of {len(term)}, or one guidance for all"
        )


def _check_hooks(base, architecture: Architecture) -> None:
    """Refuse LoRA hooks on the embedders: the host applies them after the term has been computed."""
    hooked = getattr(base.current_patcher, "hook_patches", {}).values()
    names = sorted({str(name).removeprefix("diffusion_model.") for patches in hooked for name in patches})
    if found := [name for name in names if architecture.embeds(name)]:
        raise InvalidConfig(
            f"a LoRA hook of a prompt changes {found[0]}, of which the guidance is made for the whole run; use a LoRA "
            "loader on the model instead"
        )
