"""How much memory a computation will take, foretold from two small trials.

What live tensors hold after the n-th operation is a straight line in the rows of a batch, as long as the operations are
the same. So two rows with three tell, operation by operation, what any number of rows will hold; a single row would not
do, since an axis of length 1 is expanded instead of worked through.
Not counted: scratch memory inside a kernel, what the device's allocator rounds up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TRIAL_ROWS = (2, 3)


class Ledger(TorchDispatchMode):
    """Bytes that live tensors made inside the block hold, after each operation in it."""

    def __init__(self) -> None:
        """Begin at nothing."""
        super().__init__()
        self.bytes: list[int] = []
        self._live = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """Run an operation, then note what is alive."""
        for storage in _storages((args, kwargs)):
            self._meet(storage, 0)  # from before the block, or known already
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self._meet(storage, storage.nbytes())
        self.bytes.append(self._live)
        return out

    def _meet(self, storage: UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: weakref.ref) -> None:
            del self._known[key]
            self._live -= size

        self._known[key] = weakref.ref(storage, gone)
        self._live += size


@dataclass(frozen=True)
class Forecast:
    """Bytes that a computation holds at its peak, by the rows of its batch.

    Attributes:
        two, three: live bytes after each operation, with two rows, with three.
        constant: bytes that are there all the time.
    """

    two: list[int]
    three: list[int]
    constant: int = 0

    def peak(self, rows: int) -> int:
        """Most bytes at once."""
        more = rows - TRIAL_ROWS[0]
        if len(self.two) != len(self.three):  # some operation was split: no line through both
            two, three = max(self.two, default=0), max(self.three, default=0)
            return self.constant + two + more * max(three - two, 0)
        moments = zip(self.two, self.three, strict=True)
        return self.constant + max((two + more * (three - two) for two, three in moments), default=0)

    def most_rows(self, available: int, limit: int) -> int:
        """Most rows, up to a limit, whose peak is within what is available; 0 if not even one is."""
        fitting, too_many = 0, limit + 1
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            fitting, too_many = (middle, too_many) if self.peak(middle) <= available else (fitting, middle)
        return fitting


def foretold(trial: Callable[[int], object], constant: int = 0) -> Forecast:
    """Try a computation with two rows, then with three.

    Args:
        trial: runs it with so many rows; what it returns is dropped.
        constant: bytes that are there all the time, made before.
    """
    two, three = (_noted(trial, rows) for rows in TRIAL_ROWS)
    return Forecast(two, three, constant)


def _noted(trial: Callable[[int], object], rows: int) -> list[int]:
    with Ledger() as ledger:
        trial(rows)
    return ledger.bytes


def _storages(values: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
