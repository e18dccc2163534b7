"""Forward passes, counted where they happen."""

from __future__ import annotations

from typing import Any


class Passes:
    """Rows that go through a model's network inside the block."""

    def __init__(self, model: Any):
        self.network, self.rows = model.model.diffusion_model, 0

    def __enter__(self) -> Passes:
        self.handle = self.network.register_forward_pre_hook(self._count)
        return self

    def _count(self, _module: Any, inputs: tuple[Any, ...]) -> None:
        self.rows += len(inputs[0])

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
