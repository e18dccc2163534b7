"""Batches of encoded prompts.

Shapes: B rows, L tokens, E width, P pooled width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch
from ..notes import each

POOLED = "pooled_output"


def encoded(clip, texts: Sequence[str]) -> Iterator[list]:
    """Yield the CONDITIONING of each text, as CLIPTextEncode does."""
    return (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in each("encoding prompt", texts))


class Prompts:
    """A list of encoded prompts, each with one entry of one row."""

    def __init__(self, conditionings: Iterable[list], what: str, dtype: torch.dtype | None = None):
        """Split CONDITIONING lists into one prompt per entry and row.

        Args:
            conditionings: from CLIPTextEncode.
            what: name of a prompt in messages.
            dtype: dtype to keep the tokens in, from `prompt_dtype`; None keeps theirs.
        Raises:
            InvalidConfig: no prompt.
        """
        self.entries: list[tuple[Tensor, dict]] = []
        for context_BLE, extras in (entry for conditioning in conditionings for entry in conditioning):
            for row in range(len(context_BLE)):
                # cloned, because autograd cannot save inference tensors
                own = {name: _of_row(value, row, len(context_BLE)) for name, value in extras.items()}
                self.entries.append((context_BLE[row : row + 1].to(dtype or context_BLE.dtype, copy=True), own))
        if not self.entries:
            raise InvalidConfig(f"there is no {what}; give one or more")
        self.kinds = [_kind(*entry) for entry in self.entries]
        of_kind: dict[Hashable, list[int]] = defaultdict(list)
        for number, kind in enumerate(self.kinds):
            of_kind[kind].append(number)
        self.groups = list(of_kind.values())
        """Indices of prompts of one kind, which can share a batch."""

    def __len__(self) -> int:
        return len(self.entries)

    def tokens(self, number: int) -> int:
        """Return the number of tokens of a prompt."""
        return self.entries[number][0].shape[1]

    def kind(self, number: int) -> Hashable:
        """Return what must be equal in prompts that share a batch, such as the number of tokens: see `_kind`."""
        return self.kinds[number]

    def pick(self, rows: int, generator: torch.Generator) -> list[int]:
        """Draw indices of prompts that can share a batch; all prompts are equally likely."""
        first = int(torch.randint(len(self), (), generator=generator))
        group = next(group for group in self.groups if first in group)
        rest = torch.randint(len(group), (rows - 1,), generator=generator).tolist()
        return [first, *(group[place] for place in rest)]

    def batch(self, numbers: Sequence[int]) -> list:
        """Return a CONDITIONING with one entry whose rows are these prompts.

        Raises:
            ShapeMismatch: the prompts are not of one kind.
        """
        if len({self.kinds[number] for number in numbers}) > 1:
            raise ShapeMismatch(
                f"the prompts {sorted(set(numbers))} differ in more than their words; use one at a time"
            )
        contexts, extras = torch.cat([self.entries[number][0] for number in numbers]), self.entries[numbers[0]][1]
        pooled = {} if extras.get(POOLED) is None else {POOLED: self.pooled(numbers)}
        return [[contexts, {**extras, **pooled}]]

    def pooled(self, numbers: Sequence[int]) -> Tensor:
        """Return the pooled vectors [B,P] of prompts, which must have some."""
        return torch.cat([self.entries[number][1][POOLED] for number in numbers])


def _of_row(value: Any, row: int, rows: int) -> Any:
    """Return the part of an additional value that belongs to one row of an encoded prompt."""
    if not isinstance(value, Tensor):
        return value
    return (value[row : row + 1] if value.ndim and len(value) == rows else value).clone()


def _kind(context_1LE: Tensor, extras: dict) -> Hashable:
    """Return what must be equal in prompts that share a batch: all but the values of tokens and pooled vector.

    Padding to a common length would change the prediction. Of everything else, such as SDXL's sizes or an attention
    mask, the host takes the first row for all, or the sum over rows.
    """
    others = sorted((str(name), name) for name in extras if name != POOLED)
    pooled = extras.get(POOLED)
    return (
        _shape(context_1LE),
        pooled is not None and _shape(pooled),
        tuple((text, _value(extras[name])) for text, name in others),
    )


def _shape(tensor: Tensor) -> Hashable:
    return "shape", tuple(tensor.shape), str(tensor.dtype)


def _value(value: Any) -> Hashable:
    """Return a key that is equal for equal numbers, texts, tensors and containers of them, else for one object only."""
    if isinstance(value, Tensor):
        return _shape(value), value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return tuple((str(key), _value(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_value, value))
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, value
    return type(value).__name__, id(value)
