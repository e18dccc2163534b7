"""Calibration of a student: which w it needs to guide as strongly as its teacher does at the w that a user sets.

Numbers: K values of w that were measured, J values of w that the student was tried at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

IMAGES_PER_W = 8
"""Default number of images that are compared per w."""
ROUNDING = 1e-6
"""What a number from a file or a widget may be off at the ends of a range."""
INSIDE = 0.95
CLOSE = 0.02
"""Share of the teacher's effective guidance by which a student may fall short and still count as reaching it."""


@dataclass(frozen=True)
class Calibration:
    """A curve with K points; between them everything is linear.

    Attributes:
        wanted: the w that a user sets, increasing. Its ends are the range in which the student reaches its teacher.
        inner: the w that the student gets instead, which does not decrease.
        teacher: effective guidance of the teacher at `wanted`.
        before, after: effective guidance of the student at the w `wanted`, and at the w `inner`.
    """

    wanted: list[float]
    inner: list[float]
    teacher: list[float]
    before: list[float]
    after: list[float]

    def __post_init__(self):
        columns = list(vars(self).values())
        finite = all(bool(torch.tensor(column, dtype=torch.float64).isfinite().all()) for column in columns)
        if len(self.wanted) < 2 or len({len(column) for column in columns}) > 1 or not finite:
            raise ValueError(f"columns of {[len(column) for column in columns]} numbers, all finite: {finite}")
        if any(a >= b for a, b in pairwise(self.wanted)) or any(a > b for a, b in pairwise(self.inner)):
            raise ValueError("wanted or inner decreases")

    def inner_of(self, w_B: Tensor) -> Tensor:
        """Return the w that the student gets, [B], for those that a user sets, which must be in the range."""
        return torch.tensor([_at(self.wanted, self.inner, w) for w in w_B.tolist()], dtype=w_B.dtype)

    def effective(self, w: float) -> float:
        """Return the effective guidance of the teacher, and so of the calibrated student, at the w that a user sets."""
        return _at(self.wanted, self.teacher, w)

    def typed(self) -> str:
        """Return its range in the decimals of a widget, with both ends inside."""
        return typed(self.wanted[0], self.wanted[-1])

    def json(self) -> str:
        """Return the curve as text for the metadata of a file."""
        return json.dumps({name: [round(value, 5) for value in column] for name, column in asdict(self).items()})

    @classmethod
    def of(cls, text: str) -> Calibration | None:
        """Read what `json` returned; an empty text is no calibration.

        Raises:
            ValueError: the text is something else.
        """
        if not text:
            return None
        try:
            return cls(**{name: [float(value) for value in column] for name, column in json.loads(text).items()})
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Measured:
    """Effective guidance on the states of the teacher at one w.

    Attributes:
        w: guidance of the teacher.
        teacher: its effective guidance.
        tried: J values of w that the student was tried at, increasing, among them `w`.
        student: effective guidance of the student at these.
    """

    w: float
    teacher: float
    tried: Sequence[float]
    student: Sequence[float]

    @property
    def spare(self) -> float:
        """How far the student can guide beyond its teacher, in either direction; below 0 it does not reach it."""
        if not all(map(math.isfinite, (self.teacher, *self.student))):
            return -1.0
        close = CLOSE * abs(self.teacher)
        return min(max(self.student) - self.teacher, self.teacher - min(self.student)) + close

    def inner(self) -> float:
        """Return the w that the student needs, or the nearest one."""
        return _at(list(accumulate(self.student, max)), self.tried, self.teacher)

    def before(self) -> float:
        """Return the effective guidance of the student at `w` itself."""
        return _at(self.tried, self.student, self.w)


def typed(low: float, high: float) -> str:
    """Return the ends of a range in the decimals of a widget, both inside of it."""
    return f"{math.ceil(100 * low - ROUNDING) / 100:g} to {math.floor(100 * high + ROUNDING) / 100:g}"


def ends_between(points: Sequence[Measured]) -> list[float]:
    """Return the w where the student begins and ceases to reach its teacher, if that is between two points.

    Each is moved a little to where the student reaches it, so that a measurement there does as well.
    """
    found = []
    for pair in pairwise(points):
        outside, inside = sorted(pair, key=lambda point: point.spare)
        if outside.spare < 0 <= inside.spare:
            share = inside.spare / (inside.spare - outside.spare)
            found.append(inside.w + INSIDE * share * (outside.w - inside.w))
    return found


def calibrated(points: Sequence[Measured], measure: Callable[[Measured, float], float]) -> Calibration | None:
    """Choose the w that the student needs, from what it gives at some w.

    Args:
        points: K measurements, by increasing w.
        measure: (point, w) -> effective guidance of the student on the states of the point, to check the result.
    Returns:
        The curve over the w at which the student reaches its teacher, or None if these are fewer than two.
    """
    inside = _longest_run([number for number, point in enumerate(points) if point.spare >= 0])
    if len(inside) < 2:
        return None
    reached = [points[number] for number in inside]
    inner = list(accumulate((point.inner() for point in reached), max))
    return Calibration(
        [point.w for point in reached], inner, [point.teacher for point in reached],
        [point.before() for point in reached], [measure(*pair) for pair in zip(reached, inner, strict=True)],
    )  # fmt: skip


def _longest_run(numbers: Sequence[int]) -> list[int]:
    """Return the longest run of consecutive numbers."""
    runs: list[list[int]] = [[]]
    for number in numbers:
        runs = [*runs[:-1], [*runs[-1], number]] if runs[-1][-1:] == [number - 1] else [*runs, [number]]
    return max(runs, key=len)


def _at(x: Sequence[float], y: Sequence[float], place: float) -> float:
    """Interpolate y over x, which does not decrease; places outside of x get the value of its end."""
    for (left, low), (right, high) in pairwise(zip(x, y, strict=True)):
        if place <= right:
            return low if place <= left else low + (high - low) * (place - left) / (right - left)
    return y[-1]
