"""Trainable weights that change a network while they are applied to it.

They can be disabled for the teacher, so that one copy of the base serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..errors import CheckpointMismatch, InvalidConfig
from ..files.tensor_file import first_shape_mismatch


class Update(nn.Module):
    """Trainable parameters that change a network while they are applied to it.

    Attributes:
        mode: kind of the tensors in a student file, e.g. LORA or DIFF.
        embedder: additional layers of the guidance method, which are trained too.
    """

    mode: str
    embedder: nn.Module | None

    def __init__(self, network: nn.Module):
        """Bind to a network, which is not changed."""
        super().__init__()
        self._network = [network]  # in a list, so that its weights are not registered as ours
        self._applied: ExitStack | None = None
        self.embedder = None

    @property
    def network(self) -> nn.Module:
        """The network that the update changes."""
        return self._network[0]

    def applied(self) -> AbstractContextManager[None]:
        """Apply the update to the network inside the block, differentiably."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the file, on the CPU, without those of the embedder."""
        raise NotImplementedError

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter of the network that the update changes: its name and its new value in float32."""
        raise NotImplementedError

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Return all weights of the network with the update merged, on the CPU, in a dtype that preserves it."""
        weights = {name: weight.detach().cpu() for name, weight in self.network.state_dict().items()}
        for name, value in self.changed():
            dtype = weights[name].dtype
            # 8 bits would round the update away
            weights[name] = value.to("cpu", dtype if dtype.itemsize > 1 else torch.bfloat16)
        return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that `state` returned.

        Raises:
            CheckpointMismatch: the network, rank or choice of layers differs; nothing is changed.
        """
        raise NotImplementedError

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Apply the update inside the block, except where it is `disabled`."""
        with ExitStack() as self._applied:
            self._applied.enter_context(self.applied())
            yield
        self._applied = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disable the update inside the block, then apply it again."""
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
    """Replace the parameters of an update by other values, such as a moving average, inside the block."""
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


def is_plain(weight: Tensor) -> bool:
    """Return whether a weight is an ordinary tensor, not one that a loader keeps in a class or coding of its own."""
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()


def check_plain(network: nn.Module, names: Iterable[str], purpose: str) -> None:
    """Refuse quantised parameters for something that needs their values.

    Raises:
        InvalidConfig: a parameter is quantised.
    """
    for name in names:
        weight = network.get_parameter(name)
        if not is_plain(weight):
            raise InvalidConfig(
                f"{purpose} is not possible with quantised weights ({name} is a {type(weight).__name__}); load the "
                "model in float16, bfloat16 or float32, or train a LoRA (trainable: lora, or lora on modulation)"
            )


def copy_into(ours: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a file into our parameters.

    Raises:
        CheckpointMismatch: names or shapes differ; nothing is changed.
    """
    if different := first_shape_mismatch(ours, tensors):
        name, here, there = different
        raise CheckpointMismatch(
            f"{name} is {there or 'missing'} in the file, but {here or 'not trained'} here; choose a file of the "
            "same base, rank and trained layers"
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(tensors[name])
