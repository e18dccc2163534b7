"""The three settings of a reflection run as one GUIDER.

A step has three phases: `strong`, `weak` and `final`. The sampler names the phase in the model options of the call;
without one the guider predicts for `final`. Every phase goes through the host's own sampling function, so that nodes
that act before or after CFG keep working.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...errors import InvalidConfig, ShapeMismatch
from ...guidance.cfg import proxy_prompt
from .weak_model import WeakModel

PHASE_KEY = "teefusion_leg"  # in the model options of a call
COUNTER_KEY = "teefusion_passes"
STRONG, WEAK, FINAL = "strong", "weak", "final"
CFG, CHATS = "CFG", "CHATS"
OWN_BRANCHES = "sampler_calc_cond_batch_function"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scales:
    """CFG scale of each phase: 1 is the prompt alone, 0 the negative prompt alone; both cost one pass."""

    strong: float
    weak: float
    final: float


class ReflectionGuider(comfy.samplers.CFGGuider):
    """A guider that predicts as the strong, weak or final setting, whichever the sampler asks for."""

    def __init__(self, strong, weak=None, *, scales: Scales, rule: str = CFG, alpha: float = 0.5):
        """Join the models.

        Args:
            strong: ComfyUI MODEL; not modified.
            weak: MODEL of the weak phase, None for the same one.
            scales: CFG scale of each phase.
            rule: CFG, or CHATS: in the strong phases the negative branch is the weak model on the proxy prompt.
            alpha: of the proxy prompt.
        Raises:
            CheckpointMismatch: the models do not fit together.
            InvalidConfig: unknown rule, or models that cannot share a run.
        """
        if rule not in (CFG, CHATS):
            raise InvalidConfig(f"the rule is {rule!r}; choose {CFG} or {CHATS}")
        super().__init__(strong.clone())
        self.weak = WeakModel(self.model_patcher, self.model_patcher if weak is None else weak)
        self.rule, self.alpha = rule, alpha
        self.scales, self.passes, self.rows = scales, 0.0, 1
        self.cfg, self._alike = scales.final, scales.strong == scales.final

    def set_cfg(self, cfg: float) -> None:
        """Set the scale of the final phase, and of the strong phase if both were made with the same one."""
        strong = cfg if self._alike else self.scales.strong
        self.scales, self.cfg = Scales(strong, self.scales.weak, cfg), cfg

    def set_conds(self, positive, negative, weak_positive=None, weak_negative=None) -> None:
        """Give the prompts; the weak side has those of the strong one unless it is given its own."""
        weak_positive = positive if weak_positive is None else weak_positive
        weak_negative = negative if weak_negative is None else weak_negative
        conds = {"positive": positive, "negative": negative, "weak_positive": weak_positive}
        conds["weak_negative"] = weak_negative
        self.own_prompt = weak_positive is not positive or weak_negative is not negative
        if self.rule == CHATS:
            with _pooled_expected():
                conds["weak_proxy"] = _proxy(positive, negative, self.alpha)
        self.inner_set_conds(conds)

    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """Run the host's sampling with a sampler that knows about phases.

        Raises:
            InvalidConfig: any other sampler, which would leave the reflection out.
        """
        if not getattr(sampler, "asks_for_legs", False):
            raise InvalidConfig(
                "this guider was given a sampler that does not reflect; connect Reflection Sampler (its steps are "
                "first-order ODE steps, which multistep or noise-adding samplers cannot take back)"
            )
        self.passes = 0.0
        return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, *args, **kwargs):
        """Bring the weak side up for the run, and down again whatever happens."""
        hooked = any(cond.get("hooks") is not None for conds in self.conds.values() for cond in conds)
        weak = {k.removeprefix("weak_"): self.conds.pop(k) for k in list(self.conds) if k.startswith("weak_")}
        self.rows = len(noise)
        self._count_passes(self.model_options)
        shown = latent_image
        if latent_image is not None and torch.count_nonzero(latent_image) > 0:
            shown = self.inner_model.process_latent_in(latent_image)
        context = {"latent_image": shown, "denoise_mask": denoise_mask, "seed": args[2] if len(args) > 2 else None}
        context |= {name: kwargs[name] for name in ("seed", "latent_shapes") if name in kwargs}
        try:
            with _pooled_expected():
                self.weak.enter(weak, sigmas, noise, device, hooked, **context)
                self._count_passes(self.weak.options)
                return super().inner_sample(noise, latent_image, device, sampler, sigmas, denoise_mask, *args, **kwargs)
        finally:
            self.weak.leave()

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Denoised prediction of the phase that the options name, with CFG."""
        options = dict(model_options or {})
        phase = options.pop(PHASE_KEY, FINAL)
        if phase == WEAK:
            # its own options alone: what nodes did to the strong model is part of the gap
            with self.weak.active():
                return self._predict(self.weak.network, x, timestep, self.weak.conds, WEAK, self.weak.options, seed)
        return self._predict(self.inner_model, x, timestep, self.conds, phase, options, seed)

    def _predict(self, network, x, sigma, conds, phase, options, seed):
        scale, positive, negative = getattr(self.scales, phase), conds["positive"], conds["negative"]
        if self.rule == CHATS and phase != WEAK:
            negative = self.weak.conds["proxy"]
            options = {**options, OWN_BRANCHES: self._chats_branches}
        elif scale == 0 and _plain(options):
            options = {**options, OWN_BRANCHES: _negative_alone}
        return comfy.samplers.sampling_function(
            network, x, sigma, negative, positive, scale, model_options=options, seed=seed
        )

    def _chats_branches(self, args: dict) -> list:
        """The prompt by the strong network, the proxy prompt by the weak one."""
        (positive, proxy), where = args["conds"], (args["input"], args["sigma"])
        win = comfy.samplers.calc_cond_batch(args["model"], [positive], *where, _without_own(args))[0]
        if proxy is None:
            return [win, torch.zeros_like(win)]
        with self.weak.active():
            lose = comfy.samplers.calc_cond_batch(self.weak.network, [proxy], *where, self.weak.options)[0]
        return [win, lose]

    def _count_passes(self, options: dict) -> None:
        def count(executor, x, *args, **kwargs):
            self.passes += len(x) / self.rows
            return executor(x, *args, **kwargs)

        add_wrapper_with_key(WrappersMP.APPLY_MODEL, COUNTER_KEY, count, options, is_model_options=True)

    def warn_if_nothing_differs(self) -> None:
        """Say so when strong and weak phase are the same prediction, which makes a reflection do nothing."""
        same_scale = math.isclose(self.scales.strong, self.scales.weak)
        if self.rule == CFG and same_scale and not self.own_prompt and self.weak.same_weights():
            log.warning(
                "TeEFusion: strong and weak give bit-identical predictions (same weights, prompts and CFG scale %g): "
                "the reflection changes nothing but costs its passes. Give the weak side another model, LoRA strength, "
                "prompt or CFG scale.",
                self.scales.strong,
            )


