"""A wired GUIDER with its SAMPLER as a teacher that walks.

Shapes: B batch, C H W latent, S steps.
"""

from __future__ import annotations

import copy
import inspect

import comfy.samplers
import torch
from torch import Tensor

from ..errors import InvalidConfig
from ..flow import per_row

PROBE_STEPS = 4
PROBE_TOLERANCE = 1e-3
"""Relative; rounding of a step in half precision stays below, the memory of a multistep sampler does not."""


class Teacher:
    """Any guider with a scale, any sampler whose step depends on nothing but the state."""

    def __init__(self, guider, sampler):
        """Take what is wired; the guider itself is not changed.

        Args:
            guider: GUIDER with `set_conds(positive, negative)`, `set_cfg(cfg)`.
            sampler: SAMPLER of first or higher order, without memory, without noise of its own.
        Raises:
            InvalidConfig: a guider that has no single scale to train over.
        """
        for method, wanted in (("set_conds", 2), ("set_cfg", 1)):
            if not _takes(getattr(guider, method, None), wanted):
                raise InvalidConfig(
                    f"the teacher's guider is {type(guider).__name__}, which cannot be set by one positive prompt, one "
                    "negative prompt, one CFG scale; connect CFGGuider, Reflection Guider or one that works like them"
                )
        if not isinstance(sampler, comfy.samplers.Sampler):
            raise InvalidConfig(f"the teacher's sampler is a {type(sampler).__name__}; connect a SAMPLER")
        self.guider, self.sampler = copy.copy(guider), sampler

    @property
    def model(self):
        """The MODEL that the guider runs."""
        return self.guider.model_patcher

    def states(self, positive, negative, noise_BCHW: Tensor, sigmas_S: Tensor, cfg: float, seed: int = 0):
        """Sample; return x at every noise level, S+1 tensors [B,C,H,W] in the model's own latent space.

        Args:
            positive, negative: CONDITIONING.
            noise_BCHW: x at sigmas[0] is sigmas[0] times it.
            sigmas_S: noise levels [S+1], decreasing.
            cfg: scale that the guider is set to.
        """
        self.guider.set_conds(positive, negative)
        self.guider.set_cfg(cfg)
        visited: dict[int, Tensor] = {}
        out = self.guider.sample(
            noise_BCHW,
            torch.zeros_like(noise_BCHW),
            self.sampler,
            sigmas_S,
            # a sampler may report one step several times, the first is where the step begins
            callback=lambda step, denoised, x, total: visited.setdefault(step, x.detach().clone()),
            disable_pbar=True,
            seed=seed,
        )
        base = self.model.model
        last = base.process_latent_in(out)
        if float(sigmas_S[-1]) > 0:
            last = base.model_sampling.noise_scaling(sigmas_S[-1].to(last), torch.zeros_like(last), last)
        if len(visited) != len(sigmas_S) - 1:
            raise InvalidConfig(
                f"the teacher's sampler reports {len(visited)} states in {len(sigmas_S) - 1} steps, the student needs "
                "each one; connect a sampler that goes step by step, such as euler or heun"
            )
        return [*(visited[step].to(last) for step in sorted(visited)), last]

    def walk(self, positive, negative, noise_BCHW: Tensor, sigmas_S: Tensor, cfg: float):
        """Yield (x, sigma [B], secant of the teacher's move) for every step, as `trajectories.walk` does."""
        states = self.states(positive, negative, noise_BCHW, sigmas_S, cfg)
        for index, x_BCHW in enumerate(states[:-1]):
            move = (sigmas_S[index + 1] - sigmas_S[index]).to(x_BCHW)
            sigma_B = sigmas_S[index].to(x_BCHW).expand(len(x_BCHW))
            yield x_BCHW, sigma_B, (states[index + 1] - x_BCHW) / per_row(move, x_BCHW)

    def check(self, positive, negative, noise_BCHW: Tensor, cfg: float) -> None:
        """Refuse a sampler whose step is more than a function of the state, by trying.

        Walks four steps, then the third alone from the same state with another seed.
        Raises:
            InvalidConfig: the two land at different places.
        """
        sampling = self.model.get_model_object("model_sampling")
        sigmas_S = comfy.samplers.calculate_sigmas(sampling, "simple", PROBE_STEPS)
        states = self.states(positive, negative, noise_BCHW, sigmas_S, cfg)
        third = sigmas_S[2:4]
        alone = self.states(positive, negative, states[2] / third[0].to(states[2]), third, cfg, seed=1)[-1]
        again = self.states(positive, negative, states[2] / third[0].to(states[2]), third, cfg, seed=2)[-1]
        for other, reason in ((again, "adds noise of its own"), (states[3], "remembers earlier steps")):
            if float((alone - other).norm()) > PROBE_TOLERANCE * float((alone - states[2]).norm()):
                raise InvalidConfig(
                    f"the teacher's sampler {reason}, so its step has no velocity that a student could learn; connect "
                    "a sampler whose step follows from the state alone: euler, heun, dpm_2, Reflection Sampler"
                )


def _takes(method, count: int) -> bool:
    """Can it be called with just this many arguments?"""
    try:
        inspect.signature(method).bind(*[None] * count)
    except TypeError:
        return False
    return True
