"""Trajectories of a teacher, stored on disk for training.

A trajectory depends on its number and on the settings of the run only, so a lost or damaged file is made again, and so
is one of a run that now continues with other settings. Processes that train together share
the trajectories and draw the same rows, of which each reads its part: their number does not change the result.
Shapes: B rows, S steps.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointMismatch, InvalidConfig
from ..files.state_file import Tree
from ..files.tensor_file import open_tensors, write_tensors
from .processes import Processes
from .targets import Example, Trajectory, step_weights

log = logging.getLogger(__name__)

IDENTITY = "identity"  # in the metadata of a file
_LATENTS = ("x_SBCHW", "target_SBCHW", "guidance_SBCHW")
_SMALL = ("sigma_S", "weight_S", "w", "prompt_SB", "null_SB")


def generator_of(seed: int, *place: int | str) -> torch.Generator:
    """Return a random generator on the CPU for one part of a run, e.g. the trajectory with a number."""
    mixed = random.Random("/".join(str(part) for part in (seed, *place)))
    return torch.Generator().manual_seed(mixed.getrandbits(63))


class TrajectoryCache:
    """Examples from the latest trajectories; new trajectories are made during training."""

    def __init__(
        self,
        make: Callable[[int], Trajectory],
        folder: Path,
        *,
        examples: int,
        cache_size: int,
        reuse: float,
        seed: int = 0,
        identity: str = "",
        processes: Processes | None = None,
    ):
        """Open a folder of trajectories; none is made yet.

        Args:
            make: returns the trajectory with a number, always the same one; called when it is needed.
            folder: where the trajectories are stored, as float16.
            examples: number of examples in one trajectory: its steps times its rows.
            cache_size: number of the latest trajectories to draw from, 1 or more.
            reuse: how many times each example is used, on average, before the teacher makes new ones; 0 makes
                `cache_size` trajectories before the first step and none later.
            seed: seed of the draws.
            identity: a text that changes with all that changes the trajectories; files of another one are made again.
            processes: the training processes; by default those of torch.distributed. All open the same folder.
        Raises:
            InvalidConfig: cache_size is below 1, or reuse is below 0.
        """
        if cache_size < 1 or not 0 <= reuse < math.inf:
            raise InvalidConfig(f"cache_size is {cache_size} and reuse is {reuse}; use 1 or more, and 0 or more")
        self.make, self.folder, self.examples, self.cache_size, self.reuse = make, folder, examples, cache_size, reuse
        self.identity, self.processes = identity, processes or Processes()
        self.generator = generator_of(seed, "draw", 0)
        self.drawn = 0
        self._oldest = 0
        self._files: dict[int, Any] = {}

    def next(self, rows: int) -> Example:
        """Draw rows for all processes from any trajectory and step; return this one's, float32 on the CPU."""
        made = self.made(self.drawn)
        oldest = max(made - self.cache_size, 0)
        self._keep(range(oldest, made))
        rank, drawn = self.processes.rank, rows * self.processes.size
        self.drawn += drawn
        places = [
            torch.randint(high, (drawn,), generator=self.generator)[rank * rows : (rank + 1) * rows]
            for high in (made - oldest, self.examples)
        ]
        picked = [
            self._row(oldest + trajectory, place)
            for trajectory, place in zip(*(p.tolist() for p in places), strict=True)
        ]
        return Example(**{name: torch.stack([row[name] for row in picked]) for name in picked[0]})

    def made(self, drawn: int) -> int:
        """Return how many trajectories have been made when this many examples were drawn and more are asked for."""
        # one at the start, so that training starts early
        return 1 + int(drawn / (self.examples * self.reuse)) if self.reuse else self.cache_size

    def disk_bytes(self, made: int, latent: int) -> int:
        """Return the most bytes that the folder takes.

        Args:
            made: number of trajectories of the whole run.
            latent: number of elements of one latent.
        """
        stored = min(made, self.cache_size + self.processes.size)  # new ones are written before old ones are removed
        return stored * self.examples * len(_LATENTS) * torch.float16.itemsize * latent

    def state(self) -> Tree:
        """Return the position, which determines the trajectories."""
        return {"drawn": self.drawn, "generator": self.generator.get_state()}

    def load_state(self, state: Tree) -> None:
        """Resume from a position."""
        self.drawn = state["drawn"]
        self.generator.set_state(state["generator"])

    def _path(self, index: int) -> Path:
        return self.folder / f"trajectory-{index:08d}.safetensors"

    def _keep(self, indices: range) -> None:
        """Make sure that these trajectories are on disk, and remove older ones."""
        for index in indices:
            if index not in self._files:
                self._ensure(index)
                with self.processes.all_or_none():
                    self._files[index] = self._opened(index)
        for index in range(self._oldest, indices.start):
            self._files.pop(index, None)
            if self.processes.first:  # all processes have synchronised since they last read it
                self._path(index).unlink(missing_ok=True)
        self._oldest = indices.start

    def _ensure(self, index: int) -> None:
        """Make sure that a trajectory is on disk; several processes make it and the next ones in parallel."""
        if self.processes.any(not self._is_intact(index)):
            ours = index + self.processes.rank
            due = ours < self.cache_size or self.reuse > 0
            with self.processes.all_or_none():
                if ours == index or due and not self._is_intact(ours):
                    self._make(ours)

    def _is_intact(self, index: int) -> bool:
        path = self._path(index)
        try:
            file, _ = self._opened(index)
        except CheckpointMismatch as error:
            if path.exists():
                log.warning("%s is damaged (%s); its trajectory is made again", path, error)
            return False
        if (file.metadata() or {}).get(IDENTITY, "") == self.identity:
            return True
        log.warning("%s was made with other settings; its trajectory is made again", path)
        return False

    def _opened(self, index: int) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return an open file, whose latents are read row by row, and its small tensors."""
        file = open_tensors(self._path(index))
        return file, {name: file.get_tensor(name) for name in _SMALL}

    def _make(self, index: int) -> None:
        write_tensors(self._path(index), _stored(self.make(index)), {IDENTITY: self.identity})

    def _row(self, index: int, place: int) -> dict[str, torch.Tensor]:
        """Read one example of a trajectory; its latents stay on the disk until then."""
        file, small = self._files[index]
        step, place = divmod(place, small["prompt_SB"].shape[1])
        latents = {name.replace("SB", "B"): file.get_slice(name)[step, place].float() for name in _LATENTS}
        numbers = {name.replace("SB", "B"): small[name][step, place] for name in ("prompt_SB", "null_SB")}
        of_step = {name.replace("S", "B"): small[name][step] for name in ("sigma_S", "weight_S")}
        return {**latents, **numbers, **of_step, "w_B": small["w"]}


def _stored(trajectory: Trajectory) -> dict[str, torch.Tensor]:
    """Return a trajectory with the weights of its steps; the latents are float16."""
    halved = {name: value.half() if name in _LATENTS else value for name, value in vars(trajectory).items()}
    return {**halved, "weight_S": step_weights(trajectory)}
