"""A term added to what one module of a network returns.

A module of another class stands in its place for the length of a block. A forward hook would do as well, were it not
for torch.compile: a network that was compiled without the hook keeps its graph, which does not look for one (measured
with torch 2.13), whereas another class in the place of a module has it compiled anew, once.

Shapes: B batch, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AddToOutput(nn.Module):
    """A module with a term on top of what it returns."""

    def __init__(self, inner: nn.Module, term_BD: Tensor):
        """Wrap a module that returns [B,D] or more rows; term [B,D]."""
        super().__init__()
        self.inner = inner
        self.term_BD = term_BD

    def __getattr__(self, name: str):
        """Answer for the inner module to whoever looks at its parts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args, **kwargs) -> Tensor:
        """Add the term to the first rows; packs such as NAG append rows of their own, which stay as they are."""
        out_BD = self.inner(*args, **kwargs)
        term_BD = self.term_BD.to(out_BD)
        rows = len(term_BD)
        if len(out_BD) == rows:
            return out_BD + term_BD
        return torch.cat((out_BD[:rows] + term_BD, out_BD[rows:]))


@contextmanager
def add_to_output(network: nn.Module, path: str, term_BD: Tensor) -> Iterator[None]:
    """Have the module at a path return its output with a term added, inside the block.

    Args:
        network: holds the module.
        path: dotted attributes from the network to the module.
        term_BD: [B,D].
    """
    above, _, name = path.rpartition(".")
    parent = network.get_submodule(above)
    inner = getattr(parent, name)
    setattr(parent, name, AddToOutput(inner, term_BD))
    try:
        yield
    finally:
        setattr(parent, name, inner)
