"""The processes that train one model together, often a single one.

Over a single process every operation is the identity, so that callers have one path for one or many.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InvalidConfig, ProcessFailed
from .parallel import ALONE, DDP, PARALLEL


def together() -> bool:
    """Whether this process has peers."""
    return dist.is_available() and dist.is_initialized()


class Processes:
    """This process among its peers, as torch.distributed knows them.

    Attributes:
        rank: number of this process; 0 writes what all share, reports to the user.
        size: how many there are.
        parallel, way: how they share the training, by name.
    """

    def __init__(self, parallel: str = DDP) -> None:
        """Look around; torch.distributed must be initialised before, where there are several.

        Args:
            parallel: a name in PARALLEL; of no effect on a single process.
        Raises:
            InvalidConfig: no such name.
        """
        if str(parallel) not in PARALLEL:
            raise InvalidConfig(f"parallel is {parallel!r}; choose one of {', '.join(PARALLEL)}")
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together() else (0, 1)
        self.parallel, self.way = parallel, PARALLEL[parallel] if self.size > 1 else ALONE
        # NCCL moves nothing that is not on a GPU
        self.device = torch.device("cuda" if together() and dist.get_backend() == "nccl" else "cpu")

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

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Fail in every process if the block fails in one, or the others would wait for it forever.

        Raises:
            ProcessFailed: the block has failed, though not in this process.
        """
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:  # an interrupt is one that Exception leaves out
            failure = error
        if self.any(failure is not None):
            said = self._heard("" if failure is None else str(failure) or type(failure).__name__)
            raise failure or ProcessFailed("; ".join(said))

    def _heard(self, text: str) -> list[str]:
        """What the processes say that have something to say."""
        texts = [text] * self.size
        if self.size > 1:
            dist.all_gather_object(texts, text)
        return [f"process {rank} failed: {text}" for rank, text in enumerate(texts) if text]
