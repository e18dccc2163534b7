"""Guidance over the course of sampling: a curve between a low guidance and the guidance that the user sets.

    w(p) = low + s(p) * (w - low)

p is the position in sampling, 0 at the first step and 1 at the end; in a list, the middle of the step. s is the share
of the guidance. With low = 0, the CFG scale outside of an interval is 1, which is sampling without guidance.
Source of the interval: Kynkaanniemi et al., arXiv 2404.07724.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..errors import InvalidConfig

CONSTANT, INTERVAL, LIST = "constant", "interval", "list"
EDGE = 1e-3
"""Distance of two positions that counts as none: schedulers take the nearest of a thousand noise levels."""
FINEST = 1000
"""Number of parts in which a curve is searched for its smallest and largest share."""


@dataclass(frozen=True)
class GuidanceSchedule:
    """A curve of the share of the guidance.

    Attributes:
        shape: a name in SHAPES; of start, end and shares only those that it uses are checked.
        start, end: positions between which the guidance is on, or rises or falls.
        low: guidance w where the share is 0.
        shares: with the shape list, the shares of as many equal parts of sampling.
    """

    shape: str = CONSTANT
    start: float = 0.0
    end: float = 1.0
    low: float = 0.0
    shares: Sequence[float] = ()

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise InvalidConfig(f"the shape is {self.shape!r}; choose one of {', '.join(SHAPES)}")
        if self.shape not in (CONSTANT, LIST) and not 0 <= self.start < self.end <= 1:
            raise InvalidConfig(
                f"the schedule goes from {100 * self.start:g} to {100 * self.end:g} percent of sampling; give two "
                "numbers from 0 to 100, the smaller one first"
            )
        if not (math.isfinite(self.low) and self.low >= 0):
            raise InvalidConfig(f"the low guidance is {self.low:g}; give a finite number, 0 or more")
        if self.shape != LIST:
            return
        if not self.shares:
            raise InvalidConfig("the list is empty; write one share per step, such as 0, 1, 1, 0.5")
        if any(not (math.isfinite(share) and share >= 0) for share in self.shares):
            raise InvalidConfig(f"the list has {_shown(self.shares)}; give finite shares, 0 or more")

    def share(self, position: float) -> float:
        """Return the share of the guidance at a position from 0 to 1."""
        return SHAPES[self.shape](self, position)

    @property
    def by_steps(self) -> bool:
        """Whether positions are counted in the steps of a run: a list has a share for each."""
        return self.shape == LIST

    def at(self, w, position: float):
        """Return the guidance at a position, where the user has set w (number or tensor)."""
        return self.low + self.share(position) * (w - self.low)

    def extremes(self) -> tuple[float, float]:
        """Return a position with the smallest share, and one with the largest."""
        places = [step / FINEST for step in range(FINEST + 1)]
        return min(places, key=self.share), max(places, key=self.share)

    def described(self) -> str:
        """Return the curve in a few words."""
        if self.shape == CONSTANT:
            return "constant"
        if self.shape == LIST:
            return f"{_shown(self.shares)} times the guidance, low {self.low:g}"
        return f"{self.shape} from {100 * self.start:g} to {100 * self.end:g} %, low {self.low:g}"

    def json(self) -> str:
        """Return the schedule as text."""
        return json.dumps(asdict(self) | {"shares": list(self.shares)})

    @classmethod
    def of(cls, text: str) -> GuidanceSchedule:
        """Read what `json` returned."""
        return cls(**json.loads(text))


def shares_of(text: str) -> list[float]:
    """Read the shares of a list: numbers with commas, spaces or new lines between them.

    Raises:
        InvalidConfig: something is no number.
    """
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InvalidConfig(f"the list is {text!r}; write numbers with commas between them, such as 0, 1, 1") from error


def _progress(schedule: GuidanceSchedule, position: float) -> float:
    """Return how far the position is between start and end, from 0 to 1."""
    return min(max((position - schedule.start) / (schedule.end - schedule.start), 0.0), 1.0)


def _inside(schedule: GuidanceSchedule, position: float) -> float:
    """Return 1 from start to end; the end belongs to it only if it is the end of sampling."""
    before_end = position < schedule.end - EDGE or schedule.end >= 1
    return float(position >= schedule.start - EDGE and before_end)


def _listed(schedule: GuidanceSchedule, position: float) -> float:
    parts = len(schedule.shares)
    return schedule.shares[min(int(position * parts), parts - 1)]


def _cosine(progress: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2


SHAPES: dict[str, Callable[[GuidanceSchedule, float], float]] = {
    CONSTANT: lambda schedule, position: 1.0,
    INTERVAL: _inside,
    "linear up": lambda schedule, position: _progress(schedule, position),
    "linear down": lambda schedule, position: 1 - _progress(schedule, position),
    "cosine up": lambda schedule, position: _cosine(_progress(schedule, position)),
    "cosine down": lambda schedule, position: 1 - _cosine(_progress(schedule, position)),
    LIST: _listed,
}
"""Name -> (schedule, position) -> share of the guidance."""


def _shown(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:g}" for share in shares)
