"""TrajectoryCache of a teacher kept on disk, from which a training draws.

A walk is known by its number alone, so a lost or damaged file is made again. Processes that train together share the
walks, draw the same rows of them, then read a share of these each: how many they are does not change what is learned.
Shapes: B rows, S steps.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InvalidConfig
from ..files.state_file import Tree, write_tree
from .processes import Processes
from .targets import Example, Trajectory, step_weights

log = logging.getLogger(__name__)

_LATENTS = ("x_SBCHW", "target_SBCHW", "guidance_SBCHW")
_SMALL = ("sigma_S", "weight_S", "w", "prompt_SB", "null_SB")


def generator_of(seed: int, *place: int | str) -> torch.Generator:
    """A random generator on the CPU for one thing of a run, e.g. the walk of a number."""
    mixed = random.Random("/".join(str(part) for part in (seed, *place)))
    return torch.Generator().manual_seed(mixed.getrandbits(63))


class TrajectoryCache:
    """Examples from the latest walks; new ones are made as training goes on."""

    def __init__(
        self,
        make: Callable[[int], Trajectory],
        folder: Path,
        *,
        examples: int,
        kept: int,
        uses: float,
        seed: int = 0,
        processes: Processes | None = None,
        told: Callable[[int], None] | None = None,
    ):
        """Open a folder of walks; none is made yet.

        Args:
            make: the walk of a number, always the same for the same number; called when it is due.
            folder: where they are kept, as float16.
            examples: of one walk, its steps times its rows.
            kept: how many of the latest are drawn from, 1 or more.
            uses: how often an example serves: the teacher walks anew whenever the ones before are used up; 0: as many
                as are kept walk before the first step, none later.
            seed: of the drawing.
            processes: who trains; by default those of torch.distributed. All open the same folder.
            told: called before the teacher walks, with how many have.
        Raises:
            InvalidConfig: kept below 1, or uses below 0.
        """
        if kept < 1 or not 0 <= uses < math.inf:
            raise InvalidConfig(f"{kept} walks are kept, an example serves {uses} times; give 1 or more, 0 or more")
        self.make, self.folder, self.examples, self.kept, self.uses = make, folder, examples, kept, uses
        self.processes, self.told = processes or Processes(), told
        self.generator = generator_of(seed, "draw", 0)
        self.drawn = 0
        self._oldest = 0
        self._files: dict[int, Any] = {}

    def next(self, rows: int) -> Example:
        """Draw rows for every process, each from any walk, step and row of it; return ours, float32 on the CPU."""
        # one at the start, so that training begins at once
        made = 1 + int(self.drawn / (self.examples * self.uses)) if self.uses else self.kept
        oldest = max(made - self.kept, 0)
        self._keep(range(oldest, made))
        rank, drawn = self.processes.rank, rows * self.processes.size
        self.drawn += drawn
        places = [
            torch.randint(high, (drawn,), generator=self.generator)[rank * rows : (rank + 1) * rows]
            for high in (made - oldest, self.examples)
        ]
        picked = [self._row(oldest + walk, place) for walk, place in zip(*(p.tolist() for p in places), strict=True)]
        return Example(**{name: torch.stack([row[name] for row in picked]) for name in picked[0]})

    def state(self) -> Tree:
        """Return the position; the walks follow from it."""
        return {"drawn": self.drawn, "generator": self.generator.get_state()}

    def load_state(self, state: Tree) -> None:
        """Go on from a position."""
        self.drawn = state["drawn"]
        self.generator.set_state(state["generator"])

    def _path(self, index: int) -> Path:
        return self.folder / f"walk-{index:08d}.safetensors"

    def _keep(self, indices: range) -> None:
        """Have these walks on disk; what is older goes."""
        for index in indices:
            if index not in self._files:
                self._have(index)
                with self.processes.all_or_none():
                    self._files[index] = self._opened(index)
        for index in range(self._oldest, indices.start):
            self._files.pop(index, None)
            if self.processes.first:  # all have met since they last read it
                self._path(index).unlink(missing_ok=True)
        self._oldest = indices.start

    def _have(self, index: int) -> None:
        """Have a walk on disk; where it is missing, processes make it with those due next side by side, then meet."""
        if self.processes.any(not self._is_whole(index)):
            ours = index + self.processes.rank
            due = ours < self.kept or self.uses > 0
            with self.processes.all_or_none():
                if ours == index or due and not self._is_whole(ours):
                    self._make(ours)

    def _is_whole(self, index: int) -> bool:
        try:
            self._opened(index)
        except (OSError, SafetensorError) as error:
            path = self._path(index)
            if path.exists():
                log.warning("%s is damaged (%s); its walk is made again", path, error)
            return False
        return True

    def _opened(self, index: int) -> tuple[Any, dict[str, torch.Tensor]]:
        """A file whose latents are read row by row, with the rest of it; a cut one does not open."""
        file = safe_open(self._path(index), "pt")
        return file, {name: file.get_tensor(name) for name in _SMALL}

    def _make(self, index: int) -> None:
        if self.told is not None:
            self.told(index)
        walk, path = self.make(index), self._path(index)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            write_tree(part, _stored(walk))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _row(self, index: int, place: int) -> dict[str, torch.Tensor]:
        """Read one example of a walk; its latents stay on the disk until then."""
        file, small = self._files[index]
        step, place = divmod(place, small["prompt_SB"].shape[1])
        latents = {name.replace("SB", "B"): file.get_slice(name)[step, place].float() for name in _LATENTS}
        numbers = {name.replace("SB", "B"): small[name][step, place] for name in ("prompt_SB", "null_SB")}
        of_step = {name.replace("S", "B"): small[name][step] for name in ("sigma_S", "weight_S")}
        return {**latents, **numbers, **of_step, "w_B": small["w"]}


def _stored(walk: Trajectory) -> dict[str, torch.Tensor]:
    """A walk with the weights of its steps; latents as float16."""
    halved = {name: value.half() if name in _LATENTS else value for name, value in vars(walk).items()}
    return {**halved, "weight_S": step_weights(walk)}
