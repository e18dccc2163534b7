"""CFG whose scale follows a schedule."""

from __future__ import annotations

import comfy.samplers

from ...guidance.cfg import cfg_scale_of
from ...guidance.schedule import GuidanceSchedule
from .position import position_of


class ScheduledCFGGuider(comfy.samplers.CFGGuider):
    """The host's CFGGuider with a scale that depends on the noise level; at scale 1 a step costs one pass."""

    def __init__(self, model_patcher, schedule: GuidanceSchedule):
        """Wrap a MODEL; prompts and scale are set as in a CFGGuider."""
        super().__init__(model_patcher)
        self.cfg: float = 1.0
        self.schedule = schedule

    def described(self) -> dict:
        """Return the settings that shape its predictions, by name; the scale is set for each run."""
        return {"schedule": self.schedule.json()}

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Return the denoised prediction with the scale of this noise level."""
        constant, position = self.cfg, position_of(self.inner_model.model_sampling, float(timestep.max()))
        self.cfg = float(cfg_scale_of(self.schedule.at(constant - 1, position)))
        try:
            return super().predict_noise(x, timestep, model_options or {}, seed)
        finally:
            self.cfg = constant
