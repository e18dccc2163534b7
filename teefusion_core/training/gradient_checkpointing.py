"""Recompute the activations of a network's blocks in the backward pass instead of storing them.

Source: arXiv 1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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


_Context = Callable[[], AbstractContextManager[None]]
_entered: list[_Context] = []


@contextmanager
def also_recomputed(context: _Context) -> Iterator[None]:
    """Enter a context inside the `with` block, and again whenever the blocks that ran in it are recomputed.

    The backward pass comes after the `with` block, when another context may be entered or none.
    """
    _entered.append(context)
    try:
        with context():
            yield
    finally:
        _entered.pop()


@contextmanager
def _all_of(contexts: list[_Context]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield


def _forward_and_recomputed() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _all_of(list(_entered))


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Store only the inputs of each network block, for forward and backward passes inside the `with` block."""
    with ExitStack() as stack:
        for block in blocks(network):
            stored = partial(checkpoint, block.forward, use_reentrant=False, context_fn=_forward_and_recomputed)
            stack.enter_context(replaced(block, stored))
        yield
