"""The training loop, for one process or several.

The caller provides a module, a source of examples and a loss; the loop is independent of guidance and of ComfyUI.
On a CPU the result depends on the settings only: a run that was stopped, killed or resumed ends with bit-identical
weights, as long as data and loss draw random numbers from their own state or from torch's global generators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from .checkpoint import CheckpointFolder
from .loop_settings import TrainSettings
from .parallel import unshard_parameters, unsharded
from .processes import Processes
from .random_state import kept_random_state, seed_random
from .run_state import Data, RunState, StepReport

E = TypeVar("E")


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Attributes:
        step: number of finished steps.
        finished: whether all steps are done.
        losses: loss of every step since the start, also across resumed runs.
        average: moving average of the weights by name, float32; without EMA the weights themselves.
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
    loss_scale: float = 1.0,
) -> Trained:
    """Train the parameters of a module that require gradients, in place.

    Checkpoints are written before the first step (a disk that cannot hold one is then noticed early), every
    `save_every` steps, and at the end or when the run stops. A run folder with checkpoints is resumed.

    Args:
        module: module to train; the first process sends its weights to the others.
        data: this process's share of the examples of each step.
        loss: returns the scalar mean loss of an example, differentiable in the parameters of the module.
        settings: settings of the loop.
        folder: where checkpoints are written; None writes none.
        on_step: called in the first process after each step. It may draw random numbers without changing the run.
        should_stop: called in every process before each step; True in one process stops all. An exception in this or in
            on_step also stops the run, and is raised again after the checkpoint is written.
        processes: the training processes; by default those of torch.distributed.
        seed: seed of the global random generators; the rank is added.
        loss_scale: what the loss is multiplied with before the backward pass, and gradients are divided by after it. A
            scale above 1, for a loss in float16, is halved until the gradient is finite.
    Returns:
        The result. The module has the full weights in every process; after an exception it may have shards.
    Raises:
        InvalidConfig: there is nothing to train, the loss is no scalar function of the weights, or settings changed.
        CheckpointMismatch: the run folder belongs to another run.
        CheckpointNotSaved: a checkpoint cannot be written.
        TrainingDiverged: loss or gradient is not finite; the step is not applied, and the last checkpoint stays.
    """
    run = RunState(module, data, loss, settings, folder, processes or Processes(), loss_scale)
    callbacks = _Callbacks(on_step, should_stop)
    with kept_random_state(run.device):
        seed_random(run.device, (seed + run.processes.rank) % 2**64)
        run.resume()
        try:
            while run.step < settings.steps and not run.processes.any(callbacks.want_to_stop()):
                report = run.advance()
                if run.processes.first:
                    with kept_random_state(run.device):
                        callbacks.report(report)
                if settings.save_every and run.step % settings.save_every == 0:
                    run.save()
            run.save()
        finally:
            run.optimizer.zero_grad()
    if callbacks.raised is not None:
        raise callbacks.raised
    average = {name: unsharded(mean) for name, mean in run.average.items()}
    unshard_parameters(module)
    return Trained(run.step, run.step == settings.steps, run.losses, average)


class _Callbacks:
    """The caller's functions between two steps; an exception in them waits until a checkpoint is written."""

    def __init__(self, on_step: Callable[[StepReport], None] | None, should_stop: Callable[[], bool] | None):
        self.on_step, self.should_stop = on_step, should_stop
        self.raised: BaseException | None = None

    def report(self, report: StepReport) -> None:
        if self.on_step is not None:
            self._guarded(partial(self.on_step, report))

    def want_to_stop(self) -> bool:
        asked = self.raised is None and self.should_stop is not None and self._guarded(self.should_stop)
        return bool(asked) or self.raised is not None

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException as error:  # includes interrupts, which are no Exception
            self.raised = error
