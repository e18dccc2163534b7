"""A lock that the operating system releases when its process ends, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import InvalidConfig

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock during the block.

    Args:
        path: file of the lock; it is created, and stays.
        what: name of what is locked, for the message.
    Raises:
        InvalidConfig: another process holds the lock.
        OSError: the folder is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            _lock(file)
        except OSError as error:
            raise InvalidConfig(
                f"{what} is used by another process; wait until that one ends, or choose another name"
            ) from error
        yield


def _lock(file: IO) -> None:
    """Lock an open file, until it is closed; raise OSError if it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except NameError:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
