"""Additions that a network makes in place, made out of place, for autograd to keep what was there before.

The host's Flux blocks write `img += ...` after a norm that needs the old `img` in the backward pass. Plain autograd
refuses that; under gradient checkpointing, which keeps no tensors of its own, the gradient would be silently wrong.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .gradient_checkpointing import blocks, exchanged


class _Added(TorchFunctionMode):
    """`a += b` binds a to a new tensor; torch shows it as `a.add_(b)`, which these blocks do not write out."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.add_:
            func = torch.Tensor.add
        return func(*args, **(kwargs or {}))


@contextmanager
def out_of_place(network: nn.Module) -> Iterator[None]:
    """Have every block of a network add out of place inside the block of code, in whichever thread it is run."""
    with ExitStack() as stack:
        for block in blocks(network):
            stack.enter_context(exchanged(block, _adding(block.forward)))
        yield


def _adding(forward):
    def added(*args, **kwargs):
        with _Added():
            return forward(*args, **kwargs)

    return added
