"""The processes that train one model together.

With a single process every operation is the identity, so that callers need only one code path.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InvalidConfig, ProcessFailed
from .parallel import ALONE, DDP, PARALLEL


def together() -> bool:
    """Return whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized()


def leave_together() -> None:
    """End the process group of this process and the others; all call it, as the last thing they do together."""
    if together():
        # A group that is still referenced outlives its end, and its threads then abort the interpreter as it exits;
        # modules that were trained together refer to it in cycles.
        gc.collect()
        dist.barrier()  # a process that leaves early breaks the connection of one that still writes
        dist.destroy_process_group()


class Processes:
    """This process among the others of torch.distributed.

    Attributes:
        rank: number of this process; rank 0 writes the shared state and reports to the user.
        size: number of processes.
        parallel, strategy: how they share the training: a name in PARALLEL and its entry.
    """

    def __init__(self, parallel: str = DDP) -> None:
        """Read rank and size; if there are several processes, torch.distributed must be initialised before.

        Args:
            parallel: a name in PARALLEL; without effect in a single process.
        Raises:
            InvalidConfig: parallel is not in PARALLEL.
        """
        if str(parallel) not in PARALLEL:
            raise InvalidConfig(f"parallel is {parallel!r}; choose one of {', '.join(PARALLEL)}")
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together() else (0, 1)
        self.parallel, self.strategy = parallel, PARALLEL[parallel] if self.size > 1 else ALONE
        # NCCL only transfers tensors that are on a GPU
        self.device = torch.device("cuda" if together() and dist.get_backend() == "nccl" else "cpu")

    @property
    def first(self) -> bool:
        """Whether this process writes the shared state."""
        return self.rank == 0

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; all pass the same shapes in the same order."""
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
        """Return whether the flag is set in at least one process; every process gets the same answer."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes)
        return votes.item() > 0

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Fail in every process if the block fails in one; otherwise the others would wait for it forever.

        Raises:
            ProcessFailed: the block failed in another process, but not in this one.
        """
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:  # includes interrupts, which are no Exception
            failure = error
        if self.any(failure is not None):
            messages = self._failures("" if failure is None else str(failure) or type(failure).__name__)
            raise failure or ProcessFailed("; ".join(messages))

    def _failures(self, text: str) -> list[str]:
        """Return the messages of the processes that failed, in every process."""
        texts = [text] * self.size
        if self.size > 1:
            dist.all_gather_object(texts, text)
        return [f"process {rank} failed: {text}" for rank, text in enumerate(texts) if text]
