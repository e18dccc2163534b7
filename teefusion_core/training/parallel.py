"""How several processes share the training of one module.

Sources: DistributedDataParallel, arXiv 2006.15704; fully sharded training, arXiv 2304.11277; both as torch has them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InvalidConfig

DDP, FSDP = "ddp", "fsdp"


class Objective(nn.Module):
    """A loss as a module, so that whoever wraps it knows when the trained weights are used."""

    def __init__(self, trained: nn.Module, loss: Callable[[Any], Tensor]):
        """Bind a loss to the module whose weights it reads."""
        super().__init__()
        self.trained, self.loss = trained, loss

    def forward(self, example: Any) -> Tensor:
        """Return the loss of an example."""
        return self.loss(example)


@dataclass(frozen=True)
class Way:
    """How processes share.

    Attributes:
        wrap: make gradients of an objective those of the mean over the processes, for weights on a device of a type.
        passing: block of a forward with its backward pass, by whether gradients travel at its end.
    """

    wrap: Callable[[Objective, str], nn.Module]
    passing: Callable[[Any, bool], AbstractContextManager[None]]


def _sharded(objective: Objective, device_type: str) -> Any:
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise InvalidConfig(f"parallel is {FSDP!r} on torch {torch.__version__}; use torch 2.6, or {DDP!r}") from None
    return fully_shard(objective, mesh=init_device_mesh(device_type, (dist.get_world_size(),)))


def _passing_sharded(objective: Any, travels: bool) -> AbstractContextManager[None]:
    objective.set_requires_gradient_sync(travels)
    return nullcontext()


ALONE = Way(lambda objective, _: objective, lambda objective, travels: nullcontext())
PARALLEL: dict[str, Way] = {
    DDP: Way(
        lambda objective, _: nn.parallel.DistributedDataParallel(objective),
        lambda objective, travels: nullcontext() if travels else objective.no_sync(),
    ),
    FSDP: Way(_sharded, _passing_sharded),
}
"""Name -> how processes share; a single one is ALONE.

ddp: each holds all that is trained; every trained weight must have a part in the loss. fsdp: each holds a share of the
trained weights, their gradients, moments, moving average, as DTensors; the weights are whole from a forward pass to
the end of its backward pass. What is frozen is whole in each either way.
"""


@torch.no_grad()
def whole(tensor: Any) -> Tensor:
    """All of a tensor; every process must ask for the same ones in the same order."""
    return tensor.full_tensor() if _is_share(tensor) else tensor


def gathered(tree: Any, kept: bool) -> Any:
    """A nest of dicts with whole tensors in place of shares; on the CPU where they are kept, else empty."""
    if isinstance(tree, dict):
        return {key: gathered(value, kept) for key, value in tree.items()}
    if not _is_share(tree):
        return tree
    tensor = whole(tree)  # one at a time, so that no process holds all of them on its device
    return tensor.cpu() if kept else tensor.new_empty(0)


def share_like(ours: Any, tensor: Tensor) -> Tensor:
    """This process's share of a whole tensor that all have, laid out as ours is."""
    if not _is_share(ours):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(ours.device), ours.device_mesh, ours.placements, src_data_rank=None)


def make_whole(module: nn.Module) -> None:
    """Put whole parameters in place of shares; every process must."""
    for part in module.modules():
        for name, share in list(part.named_parameters(recurse=False)):
            if _is_share(share):
                setattr(part, name, nn.Parameter(whole(share), share.requires_grad))


def _is_share(tensor: Any) -> bool:
    # asked like this, a single process does not wait for the import of DTensor
    return hasattr(tensor, "full_tensor")
