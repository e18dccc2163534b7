"""GUIDER for the three phases of reflection sampling.

The phases are `strong`, `weak` and `final`. The sampler passes the phase in the model options of each call; without it
the guider predicts for `final`. Every phase uses the host's sampling function, so nodes that act before or after CFG
keep working.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.samplers
import torch
from einops import repeat
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch
from ...guidance.cfg import proxy_prompt
from ...guidance.schedule import GuidanceSchedule
from ..guidance.position import Positions
from ..guidance_functions import BRANCHES_KEY, name_what_is_not_finite, with_memory
from ..notes import warn
from ..origin import described
from ..recording import count_rows
from .weak_model import WeakModel

PHASE_KEY = "teefusion_phase"  # in the model options of a call
COUNTER_KEY = "teefusion_passes"
STRONG, WEAK, FINAL = "strong", "weak", "final"
CFG, CHATS = "CFG", "CHATS"


@dataclass(frozen=True)
class Scales:
    """CFG scale of each phase; 1 (prompt only) and 0 (negative prompt only) cost one pass."""

    strong: float
    weak: float
    final: float


class ReflectionGuider(comfy.samplers.CFGGuider):
    """A guider that predicts for the phase that the sampler asks for."""

    def __init__(
        self, strong, weak=None, *, scales: Scales, rule: str = CFG, alpha: float = 0.5,
        schedule: GuidanceSchedule | None = None,
    ):  # fmt: skip
        """Combine a strong and a weak model.

        Args:
            strong: ComfyUI MODEL; not modified.
            weak: MODEL of the weak phase; None uses `strong`.
            scales: CFG scale of each phase.
            rule: CFG, or CHATS: in the strong and final phases the negative branch is the weak model with the proxy
                prompt.
            alpha: of the proxy prompt, see `proxy_prompt`.
            schedule: curve of the final scale over sampling, and of the strong scale if both are the same; where its
                share is 0, steps do not reflect.
        Raises:
            CheckpointMismatch: the models have different latent spaces or kinds of noise.
            InvalidConfig: unknown rule, or models that cannot share a run.
        """
        if rule not in (CFG, CHATS):
            raise InvalidConfig(f"the rule is {rule!r}; choose {CFG} or {CHATS}")
        super().__init__(strong.clone())
        self.weak = WeakModel(self.model_patcher, self.model_patcher if weak is None else weak)
        for patcher in (self.model_patcher, self.weak.patcher):
            if rule == CHATS and (function := patcher.model_options.get(BRANCHES_KEY)):
                raise InvalidConfig(
                    f"{described(function)} changes the negative prediction, for which {CHATS} takes the weak model; "
                    f"remove its node, or choose the rule {CFG}"
                )
        self.rule, self.alpha, self.schedule = rule, alpha, schedule
        self.scales, self.passes, self.rows = scales, 0.0, 1
        self.cfg, self._strong_is_final = scales.final, scales.strong == scales.final

    def set_cfg(self, cfg: float) -> None:
        """Set the scale of the final phase, and of the strong phase if both had the same scale at first."""
        strong = cfg if self._strong_is_final else self.scales.strong
        self.scales, self.cfg = Scales(strong, self.scales.weak, cfg), cfg

    def described(self) -> dict:
        """Return the settings that shape its predictions, by name; the final scale is set for each run."""
        strong = "final" if self._strong_is_final else self.scales.strong
        chats = {"alpha": self.alpha} if self.rule == CHATS else {}
        scales = {"strong_cfg": strong, "weak_cfg": self.scales.weak}
        scheduled = {} if self.schedule is None else {"schedule": self.schedule.json()}
        return {"rule": self.rule, **scales, **chats, **scheduled, "weak_model": self.weak.patcher}

    def guides_at(self, sigma: Tensor) -> bool:
        """Return whether the schedule guides at a noise level."""
        return self.schedule is None or self.positions.guidance_share(sigma) > 0

    def _scale(self, phase: str, sigma: Tensor) -> float:
        scale: float = getattr(self.scales, phase)
        if self.schedule is None or phase == WEAK or (phase == STRONG and not self._strong_is_final):
            return scale
        return self.positions.cfg_scale(scale, sigma)

    def set_conds(self, positive, negative, weak_positive=None, weak_negative=None) -> None:
        """Set the prompts; the weak phase uses those of the strong phase unless it has its own."""
        weak_positive = positive if weak_positive is None else weak_positive
        weak_negative = negative if weak_negative is None else weak_negative
        conds = {"positive": positive, "negative": negative, "weak_positive": weak_positive}
        conds["weak_negative"] = weak_negative
        self.own_prompt = weak_positive is not positive or weak_negative is not negative
        self.same_prompts = _same_prompts(positive, negative)
        if self.rule == CHATS:
            with _pooled_expected():
                conds["weak_proxy"] = _proxy(positive, negative, self.alpha)
        self.inner_set_conds(conds)
        if self.model_patcher is not self.weak.strong:
            self.weak = self.weak.following(self.model_patcher)

    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """Sample with a Reflection Sampler.

        Raises:
            InvalidConfig: another sampler, which would never reflect.
        """
        if not getattr(sampler, "reflects", False):
            raise InvalidConfig("this guider was given a sampler that does not reflect; connect Reflection Sampler")
        self.passes, self.reflected = 0.0, False
        return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, *args, **kwargs):
        """Prepare the weak model for the run, and release it even after an error."""
        hooked = any(cond.get("hooks") is not None for conds in self.conds.values() for cond in conds)
        weak = {k.removeprefix("weak_"): self.conds.pop(k) for k in list(self.conds) if k.startswith("weak_")}
        self.rows = len(noise)
        if self.schedule is not None:
            self.positions = Positions(self.schedule, self.inner_model.model_sampling, sigmas.tolist())
        self._prepare(self.model_options)
        scaled = latent_image
        if latent_image is not None and torch.count_nonzero(latent_image) > 0:
            scaled = self.inner_model.process_latent_in(latent_image)
        context = {"latent_image": scaled, "denoise_mask": denoise_mask, "seed": args[2] if len(args) > 2 else None}
        context |= {name: kwargs[name] for name in ("seed", "latent_shapes") if name in kwargs}
        try:
            with _pooled_expected():
                self.weak.enter(weak, sigmas, noise, device, hooked, **context)
                self._prepare(self.weak.options)
                return super().inner_sample(noise, latent_image, device, sampler, sigmas, denoise_mask, *args, **kwargs)
        finally:
            self.weak.leave()

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Return the denoised prediction of the phase in the options, with CFG."""
        options = dict(model_options or {})
        phase = options.pop(PHASE_KEY, FINAL)
        if phase == WEAK:
            self.reflected = True
            # only its own options: what nodes changed in the strong model alone is part of the difference
            with self.weak.active():
                return self._predict(self.weak.network, x, timestep, self.weak.conds, WEAK, self.weak.options, seed)
        return self._predict(self.inner_model, x, timestep, self.conds, phase, options, seed)

    def _predict(self, network, x, sigma, conds, phase, options, seed):
        scale, positive, negative = self._scale(phase, sigma), conds["positive"], conds["negative"]
        if self.rule == CHATS and phase != WEAK:
            negative = self.weak.conds["proxy"]
            options = {**options, BRANCHES_KEY: self._chats_branches}
        elif scale == 0 and _plain(options):
            options = {**options, BRANCHES_KEY: _negative_only}
        return comfy.samplers.sampling_function(
            network, x, sigma, negative, positive, scale, model_options=options, seed=seed
        )

    def _chats_branches(self, args: dict) -> list:
        """Return the predictions of the strong model with the prompt and of the weak model with the proxy prompt."""
        (positive, proxy), where = args["conds"], (args["input"], args["sigma"])
        preferred = comfy.samplers.calc_cond_batch(args["model"], [positive], *where, _without_branches(args))[0]
        if proxy is None:
            return [preferred, torch.zeros_like(preferred)]
        with self.weak.active():
            rejected = comfy.samplers.calc_cond_batch(self.weak.network, [proxy], *where, self.weak.options)[0]
        return [preferred, rejected]

    def _prepare(self, options: dict) -> None:
        name_what_is_not_finite(options)

        def count(rows: int) -> None:
            self.passes += rows / self.rows

        count_rows(options, COUNTER_KEY, count)

    def check_guidance_functions(self, x: Tensor, sigmas: Tensor, options: dict) -> None:
        """Refuse guidance functions with a memory: each pass of a reflection would get predictions of the others.

        Args:
            x: latent at the start of the run [B,...].
            sigmas: noise levels [S+1].
            options: model options of the strong and final phases.
        Raises:
            InvalidConfig: a function has a memory, see `with_memory`.
        """
        strong = max(self.scales.strong, self.scales.final)
        sides = ((self.inner_model, options, strong), (self.weak.network, self.weak.options, self.scales.weak))
        for network, own, scale in sides:
            if guilty := with_memory(network, own, x, sigmas, scale):
                raise InvalidConfig(
                    f"{' and '.join(guilty)} cannot be used with reflection sampling: its result depends on earlier "
                    "predictions, which here belong to other passes. Remove its node, or turn its momentum off"
                )

    def warn_if_nothing_differs(self) -> None:
        """Warn if strong and weak phase predicted the same in the whole run; call it at its end."""
        same_scale = math.isclose(self.scales.strong, self.scales.weak) or self.same_prompts
        if not self.reflected or self.rule != CFG or not same_scale or self.own_prompt:
            return
        if self.weak.predicts_the_same():
            warn(
                f"strong and weak give bit-identical predictions (CFG scale {self.scales.strong:g} and "
                f"{self.scales.weak:g}), so reflection costs its passes but adds nothing. Use another model, LoRA "
                "strength, prompt or CFG scale for it."
            )


