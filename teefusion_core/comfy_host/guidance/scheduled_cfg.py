"""CFG whose scale follows a schedule."""

from __future__ import annotations

import time

import comfy.samplers

from ...guidance.schedule import GuidanceSchedule
from ..notes import tell
from ..recording import count_rows
from ..sampling import cost_line
from .position import Positions

COUNTER_KEY = "teefusion_scheduled_passes"


class ScheduledCFGGuider(comfy.samplers.CFGGuider):
    """The host's CFGGuider with a scale that depends on the noise level; at scale 1 a step costs one pass.

    Attributes:
        tells_passes: whether the node that samples shows the passes of the run; a trainer turns it off.
    """

    tells_passes = True

    def __init__(self, model_patcher, schedule: GuidanceSchedule):
        """Wrap a MODEL; prompts and scale are set as in a CFGGuider."""
        super().__init__(model_patcher)
        self.cfg: float = 1.0
        self.schedule = schedule

    def described(self) -> dict:
        """Return the settings that shape its predictions, by name; the scale is set for each run."""
        return {"schedule": self.schedule.json()}

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, *args, **kwargs):
        """Sample, with the positions of this run; tell its cost."""
        self.positions = Positions(self.schedule, self.inner_model.model_sampling, sigmas.tolist())
        self.passes = 0.0

        def count(rows: int) -> None:
            self.passes += rows / len(noise)

        count_rows(self.model_options, COUNTER_KEY, count)
        begin = time.perf_counter()
        samples = super().inner_sample(noise, latent_image, device, sampler, sigmas, *args, **kwargs)
        if self.tells_passes:
            tell(cost_line(self, max(len(sigmas) - 1, 0), time.perf_counter() - begin))
        return samples

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Return the denoised prediction with the scale of this noise level."""
        full = self.cfg
        self.cfg = self.positions.cfg_scale(full, timestep)
        try:
            return super().predict_noise(x, timestep, model_options or {}, seed)
        finally:
            self.cfg = full
