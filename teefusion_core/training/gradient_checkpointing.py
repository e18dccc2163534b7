"""Recompute the activations of a network's blocks in the backward pass instead of storing them.

Source: arXiv 1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the layers in the outermost module lists of a network, which are its repeated blocks.

    Of a sequence in such a list, as in UNets, they are its members, because the host calls these one by one.
    """
    found: list[nn.Module] = []
    for child in network.children():
        if not isinstance(child, nn.ModuleList):
            found += blocks(child)
            continue
        for block in child:
            found += list(block) if isinstance(block, nn.Sequential) else [block]
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


def _stored(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a block and store its inputs only; dictionaries are copied, because the network changes them later."""
    args = tuple(dict(value) if isinstance(value, dict) else value for value in args)
    kwargs = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
    return checkpoint(forward, *args, use_reentrant=False, context_fn=_forward_and_recomputed, **kwargs)


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Store only the inputs of each network block, for forward and backward passes inside the `with` block."""
    with ExitStack() as stack:
        for block in blocks(network):
            stack.enter_context(replaced(block, partial(_stored, block.forward)))
        yield
