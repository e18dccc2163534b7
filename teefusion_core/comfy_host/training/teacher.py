"""A GUIDER with its SAMPLER as a teacher.

Shapes: B rows, C H W latent, S steps.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...errors import InvalidConfig, TeacherFailed, TeEFusionError
from ...files.tensor_file import not_finite
from ..guidance_functions import name_what_is_not_finite, with_memory
from ..notes import Wait
from ..origin import foreign_pack
from ..recording import record
from ..weights import beside, compute_dtype

PROBE_STEPS = 4
CHECK_STEPS = PROBE_STEPS + 1
"""Steps that a check samples if it finds nothing wrong."""
PROBE_TOLERANCE = 1e-3
"""Difference of two steps from one state, relative to the step, that rounding in float32 explains."""
ROUNDING_MARGIN, NUDGED = 4.0, 64
"""How many times larger than the effect of rounding a memory must be, and which share of elements shows that effect.

One element that is rounded the other way moves a step in bfloat16 by up to 8 percent, and kernels that add in any order
do that as well. The memory of a multistep sampler moves it by 24 percent or more (demo base, CFG scales 2 and 9).
"""


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
        self._on_step: Callable[[], None] | None = None
        # set_conds writes into a dictionary, which a shallow copy shares with the guider that the host keeps
        vars(self.guider).update({name: dict(held) for name, held in vars(guider).items() if type(held) is dict})
        if hasattr(self.guider, "tells_passes"):
            self.guider.tells_passes = False
        name_what_is_not_finite(getattr(self.guider, "model_options", {}))

    @property
    def model(self):
        """The MODEL that the guider runs."""
        return self.guider.model_patcher

    @property
    def depends_on_schedule(self) -> bool:
        """Whether a step differs in a run of this step alone, as some reflections do."""
        return getattr(self.sampler, "depends_on_schedule", False)

    def follow(self, model, merged) -> None:
        """Switch from one copy of the weights to another, if the guider samples with the first.

        Args:
            model: MODEL with the copy to leave.
            merged: MODEL with the copy to use.
        """
        if self.model.model is model.model:
            self.guider.model_patcher = beside(self.model, merged)

    @contextmanager
    def telling(self, what: str, steps: int) -> Iterator[None]:
        """Tell the user what is sampled inside the block and how far it is.

        Args:
            what, steps: what is done in one step, as in `Wait`, and the number of steps.
        """
        self._on_step = Wait(what, steps).next
        try:
            self._on_step()
            yield
        finally:
            self._on_step = None

    def sample(
        self, positive, negative, noise_BCHW, sigmas_S, cfg: float, *, latent_BCHW=None, seed: int = 0, start_BCHW=None
    ):
        """Sample from noise, from a noised image, or from a state on the way.

        Args:
            positive, negative: CONDITIONING.
            noise_BCHW: noise that is added to the image, up to sigmas[0].
            sigmas_S: noise levels [S+1], decreasing.
            cfg: CFG scale of the guider.
            latent_BCHW: LATENT samples of the image; None starts from noise alone.
            seed: seed for samplers that draw random numbers.
            start_BCHW: state at sigmas[0] to start from, bit by bit; the noise is not used then.
        Returns:
            (x at every noise level, S+1 tensors [B,C,H,W] in the model's own latent space; the last velocity that the
            teacher predicts in each step, S tensors).
        Raises:
            InvalidConfig: the sampler does not report its steps, or a guidance function makes NaN.
            TeacherFailed: the code of another node pack raises an error.
        """
        picture = torch.zeros_like(noise_BCHW) if latent_BCHW is None else latent_BCHW
        begun = set()

        def count(step: int, *_: object) -> None:
            if step not in begun and self._on_step is not None:  # a reflection reports each step several times
                begun.add(step)
                self._on_step()

        with _other_packs_named():
            self.guider.set_conds(positive, negative)
            self.guider.set_cfg(cfg)
            sampled = record(
                self.guider,
                self.sampler,
                noise_BCHW,
                picture,
                sigmas_S,
                seed=seed,
                start_BCHW=start_BCHW,
                on_step=count,
            )
        return sampled.states, sampled.predicted

    def check(self, positive, negative, noise_BCHW: Tensor, cfg: float) -> None:
        """Refuse a teacher whose step depends on more than the current state, by a trial.

        It samples four steps, then only the third from the same state with another seed. If these differ, a trial from
        a state that is one rounding error away shows whether rounding explains it. Reflections that depend on the
        schedule are not tried again: their third step alone is another one, and they keep no history.
        Raises:
            InvalidConfig: the results differ or are not finite.
        """
        sampling = self.model.get_model_object("model_sampling")
        steps = max(PROBE_STEPS, getattr(self.sampler, "extra_options", {}).get("reflect_steps", 0))
        sigmas_S = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        states, _ = self.sample(positive, negative, noise_BCHW, sigmas_S, cfg)
        if lost := [step for step, state in enumerate(states) if not_finite(state)]:
            raise InvalidConfig(
                f"the teacher makes NaN or infinite values in step {max(lost[0], 1)} at CFG scale {cfg:g}. Sample with "
                "the same guider and sampler in SamplerCustomAdvanced, and remove nodes from its model until the image "
                "is right"
            )
        if self.depends_on_schedule:
            return
        third = sigmas_S[2:4]

        def from_state(start_BCHW: Tensor, seed: int) -> Tensor:
            return self.sample(positive, negative, noise_BCHW, third, cfg, seed=seed, start_BCHW=start_BCHW)[0][-1]

        def differs(one: Tensor, other: Tensor, allowed: float) -> bool:
            return float((one - other).norm()) > allowed

        alone = from_state(states[2], 1)
        tolerance = PROBE_TOLERANCE * float((alone - states[2]).norm())
        if not differs(alone, states[3], tolerance):
            return
        again = from_state(states[2], 2)  # before the next trial, which a function with a memory would remember
        rounding = float((from_state(self._nudged(states[2]), 1) - alone).norm())
        allowed = max(tolerance, ROUNDING_MARGIN * rounding)
        noisy = differs(alone, again, allowed)
        if not noisy and not differs(alone, states[3], allowed):
            return
        if guilty := with_memory(self.model.model, self.model.model_options, noise_BCHW, sigmas_S, cfg):
            raise InvalidConfig(
                f"{' and '.join(guilty)} mixes in predictions of earlier steps, so the teacher's step has no "
                "velocity that a student could learn. Remove its node from the teacher's model"
            )
        raise InvalidConfig(
            f"the teacher's sampler {'adds random noise' if noisy else 'remembers earlier steps'}, so its step has no "
            "velocity that a student could learn; connect a sampler whose step depends on the current state only: "
            "euler, heun, dpm_2 or Reflection Sampler"
        )

    def _nudged(self, state_BCHW: Tensor) -> Tensor:
        """Return a state of which a few elements are one unit in the last place of the network's dtype larger."""
        nudged_N = state_BCHW.flatten().clone()
        nudged_N[::NUDGED] *= 1 + torch.finfo(compute_dtype(self.model.model)).eps
        return nudged_N.reshape(state_BCHW.shape)


@contextmanager
def _other_packs_named() -> Iterator[None]:
    """Say whose code failed if an error comes from another node pack; other errors stay as they are."""
    try:
        yield
    except (TeEFusionError, comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION):
        raise
    except Exception as error:
        if not (pack := foreign_pack(error)):
            raise
        raise TeacherFailed(
            f"the teacher failed in the custom node pack {pack}: {type(error).__name__}: {error}. Sample with the same "
            f"guider and sampler in SamplerCustomAdvanced; if that fails too, report it to the authors of {pack}"
        ) from error


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