def _plain(options: dict) -> bool:
    """May a branch of weight zero be left out? Not if some node looks at both of them."""
    return not any("cfg_function" in name or name == OWN_BRANCHES for name, value in options.items() if value)


def _negative_alone(args: dict) -> list:
    _, negative = args["conds"]
    out = comfy.samplers.calc_cond_batch(args["model"], [negative], args["input"], args["sigma"], _without_own(args))
    return [torch.zeros_like(out[0]), out[0]]


def _without_own(args: dict) -> dict:
    return {name: value for name, value in args["model_options"].items() if name != OWN_BRANCHES}


def _proxy(positive, negative, alpha: float) -> list:
    """CONDITIONING of the proxy prompt, entry by entry; one negative prompt serves all."""
    if len(negative) not in (1, len(positive)):
        raise ShapeMismatch(
            f"negative holds {len(negative)} prompts, positive {len(positive)}; connect one, or as many"
        )
    entries = []
    for (cond, extras), (null, null_extras) in zip(positive, negative * (len(positive) // len(negative)), strict=True):
        if cond.shape[1] % null.shape[1]:
            raise ShapeMismatch(
                f"the prompt has {cond.shape[1]} tokens, the negative prompt {null.shape[1]}; CHATS mixes token by "
                "token, so encode both with one text encoder"
            )
        null = null.repeat(1, cond.shape[1] // null.shape[1], 1)
        mixed = dict(extras)
        if (pooled := extras.get("pooled_output")) is not None:
            mixed["pooled_output"] = proxy_prompt(pooled, null_extras["pooled_output"], alpha)
        entries.append([proxy_prompt(cond, null, alpha), mixed])
    return entries


@contextmanager
def _pooled_expected() -> Iterator[None]:
    """Turn the host's bare KeyError into a sentence."""
    try:
        yield
    except KeyError as error:
        if error.args != ("pooled_output",):
            raise
        raise InvalidConfig(
            "a prompt has no pooled_output, which this model needs; encode it with all text encoders of the model"
        ) from error
