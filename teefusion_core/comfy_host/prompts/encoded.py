"""Encoded prompts by number, batched for teacher with student.

Shapes: B rows, L tokens, E width, P pooled width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InvalidConfig

POOLED = "pooled_output"


def encoded(clip, texts: Sequence[str]) -> list[list]:
    """CONDITIONING of each text, as CLIPTextEncode makes it."""
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]


class Prompts:
    """A list of encoded prompts, each of one entry with one row."""

    def __init__(self, conditionings: Sequence[list], what: str):
        """Take CONDITIONING lists; entries and rows of them become prompts of their own.

        Args:
            conditionings: as CLIPTextEncode makes them.
            what: their name in messages.
        Raises:
            InvalidConfig: none at all, or one without a pooled vector.
        """
        self.entries: list[tuple[Tensor, dict]] = []
        for context_BLE, extras in (entry for conditioning in conditionings for entry in conditioning):
            pooled_BP = extras.get(POOLED)
            if pooled_BP is None:
                raise InvalidConfig(
                    f"{what} {len(self.entries) + 1} has no {POOLED}; encode it with the text encoders of the model"
                )
            for row in range(len(context_BLE)):
                one = slice(row, row + 1) if len(pooled_BP) > 1 else slice(0, 1)
                # cloned out of inference mode, or autograd could not keep it
                pooled = pooled_BP[one].clone()
                self.entries.append((context_BLE[row : row + 1].clone(), {**extras, POOLED: pooled}))
        if not self.entries:
            raise InvalidConfig(f"there is no {what}; give one or more")
        by_length: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self)):
            by_length[self.tokens(number)].append(number)
        self.groups = list(by_length.values())
        """Numbers of prompts that can share a batch: networks that read tokens jointly take no padding."""

    def __len__(self) -> int:
        return len(self.entries)

    def tokens(self, number: int) -> int:
        """How long a prompt is."""
        return self.entries[number][0].shape[1]

    def pick(self, rows: int, generator: torch.Generator) -> list[int]:
        """Numbers of prompts that can share a batch; every prompt is as likely as any other."""
        first = int(torch.randint(len(self), (), generator=generator))
        group = next(group for group in self.groups if first in group)
        rest = torch.randint(len(group), (rows - 1,), generator=generator).tolist()
        return [first, *(group[place] for place in rest)]

    def batch(self, numbers: Sequence[int]) -> list:
        """One CONDITIONING entry whose rows are these prompts, all of one group."""
        parts = [self.entries[number] for number in numbers]
        extras = {**parts[0][1], POOLED: self.pooled(numbers)}
        return [[torch.cat([context_1LE for context_1LE, _ in parts]), extras]]

    def pooled(self, numbers: Sequence[int]) -> Tensor:
        """Pooled vectors [B,P]."""
        return torch.cat([self.entries[number][1][POOLED] for number in numbers])
