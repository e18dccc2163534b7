"""Put a finished folder in place of an older one."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

STAMP = ".teefusion-stamp"
"""Written last, inside the folder: a folder without the expected stamp counts as not made."""


def stamped(folder: Path, stamp: str) -> bool:
    """Tell whether the folder was finished from exactly these inputs."""
    try:
        return (folder / STAMP).read_text(encoding="utf-8") == stamp
    except OSError:
        return False


@contextlib.contextmanager
def fresh(folder: Path, stamp: str) -> Iterator[Path]:
    """Give a sibling to fill; when the block ends well it becomes the folder.

    A run that is killed leaves only the sibling, which the next run clears away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # named after us: a helper that outlived a killed run may still write into that run's sibling
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    old = folder.with_name(folder.name + ".old")
    _clear(folder)
    try:
        yield partial
        (partial / STAMP).write_text(stamp, encoding="utf-8")
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        _clear(folder)


def _clear(folder: Path) -> None:
    for leftover in [*folder.parent.glob(f"{folder.name}.partial*"), *folder.parent.glob(f"{folder.name}.old")]:
        shutil.rmtree(leftover, ignore_errors=True)
