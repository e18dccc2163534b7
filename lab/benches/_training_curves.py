"""The losses of students during training."""

from typing import Any

import torch

from . import _methods
from ._bootstrap import resamples
from ._methods import training_record
from ._report import packed, unpacked
from ._scores import judged_interval

POINTS = 100
"""Points of a curve: each is the mean of a hundredth of the steps."""
QUARTER, MARGIN = 0.25, 4
"""Share of the steps that counts as early, and number of points to average at each place."""
EARLY = 0.5
"""Share of the total decrease in loss that must be early for the claim to hold."""


def losses() -> list[dict[str, Any]]:
    found = []
    for wanted in _methods.WANTED:
        for seed in _methods.SEEDS:
            record = training_record(_methods.student_path(wanted, seed))
            if len(record.get("losses", ())) >= POINTS:
                curve = torch.tensor(record["losses"]).tensor_split(POINTS)
                cost = {"budget": record["steps"], "seconds": record.get("seconds")}
                found.append({**vars(wanted), "seed": seed, **cost, "losses": packed(part.mean() for part in curve)})
    return found


def early_share(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Estimate the share of the decrease in loss in the first quarter of the steps, as a mean over students.

    The bootstrap draws students, then points around start, quarter and end, because a single point is noisy.
    """
    curves_KP = torch.tensor([unpacked(curve["losses"]) for curve in curves], dtype=torch.float64)
    middle = int(QUARTER * POINTS)
    places = slice(0, 2), slice(middle - MARGIN, middle), slice(-MARGIN, None)
    parts = [curves_KP[:, place] for place in places]
    weights_DK = resamples(len(curves_KP), seed=1) / len(curves_KP)
    drawn = []
    for index, part_KP in enumerate(parts):
        points_DP = resamples(part_KP.shape[1], seed=2 + index) / part_KP.shape[1]
        drawn.append(torch.einsum("dk,kp,dp->d", weights_DK, part_KP, points_DP))

    def share(start, quarter, end):
        return (start - quarter) / (start - end)

    return judged_interval(float(share(*(part.mean() for part in parts))), share(*drawn), EARLY)
