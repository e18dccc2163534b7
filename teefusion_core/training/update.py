"""Trainable weights that change a network while they are applied to it.

They can be disabled for the teacher, so that one copy of the base serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..errors import CheckpointMismatch
from ..files.tensor_file import first_shape_mismatch


class Update(nn.Module):
    """Trainable parameters that change a network while they hang on it.

    Attributes:
        mode: what a student file holds of it, e.g. LORA or DIFF.
        embedder: layers that a method of guidance adds, trained along.
    """

    mode: str
    embedder: nn.Module | None

    def __init__(self, network: nn.Module):
        """Bind to a network, which is not changed."""
        super().__init__()
        self._network = [network]  # in a list, or its weights would count as ours
        self._applied: ExitStack | None = None
        self.embedder = None

    @property
    def network(self) -> nn.Module:
        """What the update hangs on."""
        return self._network[0]

    def applied(self) -> AbstractContextManager[None]:
        """Change what the network computes, differentiably, inside the block."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a student file, float16 on the CPU; the embedder's are not among them."""
        raise NotImplementedError

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Go through the parameters of the network that are other with the update: name, new value in float32."""
        raise NotImplementedError

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Return all weights of the network with the update in them, on the CPU, in a dtype that holds it."""
        weights = {name: weight.detach().cpu() for name, weight in self.network.state_dict().items()}
        for name, value in self.changed():
            dtype = weights[name].dtype
            # 8 bits would round the update away
            weights[name] = value.to("cpu", dtype if dtype.itemsize > 1 else torch.bfloat16)
        return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            CheckpointMismatch: tensors of another network, rank or choice of layers; nothing is changed.
        """
        raise NotImplementedError

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Wear the update inside the block, save where it is `disabled`."""
        with ExitStack() as self._applied:
            self._applied.enter_context(self.applied())
            yield
        self._applied = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Have the base alone inside the block, then wear the update again."""
        if self._applied is None:
            yield
            return
        self._applied.close()
        try:
            yield
        finally:
            self._applied.enter_context(self.applied())


@contextmanager
def exchanged(update: Update, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Have other values, such as a moving average, in an update's parameters inside the block."""
    own = {name: parameter.detach().clone() for name, parameter in update.named_parameters()}
    _copy_(update, values)
    try:
        yield
    finally:
        _copy_(update, own)


@torch.no_grad()
def _copy_(update: Update, values: Mapping[str, Tensor]) -> None:
    for name, parameter in update.named_parameters():
        parameter.copy_(values[name])


def take_over(ours: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of a file into our parameters.

    Raises:
        CheckpointMismatch: other names or shapes; nothing is changed.
    """
    if different := first_shape_mismatch(ours, tensors):
        name, here, there = different
        raise CheckpointMismatch(
            f"{name} is {there or 'missing'} in the file, {here or 'not trained'} here; choose a file of the same "
            "base, rank and trained layers"
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(tensors[name])
