"""A wired GUIDER with its SAMPLER as a teacher.

Shapes: B batch, C H W latent, S steps.
"""

from __future__ import annotations

import copy
import inspect
import math

import comfy.samplers
import torch
from torch import Tensor

from ...errors import InvalidConfig
from ..recording import record

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
        # set_conds writes into a dictionary, which a shallow copy shares with the guider that the host keeps
        vars(self.guider).update({name: dict(held) for name, held in vars(guider).items() if type(held) is dict})

    @property
    def model(self):
        """The MODEL that the guider runs."""
        return self.guider.model_patcher

    def sample(self, positive, negative, noise_BCHW, sigmas_S, cfg: float, *, latent_BCHW=None, seed: int = 0):
        """Sample from noise, or from a noised picture.

        Args:
            positive, negative: CONDITIONING.
            noise_BCHW: what the picture is noised with to sigmas[0].
            sigmas_S: noise levels [S+1], decreasing.
            cfg: scale that the guider is set to.
            latent_BCHW: picture as a LATENT has it; None is none.
            seed: for samplers that draw.
        Returns:
            (x at every noise level, S+1 tensors [B,C,H,W] in the model's own latent space; the velocity that the
            teacher predicts last in each step, S of them).
        Raises:
            InvalidConfig: a sampler that does not report its steps.
        """
        self.guider.set_conds(positive, negative)
        self.guider.set_cfg(cfg)
        picture = torch.zeros_like(noise_BCHW) if latent_BCHW is None else latent_BCHW
        sampled = record(self.guider, self.sampler, noise_BCHW, picture, sigmas_S, seed=seed)
        return sampled.states, sampled.predicted

    def check(self, positive, negative, noise_BCHW: Tensor, cfg: float) -> None:
        """Refuse a sampler whose step is more than a function of the state, by trying.

        Samples four steps, then the third alone, from the same state with another seed.
        Raises:
            InvalidConfig: the two land at different places.
        """
        sampling = self.model.get_model_object("model_sampling")
        sigmas_S = comfy.samplers.calculate_sigmas(sampling, "simple", PROBE_STEPS)
        states, _ = self.sample(positive, negative, noise_BCHW, sigmas_S, cfg)
        third = sigmas_S[2:4]
        noise = states[2] / third[0].to(states[2])
        alone, again = (self.sample(positive, negative, noise, third, cfg, seed=seed)[0][-1] for seed in (1, 2))
        for other, reason in ((again, "adds noise of its own"), (states[3], "remembers earlier steps")):
            if float((alone - other).norm()) > PROBE_TOLERANCE * float((alone - states[2]).norm()):
                raise InvalidConfig(
                    f"the teacher's sampler {reason}, so its step has no velocity that a student could learn; connect "
                    "a sampler whose step follows from the state alone: euler, heun, dpm_2, Reflection Sampler"
                )


def _takes(method, count: int) -> bool:
    """Can it be called with just this many arguments?"""
    if not callable(method):
        return False
    of = inspect.Parameter
    parameters = inspect.signature(method).parameters.values()
    places = [p for p in parameters if p.kind in (of.POSITIONAL_ONLY, of.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in parameters if p.default is of.empty and p.kind not in (of.VAR_POSITIONAL, of.VAR_KEYWORD)]
    most = math.inf if any(p.kind is of.VAR_POSITIONAL for p in parameters) else len(places)
    return all(p in places for p in needed) and len(needed) <= count <= most
