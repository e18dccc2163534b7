"""A toy run of the loop; started as a program, it forks such runs.

`import torch` is then paid once, and a process that has never trained is safe to fork.
"""

import json
import math
import os
import sys
from pathlib import Path

import torch
from torch.nn.utils import skip_init

from teefusion_core.training.adapters import Lora
from teefusion_core.training.checkpoint import CheckpointFolder
from teefusion_core.training.loop import TrainSettings, train

SETTINGS = TrainSettings(
    steps=24, learning_rate=0.02, batch_size=4, gradient_accumulation=2, warmup_steps=3,
    learning_rate_schedule="cosine", weight_decay=0.01, ema_decay=0.9, save_every=3,
)  # fmt: skip


class Waves:
    """Points on a wave."""

    def __init__(self, broken_at=None):
        self.generator, self.position, self.broken_at = torch.Generator().manual_seed(1), 0, broken_at

    def next(self, rows):
        x = torch.randn(rows, 3, generator=self.generator)
        self.position += 1
        if self.position == self.broken_at:
            x[0, 0] = math.nan
        return x, torch.sin(x.sum(1, keepdim=True)) + 0.01 * (self.position % 5)

    def state(self):
        return {"generator": self.generator.get_state(), "position": self.position}

    def load_state(self, state):
        self.generator.set_state(state["generator"])
        self.position = state["position"]


class Toy:
    """A low-rank update of a frozen network; `noise` is drawn from torch's global generator."""

    def __init__(self, noise=0.1):
        generator, self.noise = torch.Generator().manual_seed(2), noise
        self.network = torch.nn.ModuleDict(
            {"a": skip_init(torch.nn.Linear, 3, 8), "b": skip_init(torch.nn.Linear, 8, 1)}
        )
        for parameter in self.network.requires_grad_(False).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.module = Lora(self.network, 2, alpha=4)

    def loss(self, example):
        x, y = example
        with self.module.applied():
            hidden = torch.tanh(self.network["a"](x))
            hidden = hidden + self.noise * torch.randn_like(hidden)
            return (self.network["b"](hidden) - y).square().mean()


def run(folder=None, settings=SETTINGS, *, data=None, toy=None, **options):
    """Train a fresh toy; return it, what came of it."""
    toy = toy or Toy()
    return toy, train(toy.module, data or Waves(), toy.loss, settings, folder=folder, **options)


def opened(root, name="run", **options):
    return CheckpointFolder(root, name, **dict(base="base") | options)


def result(toy, trained):
    """Everything that two runs can differ in."""
    return {
        "weights": {name: weight.detach().clone() for name, weight in toy.module.named_parameters()},
        "average": dict(trained.average),
        "losses": trained.losses,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def names_in(path):
    return sorted(entry.name for entry in path.iterdir())


class Stop:
    """Says yes from a given call on."""

    def __init__(self, after):
        self.calls, self.after = 0, after

    def __call__(self):
        self.calls += 1
        return self.calls > self.after


def fork(root, name):
    """Train the toy in a process of its own; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            run(opened(Path(root), name))
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return pid


def main():
    # imports what torch leaves to the first optimizer, seconds that each run would pay else
    torch.optim.AdamW(Toy().module.parameters()).step()
    for line in sys.stdin:
        pid = fork(*json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
