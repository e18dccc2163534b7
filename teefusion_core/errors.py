"""Errors that a user can act upon.

Every message says what was given, what is legal, what to do next.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class TeEFusionError(Exception):
    """Anything this pack refuses to do."""


class ShapeMismatch(TeEFusionError, ValueError):
    """Tensors whose rows or widths do not fit together."""


class UnsupportedArchitecture(TeEFusionError):
    """A model in which the guidance term has no place to go."""


class InvalidConfig(TeEFusionError, ValueError):
    """A setting outside what the method or the student allows."""


class CheckpointMismatch(TeEFusionError):
    """A file that is damaged, foreign, or made for another base."""


class CheckpointNotSaved(TeEFusionError):
    """A checkpoint that the disk did not take; the ones before it are whole."""


class TrainingDiverged(TeEFusionError, ArithmeticError):
    """A loss or gradient that is not a finite number."""


class ProcessFailed(TeEFusionError):
    """What another process of a training could not do; this one has nothing to mend."""


class MissingExtra(TeEFusionError, ImportError):
    """An optional dependency that is not installed."""


@contextmanager
def reported_by(name: str) -> Iterator[None]:
    """Put `name`, as the user knows it, in front of our errors raised inside the block.

    Args:
        name: what the user sees on the screen, e.g. the display name of a node.
    Raises:
        TeEFusionError: the error of the block, of the same type, with the longer message.
    """
    try:
        yield
    except TeEFusionError as error:
        error.args = (f"{name}: {error}",)
        raise
