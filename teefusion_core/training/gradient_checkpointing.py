"""Activations of a network's blocks made again in the backward pass, instead of being kept.

Source: arXiv 1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(network: nn.Module) -> list[nn.Module]:
    """The layers of the outermost lists of a network: what it repeats."""
    found: list[nn.Module] = []
    for child in network.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


@contextmanager
def exchanged(block: nn.Module, forward: Callable) -> Iterator[None]:
    """Give a block another forward inside the block of code, then the one that it had."""
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
    """Keep only what enters each block, for forward and backward passes inside the block of code."""
    with ExitStack() as stack:
        for block in blocks(network):
            stack.enter_context(exchanged(block, partial(checkpoint, block.forward, use_reentrant=False)))
        yield
