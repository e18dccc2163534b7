"""The state of a training run between two steps, as a checkpoint stores it.

Source: AdamW, arXiv 1711.05101, as implemented in torch.optim.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import CheckpointMismatch, InvalidConfig, TrainingDiverged
from ..files.state_file import Tree
from ..files.tensor_file import first_shape_mismatch
from .checkpoint import CheckpointFolder
from .loop_settings import TrainSettings
from .parallel import Objective, gathered, shard_like, unsharded
from .processes import Processes
from .random_state import random_state, set_random_state

FIRST_LOSS_SCALE, DOUBLED_EVERY = 2.0**16, 2000
"""Loss scale of a run in float16 at its start, and after how many steps it is tried at twice the scale again."""

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class Data(Protocol[E_co]):
    """A source of training examples."""

    def next(self, rows: int) -> E_co:
        """Return the next `rows` examples of this process."""

    def state(self) -> Tree:
        """Return position and random state, from which the same examples can be drawn again; a tree of `state_file`.

        It is a snapshot: later draws do not change it.
        """

    def load_state(self, state: Tree) -> None:
        """Resume from a state; its tensors are on the CPU, and its tuples have become lists."""


@dataclass(frozen=True)
class StepReport:
    """The result of one step.

    Attributes:
        step, steps: number of finished steps, and of all steps.
        loss: mean over the rows of all processes.
        gradient_norm: L2 norm over all weights, before clipping.
        learning_rate: learning rate of the step.
        rows: number of examples in all processes.
        seconds, data_seconds: duration of the step in this process, and of waiting for data in it.
        average: moving average of the weights by name, float32; it keeps changing, so copy what you keep. With FSDP
            these are shards, which all processes must unshard together.
        losses: loss of every step since the start, also across resumed runs; the list keeps growing.
    """

    step: int
    steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    rows: int
    seconds: float
    data_seconds: float
    average: Mapping[str, Tensor]
    losses: Sequence[float]


class RunState(Generic[E]):
    """Weights, their moving average, optimizer, data and randomness of a run."""

    def __init__(
        self,
        module: nn.Module,
        data: Data[E],
        loss: Callable[[E], Tensor],
        settings: TrainSettings,
        folder: CheckpointFolder | None,
        processes: Processes,
        loss_scale: float = 1.0,
    ):
        weights = list(_trained(module).values())
        if not weights:
            raise InvalidConfig("the module has no parameter that requires gradients; pass one with weights to train")
        self.data, self.settings, self.folder, self.processes = data, settings, folder, processes
        self.device = weights[0].device
        processes.spread_(weight.detach() for weight in weights)
        self.objective = processes.strategy.wrap(Objective(module, loss), self.device.type)
        self.weights = _trained(module)  # read again, because they may be shards now
        self.average = {name: self._averaged(weight.detach()) for name, weight in self.weights.items()}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.optimizer.zero_grad()  # drops gradients that the caller left
        self.loss_scale, self.scaled = loss_scale, loss_scale != 1
        self.step = 0
        self.saved: int | None = None
        self.before: dict[str, Tree] | None = None
        self.losses: list[float] = []

    def _averaged(self, weight: Tensor) -> Tensor:
        if not self.settings.ema_decay:
            return weight
        # half precision would round small changes of the average away
        return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)

    def advance(self) -> StepReport:
        """Take one step; if it is interrupted, e.g. by a cancelled teacher, save the steps before it."""
        self.before = self._own()
        try:
            return self._step()
        except TrainingDiverged:
            raise
        except BaseException:
            # several processes would all have to save at the same time
            if self.before is not None and self.processes.size == 1:
                self.save()
            raise
        finally:
            self.before = None

    def _step(self) -> StepReport:
        """Take one optimizer step."""
        start, settings = time.perf_counter(), self.settings
        examples, data_seconds = self._draw()
        drawn = random_state(self.device) if self.scaled else {}
        mean_loss, gradient_norm = self._differentiate(examples)
        while self.loss_scale > 1 and math.isfinite(mean_loss) and not math.isfinite(gradient_norm):
            self.loss_scale /= 2
            self.optimizer.zero_grad()
            set_random_state(self.device, drawn)
            mean_loss, gradient_norm = self._differentiate(examples)
        if not (math.isfinite(mean_loss) and math.isfinite(gradient_norm)):
            raise self._diverged(mean_loss, gradient_norm)
        lr = settings.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.before = None  # from here on the weights belong to no finished step
        self.optimizer.step()
        self.optimizer.zero_grad()  # frees memory for checkpoints and previews
        self._update_average()
        self.step += 1
        if self.scaled and self.step % DOUBLED_EVERY == 0:
            self.loss_scale *= 2
        self.losses.append(mean_loss)
        rows = settings.batch_size * settings.gradient_accumulation * self.processes.size
        seconds = time.perf_counter() - start
        return StepReport(
            self.step, settings.steps, mean_loss, gradient_norm, lr, rows, seconds, data_seconds, self.average,
            self.losses,
        )  # fmt: skip

    def _draw(self) -> tuple[list[E], float]:
        """Return the examples of a step, and the seconds spent on them."""
        asked = time.perf_counter()
        examples = [self.data.next(self.settings.batch_size) for _ in range(self.settings.gradient_accumulation)]
        return examples, time.perf_counter() - asked

    def _differentiate(self, examples: list[E]) -> tuple[float, float]:
        """Accumulate the clipped gradient of the mean loss; return that loss and the norm before clipping."""
        loss, weights = self._accumulate(examples), self.weights.values()
        self.processes.average_([loss])
        if self.loss_scale != 1:
            for weight in weights:
                if weight.grad is not None:
                    weight.grad.div_(self.loss_scale)
        norm = unsharded(nn.utils.clip_grad_norm_(weights, self.settings.max_grad_norm or math.inf))
        mean_loss, gradient_norm = torch.stack((loss, norm.to(loss))).tolist()
        return mean_loss, gradient_norm

    def _accumulate(self, examples: list[E]) -> Tensor:
        """Accumulate the gradient of the mean loss, times the loss scale; return that loss."""
        total = torch.zeros((), device=self.device)
        for left, example in zip(reversed(range(len(examples))), examples, strict=True):
            with self.processes.strategy.passes(self.objective, left == 0):
                loss = self.objective(example)
                if loss.ndim or not loss.requires_grad:
                    raise InvalidConfig(
                        f"the loss has shape {list(loss.shape)} and {'a' if loss.requires_grad else 'no'} gradient; "
                        "return a scalar that depends on the trainable weights"
                    )
                share = loss / len(examples)
                (share * self.loss_scale if self.scaled else share).backward()
            total += share.detach().to(total)
        return total

    def _diverged(self, loss: float, gradient_norm: float) -> TrainingDiverged:
        kept = "" if self.saved is None else f"; the checkpoint of step {self.saved} is intact"
        return TrainingDiverged(
            f"step {self.step + 1} has loss {loss} and gradient norm {gradient_norm}, so it was not applied{kept}. "
            f"Lower learning_rate (it was {self.settings.learning_rate_at(self.step):g}), or remove the broken example "
            "from the data"
        )

    def _update_average(self) -> None:
        """Move the average towards the weights."""
        if self.settings.ema_decay:
            average = list(self.average.values())
            weights = [w.detach().to(a.dtype) for w, a in zip(self.weights.values(), average, strict=True)]
            get_ema_multi_avg_fn(self.settings.ema_decay_at(self.step))(average, weights, None)

    def save(self) -> None:
        """Write a checkpoint, unless this step has one."""
        if self.folder is None or self.step == self.saved:
            return
        names, moments = list(self.weights), self.optimizer.state_dict()["state"]
        shared: dict[str, Tree] = {
            "weights": self.weights,
            "optimizer": {names[index]: state for index, state in moments.items()},
            "progress": {"losses": torch.tensor(self.losses, dtype=torch.float64)},
        }
        if self.settings.ema_decay:
            shared["average"] = self.average
        if self.scaled:
            shared["progress"] |= {"loss_scale": torch.tensor(self.loss_scale)}
        shared = gathered(shared, self.processes.first)
        self.folder.save(self.step, asdict(self.settings), shared, self.before or self._own())
        self.saved = self.step

    def _own(self) -> dict[str, Tree]:
        """Return the state that only this process has."""
        return {"random": random_state(self.device), "data": self.data.state()}

    def resume(self) -> None:
        """Resume from the newest checkpoint, or write the first one."""
        if self.folder is None:
            return
        stored = self.folder.load(asdict(self.settings))
        self.folder.sweep()
        if stored is None:
            self.save()
            return
        if stored.step > self.settings.steps:
            raise InvalidConfig(
                f"the run is already at step {stored.step}, but steps is {self.settings.steps}; use more steps"
            )
        weights, moments = stored.shared["weights"], stored.shared["optimizer"]
        _copy_(self.weights, weights)
        if self.settings.ema_decay:
            _copy_(self.average, stored.shared.get("average") or weights)
        state = {
            index: {key: shard_like(weight, value) if value.ndim else value for key, value in moments[name].items()}
            for index, (name, weight) in enumerate(self.weights.items())
            if name in moments
        }
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.data.load_state(stored.own["data"])
        set_random_state(self.device, stored.own["random"])
        progress = stored.shared["progress"]
        self.losses = progress["losses"].tolist()
        if self.scaled and "loss_scale" in progress:
            self.loss_scale = float(progress["loss_scale"])
        self.step = self.saved = stored.step


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def _copy_(ours: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Copy stored weights into ours.

    Raises:
        CheckpointMismatch: names or shapes differ; nothing is changed.
    """
    if different := first_shape_mismatch(ours, stored):
        name, here, before = different
        raise CheckpointMismatch(
            f"the run trained other weights: {name} is {before or 'missing'} there, but {here or 'missing'} here; "
            "train the same weights at the same rank, or choose another run name"
        )
    for name, weight in ours.items():
        weight.detach().copy_(shard_like(weight, stored[name]))
