"""Recompute the activations of a network's blocks in the backward pass instead of storing them.

Source: arXiv 1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the layers in the outermost module lists of a network, which are its repeated blocks."""
    found: list[nn.Module] = []
    for child in network.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


@contextmanager
def replaced(block: nn.Module, forward: Callable) -> Iterator[None]:
    """Replace the forward of a network block inside the `with` block."""
    own = block.__dict__.get("forward")
    block.forward = forward
    try:
        yield
    finally:
        block.__dict__.pop("forward")
        if own is not None:
            block.forward = own


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Store only the inputs of each network block, for forward and backward passes inside the `with` block."""
    with ExitStack() as stack:
        for block in blocks(network):
            stack.enter_context(replaced(block, partial(checkpoint, block.forward, use_reentrant=False)))
        yield
