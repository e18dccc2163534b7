"""The reflection operator as a SAMPLER.

It needs a ReflectionGuider, which predicts for each phase. The steps are Euler steps in the host's sigmas; for
noise-predicting models these are DDIM steps.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_sampling import CONST, EDM, EPS
from torch import Tensor
from tqdm.auto import tqdm

from ...errors import InvalidConfig
from ...files.tensor_file import not_finite, numbered
from ...guidance.flow import Denoiser, euler, sample
from ...reflection.operator import Inversion, core, exact, official, reflected, upper, upper_epsilon, window
from ..notes import warn
from .guider import FINAL, PHASE_KEY, STRONG, WEAK, ReflectionGuider

ALL_STEPS = -1
WHAT_TO_DO = "lower the CFG scales, or run the model in 32 bits"
EXACT, UPPER, OFFICIAL = "exact", "upper", "official"
INVERSIONS: dict[str, dict[str, Callable[[Tensor], Inversion]]] = {
    EXACT: {"flow": lambda sigmas: exact, "noise": lambda sigmas: exact, "other": lambda sigmas: exact},
    UPPER: {"flow": lambda sigmas: upper, "noise": lambda sigmas: upper_epsilon},
    OFFICIAL: {"flow": lambda sigmas: core(len(sigmas) - 1), "noise": official},
}
"""Option of the node -> kind of model -> function of the schedule [S+1] that returns the inversion."""


class ReflectionSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that asks its guider for the strong, weak and final phase."""

    reflects = True

    def __init__(self, *, reflect_steps: int = ALL_STEPS, rounds: int = 1, inversion: str = EXACT):
        """Store the settings of the operator.

        Args:
            reflect_steps: number of steps from the start that reflect; ALL_STEPS for all (never the step to sigma 0).
            rounds: reflections per step.
            inversion: a key of INVERSIONS.
        Raises:
            InvalidConfig: a value is out of range.
        """
        if inversion not in INVERSIONS:
            raise InvalidConfig(f"inversion is {inversion!r}; choose one of {', '.join(INVERSIONS)}")
        if rounds < 1:
            raise InvalidConfig(f"rounds is {rounds}; reflect once or more per step, or set reflect_steps to 0")
        if reflect_steps < ALL_STEPS:
            raise InvalidConfig(f"reflect_steps is {reflect_steps}; choose 0 or more, or {ALL_STEPS} for every step")
        super().__init__(run, {"reflect_steps": reflect_steps, "rounds": rounds, "inversion": inversion})

    @property
    def depends_on_schedule(self) -> bool:
        """Whether a step depends on its place in the schedule, so that it differs in a run of this step alone."""
        return self.extra_options["reflect_steps"] != ALL_STEPS or self.extra_options["inversion"] == OFFICIAL

    def described(self) -> dict:
        """Return the settings that shape its steps, by name."""
        return dict(self.extra_options)

    def evaluations(self, sigmas: Tensor) -> int:
        """Return the number of predictions of a run over a schedule; each costs one or two passes."""
        steps, rounds = len(sigmas) - 1, self.extra_options["rounds"]
        chosen = self.extra_options["reflect_steps"]
        reflecting = min(steps if chosen == ALL_STEPS else chosen, steps - int(sigmas[-1] == 0))
        return steps + 2 * rounds * reflecting


@torch.no_grad()
def run(model, x, sigmas, extra_args=None, callback=None, disable=None, *, reflect_steps, rounds, inversion):
    """Sample, with the signature of the host's samplers; `model` wraps the guider, x is [B,...] at sigmas[0]."""
    guider = model.inner_model
    if not isinstance(guider, ReflectionGuider):
        raise InvalidConfig("Reflection Sampler needs strong and weak predictions; connect Reflection Guider as guider")
    guider.check_guidance_functions(x, sigmas, (extra_args or {}).get("model_options", {}))
    kind = _kind_of(guider.inner_model.model_sampling)
    if kind not in INVERSIONS[inversion]:
        raise InvalidConfig(f"inversion {inversion!r} is not defined for this kind of model; choose {EXACT!r}")
    steps = len(sigmas) - 1
    chosen = steps if reflect_steps == ALL_STEPS else reflect_steps
    if (inversion, kind) == (OFFICIAL, "noise") and chosen == steps and sigmas[-1] > 0:
        raise InvalidConfig(
            f"inversion {OFFICIAL!r} asks for a noise level after the last one, because this schedule ends above zero; "
            f"set reflect_steps to at most {steps - 1}, or choose {EXACT!r}"
        )
    with tqdm(total=steps, disable=disable) as bar:
        phases = _Phases(model, extra_args or {}, callback)
        final = euler(phases.denoiser(FINAL))
        step = reflected(
            euler(phases.denoiser(STRONG)), INVERSIONS[inversion][kind](sigmas)(phases.denoiser(WEAK)), final,
            until=window(sigmas, chosen), rounds=rounds,
        )  # fmt: skip

        def scheduled(state: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
            return (step if guider.guides_at(sigma) else final)(state, sigma, sigma_next)

        def moved(index: int, sigma: Tensor, state: Tensor) -> None:
            phases.step = index + 1
            bar.update()

        out = sample(scheduled, x, sigmas, callback=moved)
    guider.warn_if_nothing_differs()
    return _noted(out)


def _noted(samples: Tensor) -> Tensor:
    """Return the result, and warn which of its images are NaN: a decoder would show them black."""
    if lost := not_finite(samples):
        warn(f"the result has NaN or infinite values in {numbered('image', lost)}; {WHAT_TO_DO}.")
    return samples


class _Phases:
    """Denoisers for each phase that report every evaluation to the callback."""

    def __init__(self, model, extra_args: dict, callback):
        self.model, self.extra_args, self.callback = model, extra_args, callback
        self.step, self.preview = 0, None

    def denoiser(self, phase: str) -> Denoiser:
        """Return the denoiser of a phase; a run can be cancelled before every evaluation."""
        arguments = {**self.extra_args, "model_options": {**self.extra_args.get("model_options", {}), PHASE_KEY: phase}}

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            denoised = self.model(x, sigma * x.new_ones(len(x)), **arguments)
            # the preview shows the strong or final prediction
            self.preview = self.preview if phase == WEAK else denoised
            if self.callback is not None:
                self.callback({"x": x, "i": self.step, "sigma": sigma, "sigma_hat": sigma, "denoised": self.preview})
            return denoised

        return predict


def _kind_of(model_sampling) -> str:
    """Return the kind of model for INVERSIONS."""
    if isinstance(model_sampling, CONST):
        return "flow"
    return "noise" if isinstance(model_sampling, EPS) and not isinstance(model_sampling, EDM) else "other"
