"""Where in sampling a noise level is, as the host counts it."""

from __future__ import annotations

HALVINGS = 40


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
