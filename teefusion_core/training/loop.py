"""The training loop, for one process or many.

The caller brings a module, a source of examples, a loss; the loop knows nothing of guidance, networks or screens.
On a CPU a run depends on nothing but its settings: stopped, killed, resumed or watched, it ends with the same weights,
bit for bit, as long as data and loss draw from their own state or from torch's global generators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from .checkpoint import CheckpointFolder
from .loop_settings import TrainSettings
from .parallel import make_whole, whole
from .processes import Processes
from .random_state import kept_random_state, seed_random
from .run_state import Data, RunState, StepReport

E = TypeVar("E")


@dataclass(frozen=True)
class Trained:
    """What a run has come to.

    Attributes:
        step: finished steps.
        finished: whether these are all.
        losses: of every step since the start, resumed or not.
        average: the moving average of the weights by name, float32; without ema the weights themselves.
    """

    step: int
    finished: bool
    losses: list[float]
    average: dict[str, Tensor]


def train(
    module: nn.Module,
    data: Data[E],
    loss: Callable[[E], Tensor],
    settings: TrainSettings,
    *,
    folder: CheckpointFolder | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    processes: Processes | None = None,
    seed: int = 0,
) -> Trained:
    """Train the parameters of a module that require gradients, in place.

    A checkpoint is made before the first step, so that a disk which cannot hold one is known by then, every
    `save_every` steps, at the end or stop. A run folder with checkpoints is gone on with.

    Args:
        module: equal in all processes, or made so from the first.
        data: this process's share of the examples of each step.
        loss: scalar mean over the rows of an example, differentiable in the parameters, which it reads off the module.
        settings: how.
        folder: where the run is kept; None keeps nothing.
        on_step: called in the first process after each step. It may draw random numbers without changing the run.
        should_stop: asked in every process before each step; one yes stops all. An exception out of this or of
            on_step stops like a yes, is raised again once the checkpoint is written.
        processes: who trains; by default those of torch.distributed.
        seed: of the global random generators; the rank is added.
    Returns:
        How far it came; the weights are in the module, whole in every process; an exception may leave shares.
    Raises:
        InvalidConfig: nothing to train, a loss that is no scalar or does not depend on the weights, changed settings.
        CheckpointMismatch: a run folder that is not of this run.
        CheckpointNotSaved: the disk does not take a checkpoint.
        TrainingDiverged: loss or gradient is not finite; the step is not applied, the last checkpoint stays.
    """
    run = RunState(module, data, loss, settings, folder, processes or Processes())
    callers = _Callers(on_step, should_stop)
    with kept_random_state(run.device):
        seed_random(run.device, (seed + run.processes.rank) % 2**64)
        run.resume()
        try:
            while run.step < settings.steps and not run.processes.any(callers.want_to_stop()):
                report = run.advanced()
                if run.processes.first:
                    with kept_random_state(run.device):
                        callers.told(report)
                if settings.save_every and run.step % settings.save_every == 0:
                    run.save()
            run.save()
        finally:
            run.optimizer.zero_grad()
    if callers.raised is not None:
        raise callers.raised
    average = {name: whole(mean) for name, mean in run.average.items()}
    make_whole(module)
    return Trained(run.step, run.step == settings.steps, run.losses, average)


class _Callers:
    """The caller's say between two steps; what it raises waits until the work is saved."""

    def __init__(self, on_step: Callable[[StepReport], None] | None, should_stop: Callable[[], bool] | None):
        self.on_step, self.should_stop = on_step, should_stop
        self.raised: BaseException | None = None

    def told(self, report: StepReport) -> None:
        if self.on_step is not None:
            self._guarded(partial(self.on_step, report))

    def want_to_stop(self) -> bool:
        asked = self.raised is None and self.should_stop is not None and self._guarded(self.should_stop)
        return bool(asked) or self.raised is not None

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException as error:  # an interrupt is one that Exception leaves out
            self.raised = error
