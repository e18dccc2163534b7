"""Temporary addition of a term to the output of one module.

The module is replaced by a wrapper for the length of a block. A forward hook would not work with torch.compile: a
network that was compiled without the hook keeps its graph and never calls it (measured with torch 2.13). A module of
another class makes torch.compile recompile once.

Shapes: B batch, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AddToOutput(nn.Module):
    """A module that adds a term to the output of another module."""

    def __init__(self, inner: nn.Module, term_BD: Tensor):
        """Wrap `inner`, which returns [B,D] or more rows; term_BD is [B,D]."""
        super().__init__()
        self.inner = inner
        self.term_BD = term_BD

    def __getattr__(self, name: str):
        """Return attributes of the inner module, so that code that looks for its layers finds them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args, **kwargs) -> Tensor:
        """Add the term to the first B rows only: packs such as NAG append rows, which must stay unchanged."""
        out_BD = self.inner(*args, **kwargs)
        term_BD = self.term_BD.to(out_BD)
        rows = len(term_BD)
        if len(out_BD) == rows:
            return out_BD + term_BD
        return torch.cat((out_BD[:rows] + term_BD, out_BD[rows:]))


@contextmanager
def add_to_output(network: nn.Module, path: str, term_BD: Tensor) -> Iterator[None]:
    """Add a term to the output of a module inside the block.

    Args:
        network: contains the module.
        path: dotted path of the module in the network.
        term_BD: [B,D]; cast to the dtype and device of the output.
    """
    above, _, name = path.rpartition(".")
    parent = network.get_submodule(above)
    inner = getattr(parent, name)
    setattr(parent, name, AddToOutput(inner, term_BD))
    try:
        yield
    finally:
        setattr(parent, name, inner)
