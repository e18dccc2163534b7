"""The interface of the trainer to the students of all methods.

Shapes: B rows, P pooled width.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...files.sharpener_file import SharpenerInfo
from ...files.student_file import StudentInfo
from ...files.tensor_file import write_tensors
from ..settings import DistillSettings
from ..update import Update

RUN_KEY = "run"
"""Metadata key of the random name of the run that wrote a student file."""


class Prompts(Protocol):
    """Encoded prompts by number."""

    def __len__(self) -> int:
        """Return the number of prompts."""

    def kind(self, number: int) -> Hashable:
        """Return what must be equal in prompts that share a batch, such as the number of tokens."""

    def batch(self, numbers: Sequence[int]) -> list:
        """Return one CONDITIONING entry whose rows are these prompts."""

    def pooled(self, numbers: Sequence[int]) -> Tensor:
        """Return the pooled vectors [B,P]."""


@dataclass(frozen=True)
class StudentFile:
    """The content of a student file.

    Attributes:
        tensors, info: weights and metadata.
        lora: the weights that a LoRA loader can apply; empty if the model itself is not changed.
    """

    tensors: Mapping[str, Tensor]
    info: StudentInfo | SharpenerInfo
    lora: Mapping[str, Tensor]

    def write(self, path: Path, run: str = "") -> None:
        """Write the file atomically.

        Args:
            path: a .safetensors file; an existing one is replaced, so check it first.
            run: random name of the run, by which a later start of it knows its own file.
        Raises:
            NotWritten: the disk is full or not writable.
        """
        write_tensors(path, self.tensors, {**self.info.metadata(), RUN_KEY: run})


class Student(ABC):
    """A network and the weights that are trained to imitate a teacher.

    Attributes:
        update: the trained weights.
        positives, settings: the prompts, and the settings of the distillation.
        changes_model: whether they change the network, or only its prompts.
        has_range: whether the user sets its guidance w in a range, so that it can be calibrated.
        one_w_per_batch: whether all rows of a batch must have the same guidance.
        no_whole_model: why all weights of the network would be no student; empty if they are one.
    """

    update: Update
    positives: Prompts
    settings: DistillSettings
    changes_model = True
    has_range = True
    one_w_per_batch = False
    no_whole_model = ""

    @abstractmethod
    def conditioned(
        self, prompts: Sequence[int], nulls: Sequence[int], w_B: Tensor
    ) -> tuple[list, AbstractContextManager[None]]:
        """Return CONDITIONING and a context in which the network predicts with guidance w_B [B].

        Args:
            prompts: numbers of prompts of one `kind`.
            nulls: numbers of the empty or negative prompts that guidance leads away from.
            w_B: guidance of the paper; the equivalent CFG scale is 1 + w.
        """

    def kind(self, prompt: int, null: int) -> Hashable:
        """Return what all rows of a batch must share: by default the kind of the prompt, whatever the empty prompt."""
        return self.positives.kind(prompt)

    def strengths_to_preview(self) -> list[tuple[str, float]]:
        """Return a label and a guidance w for each column of the preview: smallest, middle and largest by default."""
        return [(f"w {w:g}", w) for w in self.settings.guidance_shown]

    @abstractmethod
    def file(
        self, *, teacher: str, base: str, step: int, whole_model: bool = False, calibration: str = ""
    ) -> StudentFile:
        """Return the content of the student file.

        Args:
            teacher: description of the teacher.
            base: fingerprint of the base model.
            step: finished training steps.
            whole_model: store all weights of the network instead of the change to its base.
            calibration: `Calibration.json` of the student; empty without one.
        """


class MixedRows(Exception):
    """Rows of several w meet in a layer whose first axis is not the batch, so that each w needs a batch of its own."""
