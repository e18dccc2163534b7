"""The processes that train one model together, often a single one.

Over a single process every operation is the identity, so that callers have one path for one or many.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """This process among its peers, as torch.distributed knows them.

    A wrapper that averages gradients on its own (DDP, FSDP2) comes with a subclass whose `average_gradients_` leaves
    them alone.

    Attributes:
        rank: number of this process; 0 writes what all share, reports to the user.
        size: how many there are.
    """

    def __init__(self) -> None:
        """Look around; torch.distributed must be initialised before, where there are several."""
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        # NCCL moves nothing that is not on a GPU
        self.device = torch.device("cuda" if together and dist.get_backend() == "nccl" else "cpu")

    @property
    def first(self) -> bool:
        """Whether this process writes what all share."""
        return self.rank == 0

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; all give the same shapes in the same order."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.size)

    def average_gradients_(self, gradients: Iterable[Tensor]) -> None:
        """Make each gradient that of the mean loss over the processes."""
        self.average_(gradients)

    def spread_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Whether one process or more says yes; every process gets the same answer."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes)
        return votes.item() > 0
