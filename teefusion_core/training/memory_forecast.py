"""Forecast the memory of a computation from two small trials.

The bytes of the live tensors after the n-th operation are linear in the rows of a batch, as long as the operations are
the same. Trials with two and with three rows therefore give the bytes for any number of rows, operation by operation. A
trial with one row would mislead, because an axis of length 1 is expanded without a copy.
Not counted: scratch memory inside a kernel, and what the device's allocator rounds up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TRIAL_ROWS = (2, 3)


class LiveMemory(TorchDispatchMode):
    """Bytes of the live tensors that were made inside the block, after each operation in it."""

    def __init__(self) -> None:
        """Start with no tensors."""
        super().__init__()
        self.bytes: list[int] = []
        self._live = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """Run an operation, then record the live bytes."""
        for storage in _storages((args, kwargs)):
            self._track(storage, 0)  # made before the block, or known already
        with torch._C.DisableTorchFunctionSubclass():  # as without this mode; loaders bring classes of their own
            out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self._track(storage, storage.nbytes())
        self.bytes.append(self._live)
        return out

    def _track(self, storage: UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return

        def freed(_: weakref.ref) -> None:
            del self._known[key]
            self._live -= size

        self._known[key] = weakref.ref(storage, freed)
        self._live += size


@dataclass(frozen=True)
class Forecast:
    """Peak bytes of a computation, by the number of rows of its batch.

    Attributes:
        two, three: live bytes after each operation, with two and with three rows.
        constant: bytes that are allocated all the time.
    """

    two: list[int]
    three: list[int]
    constant: int = 0

    def peak(self, rows: int) -> int:
        """Return the largest number of bytes at once."""
        more = rows - TRIAL_ROWS[0]
        if len(self.two) != len(self.three):  # an operation was split, so they cannot be compared one by one
            two, three = max(self.two, default=0), max(self.three, default=0)
            return self.constant + two + more * max(three - two, 0)
        moments = zip(self.two, self.three, strict=True)
        return self.constant + max((two + more * (three - two) for two, three in moments), default=0)

    def most_rows(self, available: int, limit: int) -> int:
        """Return the most rows, up to a limit, whose peak fits into the available bytes; 0 if not even one row fits."""
        fitting, too_many = 0, limit + 1
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            fitting, too_many = (middle, too_many) if self.peak(middle) <= available else (fitting, middle)
        return fitting


def forecast(trial: Callable[[int], object], constant: int = 0) -> Forecast:
    """Run a computation with two rows and with three, and return the forecast.

    Args:
        trial: runs the computation with a number of rows; its result is dropped.
        constant: bytes that were allocated before and stay.
    """
    two, three = (_traced(trial, rows) for rows in TRIAL_ROWS)
    return Forecast(two, three, constant)


def _traced(trial: Callable[[int], object], rows: int) -> list[int]:
    with LiveMemory() as memory:
        trial(rows)
    return memory.bytes


def _storages(values: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
