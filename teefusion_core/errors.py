"""Errors that a user can act on.

Every message says what is wrong with the value, what is allowed and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class TeEFusionError(Exception):
    """Base class of all errors of this pack."""


class ShapeMismatch(TeEFusionError, ValueError):
    """Tensors with incompatible batch sizes or widths."""


class UnsupportedArchitecture(TeEFusionError):
    """A model without an embedder of pooled text to add the guidance term to."""


class InvalidConfig(TeEFusionError, ValueError):
    """A setting that the method or the student does not allow."""


class CheckpointMismatch(TeEFusionError):
    """A file that is damaged, of another kind, or made for another base model."""


class TargetExists(TeEFusionError):
    """An output file that would replace a file of somebody else."""


class NotWritten(TeEFusionError, OSError):
    """An output file that could not be written; what was at its place is unchanged."""


class CheckpointNotSaved(TeEFusionError):
    """A checkpoint that could not be written; earlier checkpoints are intact."""


class TrainingDiverged(TeEFusionError, ArithmeticError):
    """A loss or gradient that is NaN or infinite."""


class TeacherFailed(TeEFusionError, RuntimeError):
    """An error inside of another node pack while the teacher samples."""


class ProcessFailed(TeEFusionError):
    """An error in another process of a distributed training."""


@contextmanager
def reported_by(name: str) -> Iterator[None]:
    """Prefix the messages of our errors raised inside the block with `name`.

    Args:
        name: what the user sees on the screen, e.g. the display name of a node.
    Raises:
        TeEFusionError: the same error object with the longer message.
    """
    try:
        yield
    except TeEFusionError as error:
        error.args = (f"{name}: {error}",)
        raise
