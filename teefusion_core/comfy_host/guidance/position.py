"""Where in sampling a noise level is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...guidance.cfg import cfg_scale_of
from ...guidance.schedule import GuidanceSchedule

HALVINGS = 24
"""As many as a noise level in float32 tells apart."""
CLOSE = 1e-5
"""Share of a noise level by which a sampler may miss it."""


def position_of(model_sampling, sigma: float) -> float:
    """Return the position of a noise level, from 0 at the start of sampling to 1 at its end.

    It is the percentage of the host's timestep ranges, so a run that is split in two has the positions of the whole.

    Args:
        model_sampling: of a model, with `percent_to_sigma`.
        sigma: noise level.
    """
    before, after = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (before + after) / 2
        if float(model_sampling.percent_to_sigma(middle)) > sigma:
            before = middle
        else:
            after = middle
    return after


class Positions:
    """The positions of the noise levels of a run on the curve of a schedule."""

    def __init__(self, schedule: GuidanceSchedule, model_sampling, levels: Sequence[float]):
        """Remember the run.

        Args:
            schedule: the curve; a list counts the steps of this run, others the percentage of `position_of`.
            model_sampling: of the model.
            levels: noise levels of the run, in any order.
        """
        self.schedule, self.model_sampling, self.levels = schedule, model_sampling, sorted(levels, reverse=True)

    def __call__(self, sigma: float) -> float:
        """Return the position of a noise level; one between two levels belongs to the step from the higher one."""
        if not self.schedule.by_steps:
            return position_of(self.model_sampling, sigma)
        steps = max(len(self.levels) - 1, 1)
        step = sum(level * (1 + CLOSE) >= sigma for level in self.levels) - 1
        return (min(max(step, 0), steps - 1) + 0.5) / steps

    def guidance_share(self, sigma_B: Tensor) -> float:
        """Return the share of the guidance at the noise level of a batch."""
        return self.schedule.share(self(float(sigma_B.max())))

    def cfg_scale(self, full: float, sigma_B: Tensor) -> float:
        """Return the CFG scale at the noise level of a batch, where `full` is the scale at full guidance."""
        return float(cfg_scale_of(self.schedule.at(full - 1, self(float(sigma_B.max())))))
