"""Low-rank update of one layer that leaves its weight unchanged.

Shapes: O output width, I input width, R rank; `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..guidance.flow import per_row


@dataclass
class LowRank:
    """An update up @ down of one layer's weight: up [O,R], down [R,I] or [R,I,k,k]."""

    layer: nn.Module
    up_OR: Tensor
    down_RI: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the factors to the compute device and dtype of the layer."""
        self.up_OR, self.down_RI = (t.to(device, dtype) for t in (self.up_OR, self.down_RI))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Apply the update to the output of the layer inside the block."""
        handle = self.layer.register_forward_hook(lambda _, inputs, out: self.added(out, inputs[0]))
        try:
            yield
        finally:
            handle.remove()

    def added(self, out: Tensor, x: Tensor, strength_B: Tensor | None = None) -> Tensor:
        """Return the output of the updated layer for x, given the output `out` of the layer without the update.

        Args:
            strength_B: factor on the update for each row of x; for linear layers only.
        """
        return out + self._of(x, strength_B).to(out.dtype)

    def _of(self, x: Tensor, strength_B: Tensor | None) -> Tensor:
        up_OR, down_RI = (t.to(x) for t in (self.up_OR, self.down_RI))
        if down_RI.ndim == 2:
            low = nn.functional.linear(x, down_RI)
            if strength_B is not None:  # in float32, because half precision would round the strength
                low = (low * per_row(strength_B.to(low.device), low)).to(low.dtype)
            return nn.functional.linear(low, up_OR)
        conv, layer = getattr(nn.functional, f"conv{down_RI.ndim - 2}d"), self.layer
        low = conv(x, down_RI, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
        return conv(low, up_OR.reshape(*up_OR.shape, *([1] * (down_RI.ndim - 2))))
