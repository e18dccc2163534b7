"""Output files: written whole or not at all, and never over a file of somebody else.

A file is written under another name, flushed to the disk and then renamed.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import NotWritten, TargetExists

_UNFINISHED = ".part"
GIB = 2**30


def check_target(path: Path, *, ours: bool = False) -> None:
    """Refuse a target that exists, or a folder where nothing can be written; call it before long work.

    Args:
        path: file or folder to write.
        ours: whether an existing file was written by this very run, so that it may be replaced.
    Raises:
        TargetExists: something is at the path.
        NotWritten: the folder is read-only, or its drive is missing.
    """
    if os.path.lexists(path) and not (ours and path.is_file()):
        raise TargetExists(f"{path} exists and was not written by this run; choose another name, or move it elsewhere")
    folder = _existing(path.parent)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise NotWritten(f"{path} cannot be written, because {folder} is read-only or not a folder; choose another one")


def check_space(folder: Path, needs: Mapping[str, int]) -> str:
    """Refuse a folder whose disk is too small for what will be written there; call it before long work.

    Args:
        folder: it need not exist yet; the files in it already count as a part of the needs.
        needs: bytes by the name of what needs them.
    Returns:
        A sentence with the needs.
    Raises:
        NotWritten: the disk has less free space, or it is missing.
    """
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free, total = shutil.disk_usage(_existing(folder)).free, sum(needs.values())
    parts = " + ".join(f"{size / GIB:.2f} GiB {name}" for name, size in needs.items())
    text = f"{folder} will take up to {total / GIB:.2f} GiB of disk space ({parts}); {free / GIB:.2f} GiB are free"
    if total - there > free:
        raise NotWritten(text)
    return text


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one around it that exists.

    Raises:
        NotWritten: none exists, as on Windows if a drive is missing.
    """
    whole = folder.absolute()
    if found := next((place for place in (whole, *whole.parents) if place.exists()), None):
        return found
    raise NotWritten(f"{whole} cannot be written, because there is no drive {whole.anchor}; choose another folder")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends without an error, it becomes `path`.

    Missing folders are created. What a killed process left of the same file is removed.

    Raises:
        NotWritten: the disk is full or not writable; an existing file is unchanged.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{_UNFINISHED}")
    with _failures_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"{_literal(path.name)}.*{_UNFINISHED}"):
            leftover.unlink(missing_ok=True)
        try:
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors lets only the owner read it, but a server may run as another user
            flush(part)
            os.replace(part, path)
            flush(path.parent)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write to; when the block ends without an error, it becomes the new folder `path`.

    Raises:
        NotWritten: the disk is full or not writable.
    """
    part = path.with_name(f"{path.name}{_UNFINISHED}")
    with _failures_named(path):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            yield part
            os.replace(part, path)
            flush(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """Turn errors of the disk into one that names the file."""
    try:
        yield
    except NotWritten:
        raise
    except (OSError, SafetensorError) as error:
        raise NotWritten(
            f"{path} could not be written ({error}); free space on that disk or correct its permissions"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; raises what `written` raises."""
    with written(path) as part:
        part.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders; its journal secures renames
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _literal(name: str) -> str:
    """Return a glob pattern that matches only this name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
