"""Batches of encoded prompts.

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
    """Return the CONDITIONING of each text, as CLIPTextEncode does."""
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]


class Prompts:
    """A list of encoded prompts, each with one entry of one row."""

    def __init__(self, conditionings: Sequence[list], what: str):
        """Split CONDITIONING lists into one prompt per entry and row.

        Args:
            conditionings: from CLIPTextEncode.
            what: name of a prompt in messages.
        Raises:
            InvalidConfig: no prompt, or a prompt without a pooled vector.
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
                # cloned, because autograd cannot save inference tensors
                pooled = pooled_BP[one].clone()
                self.entries.append((context_BLE[row : row + 1].clone(), {**extras, POOLED: pooled}))
        if not self.entries:
            raise InvalidConfig(f"there is no {what}; give one or more")
        by_length: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self)):
            by_length[self.tokens(number)].append(number)
        self.groups = list(by_length.values())
        """Indices of prompts of equal length, which can share a batch: padding would change the prediction."""

    def __len__(self) -> int:
        return len(self.entries)

    def tokens(self, number: int) -> int:
        """Return the number of tokens of a prompt."""
        return self.entries[number][0].shape[1]

    def pick(self, rows: int, generator: torch.Generator) -> list[int]:
        """Draw indices of prompts that can share a batch; all prompts are equally likely."""
        first = int(torch.randint(len(self), (), generator=generator))
        group = next(group for group in self.groups if first in group)
        rest = torch.randint(len(group), (rows - 1,), generator=generator).tolist()
        return [first, *(group[place] for place in rest)]

    def batch(self, numbers: Sequence[int]) -> list:
        """Return a CONDITIONING with one entry whose rows are these prompts; all must be of one group."""
        parts = [self.entries[number] for number in numbers]
        extras = {**parts[0][1], POOLED: self.pooled(numbers)}
        return [[torch.cat([context_1LE for context_1LE, _ in parts]), extras]]

    def pooled(self, numbers: Sequence[int]) -> Tensor:
        """Return the pooled vectors [B,P] of prompts."""
        return torch.cat([self.entries[number][1][POOLED] for number in numbers])
