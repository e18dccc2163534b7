"""How several processes share the training of one module.

Sources: DistributedDataParallel, arXiv 2006.15704; fully sharded training, arXiv 2304.11277; both from torch.
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
    """A loss as a module, so that DDP and FSDP see the forward pass that uses the trained weights."""

    def __init__(self, trained: nn.Module, loss: Callable[[Any], Tensor]):
        """Bind a loss to the module whose weights it uses."""
        super().__init__()
        self.trained, self.loss = trained, loss

    def forward(self, example: Any) -> Tensor:
        """Return the loss of an example."""
        return self.loss(example)


@dataclass(frozen=True)
class Strategy:
    """How processes share the training.

    Attributes:
        wrap: wraps an objective on a device type so that its gradients are averaged over the processes.
        passes: context of a forward and a backward pass; the flag states whether gradients are averaged at its end.
    """

    wrap: Callable[[Objective, str], nn.Module]
    passes: Callable[[Any, bool], AbstractContextManager[None]]


def _sharded(objective: Objective, device_type: str) -> Any:
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise InvalidConfig(f"parallel is {FSDP!r} on torch {torch.__version__}; use torch>=2.6 or {DDP!r}") from None
    return fully_shard(objective, mesh=init_device_mesh(device_type, (dist.get_world_size(),)))


def _passes_sharded(objective: Any, synchronise: bool) -> AbstractContextManager[None]:
    objective.set_requires_gradient_sync(synchronise)
    return nullcontext()


ALONE = Strategy(lambda objective, _: objective, lambda objective, synchronise: nullcontext())
PARALLEL: dict[str, Strategy] = {
    DDP: Strategy(
        lambda objective, _: nn.parallel.DistributedDataParallel(objective),
        lambda objective, synchronise: nullcontext() if synchronise else objective.no_sync(),
    ),
    FSDP: Strategy(_sharded, _passes_sharded),
}
"""Value of `parallel` -> strategy; a single process uses ALONE.

ddp: each process has all trained weights, and each of them must contribute to the loss. fsdp: each process has a shard
of the trained weights, gradients, moments and moving average, as DTensors; the weights are full from a forward pass to
the end of its backward pass. Frozen weights are full in every process in both cases.
"""


@torch.no_grad()
def unsharded(tensor: Any) -> Tensor:
    """Return the full tensor; every process must call this for the same tensors in the same order."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor


def gathered(tree: Any, kept: bool) -> Any:
    """Return nested dicts with full tensors in place of shards: on the CPU if `kept`, otherwise empty."""
    if isinstance(tree, dict):
        return {key: gathered(value, kept) for key, value in tree.items()}
    if not _is_shard(tree):
        return tree
    tensor = unsharded(tree)  # one at a time, so that no process holds all of them on its device
    return tensor.cpu() if kept else tensor.new_empty(0)


def shard_like(ours: Any, tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor that is full in all processes, with the layout of `ours`."""
    if not _is_shard(ours):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(ours.device), ours.device_mesh, ours.placements, src_data_rank=None)


def unshard_parameters(module: nn.Module) -> None:
    """Replace sharded parameters by full ones; every process must call this."""
    for part in module.modules():
        for name, shard in list(part.named_parameters(recurse=False)):
            if _is_shard(shard):
                setattr(part, name, nn.Parameter(unsharded(shard), shard.requires_grad))


def _is_shard(tensor: Any) -> bool:
    # checked by attribute, so that a single process does not have to import DTensor
    return hasattr(tensor, "full_tensor")
