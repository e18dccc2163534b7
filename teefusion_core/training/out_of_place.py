"""Run the in-place additions of a network out of place, so that autograd keeps the old values.

ComfyUI's Flux blocks write `img += ...` after a norm that needs the old `img` in the backward pass. Plain autograd
raises an error; under gradient checkpointing, which stores no intermediate tensors, the gradient would be wrong.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .gradient_checkpointing import blocks, replaced


class _Added(TorchFunctionMode):
    """Run `a += b` as `a = a + b`; torch reports it as `a.add_(b)`, which these blocks never call directly."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.add_:
            func = torch.Tensor.add
        return func(*args, **(kwargs or {}))


@contextmanager
def out_of_place(network: nn.Module) -> Iterator[None]:
    """Make every block of a network add out of place inside the `with` block, in any thread."""
    with ExitStack() as stack:
        for block in blocks(network):
            stack.enter_context(replaced(block, _adding(block.forward)))
        yield


def _adding(forward):
    def added(*args, **kwargs):
        with _Added():
            return forward(*args, **kwargs)

    return added