def _same_prompts(positive, negative) -> bool:
    """Return whether two CONDITIONINGs are equal, so that the CFG scale has no effect."""
    entries = [
        [[cond, *(extras[name] for name in sorted(extras))] for cond, extras in side] for side in (positive, negative)
    ]
    keys = [[sorted(extras) for _, extras in side] for side in (positive, negative)]
    return keys[0] == keys[1] and all(
        _same(a, b) for one, other in zip(*entries, strict=True) for a, b in zip(one, other, strict=True)
    )


def _same(a, b) -> bool:
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.shape == b.shape and bool(torch.equal(a, b.to(a)))
    return a is b


def _plain(options: dict) -> bool:
    """Return whether a branch of weight zero can be skipped: no node replaces CFG or the branches."""
    return not any("cfg_function" in name or name == BRANCHES_KEY for name, value in options.items() if value)


def _negative_only(args: dict) -> list:
    _, negative = args["conds"]
    out = comfy.samplers.calc_cond_batch(
        args["model"], [negative], args["input"], args["sigma"], _without_branches(args)
    )
    return [torch.zeros_like(out[0]), out[0]]


def _without_branches(args: dict) -> dict:
    return {name: value for name, value in args["model_options"].items() if name != BRANCHES_KEY}


def _proxy(positive, negative, alpha: float) -> list:
    """Return the CONDITIONING of the proxy prompt per entry; a single negative prompt is used for all."""
    if len(negative) not in (1, len(positive)):
        raise ShapeMismatch(
            f"negative holds {len(negative)} prompts, positive {len(positive)}; connect one, or the same number"
        )
    entries = []
    for (cond, extras), (null, null_extras) in zip(positive, negative * (len(positive) // len(negative)), strict=True):
        if cond.shape[1] % null.shape[1]:
            raise ShapeMismatch(
                f"the prompt has {cond.shape[1]} tokens, the negative prompt {null.shape[1]}; CHATS mixes token "
                "by token, so encode both with the same text encoder"
            )
        null = repeat(null, "b l w -> b (n l) w", n=cond.shape[1] // null.shape[1])
        mixed = dict(extras)
        if (pooled := extras.get("pooled_output")) is not None:
            mixed["pooled_output"] = proxy_prompt(pooled, null_extras["pooled_output"], alpha)
        entries.append([proxy_prompt(cond, null, alpha), mixed])
    return entries


@contextmanager
def _pooled_expected() -> Iterator[None]:
    """Replace the host's KeyError for a missing pooled_output by a readable error."""
    try:
        yield
    except KeyError as error:
        if error.args != ("pooled_output",):
            raise
        raise InvalidConfig(
            "a prompt has no pooled_output, which this model needs; encode it with all text encoders of the model"
        ) from error
