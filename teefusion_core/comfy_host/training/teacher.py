"""A teacher made of a GUIDER and a SAMPLER.

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
"""Relative; rounding of a step in half precision stays below it, the history of a multistep sampler does not."""


class Teacher:
    """Any guider with a CFG scale, and any sampler whose step depends on the current state only."""

    def __init__(self, guider, sampler):
        """Copy the guider, so that the original is not changed.

        Args:
            guider: GUIDER with `set_conds(positive, negative)` and `set_cfg(cfg)`.
            sampler: SAMPLER of any order that keeps no history and adds no noise.
        Raises:
            InvalidConfig: the guider has no single CFG scale, or the sampler is not a SAMPLER.
        """
        for method, wanted in (("set_conds", 2), ("set_cfg", 1)):
            if not _takes(getattr(guider, method, None), wanted):
                raise InvalidConfig(
                    f"the teacher's guider is {type(guider).__name__}, which does not take one positive prompt, one "
                    "negative prompt and one CFG scale; connect CFGGuider, Reflection Guider or a guider like them"
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
        """Sample from noise, or from a noised image.

        Args:
            positive, negative: CONDITIONING.
            noise_BCHW: noise that is added to the image, up to sigmas[0].
            sigmas_S: noise levels [S+1], decreasing.
            cfg: CFG scale of the guider.
            latent_BCHW: LATENT samples of the image; None starts from noise alone.
            seed: seed for samplers that draw random numbers.
        Returns:
            (x at every noise level, S+1 tensors [B,C,H,W] in the model's own latent space; the last velocity that the
            teacher predicts in each step, S tensors).
        Raises:
            InvalidConfig: the sampler does not report its steps.
        """
        self.guider.set_conds(positive, negative)
        self.guider.set_cfg(cfg)
        picture = torch.zeros_like(noise_BCHW) if latent_BCHW is None else latent_BCHW
        sampled = record(self.guider, self.sampler, noise_BCHW, picture, sigmas_S, seed=seed)
        return sampled.states, sampled.predicted

    def check(self, positive, negative, noise_BCHW: Tensor, cfg: float) -> None:
        """Refuse a sampler whose step depends on more than the current state, by a trial.

        It samples four steps, then only the third from the same state, with two other seeds.
        Raises:
            InvalidConfig: the results differ.
        """
        sampling = self.model.get_model_object("model_sampling")
        sigmas_S = comfy.samplers.calculate_sigmas(sampling, "simple", PROBE_STEPS)
        states, _ = self.sample(positive, negative, noise_BCHW, sigmas_S, cfg)
        third = sigmas_S[2:4]
        noise = states[2] / third[0].to(states[2])
        alone, again = (self.sample(positive, negative, noise, third, cfg, seed=seed)[0][-1] for seed in (1, 2))
        for other, reason in ((again, "adds random noise"), (states[3], "remembers earlier steps")):
            if float((alone - other).norm()) > PROBE_TOLERANCE * float((alone - states[2]).norm()):
                raise InvalidConfig(
                    f"the teacher's sampler {reason}, so its step has no velocity that a student could learn; connect "
                    "a sampler whose step depends on the current state only: euler, heun, dpm_2 or Reflection Sampler"
                )


def _takes(method, count: int) -> bool:
    """Return whether a method can be called with exactly this many positional arguments."""
    if not callable(method):
        return False
    of = inspect.Parameter
    parameters = inspect.signature(method).parameters.values()
    places = [p for p in parameters if p.kind in (of.POSITIONAL_ONLY, of.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in parameters if p.default is of.empty and p.kind not in (of.VAR_POSITIONAL, of.VAR_KEYWORD)]
    most = math.inf if any(p.kind is of.VAR_POSITIONAL for p in parameters) else len(places)
    return all(p in places for p in needed) and len(needed) <= count <= most
