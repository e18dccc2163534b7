"""The checkpoints of a training run on disk.

A checkpoint is a folder that appears whole or not at all:

    <root>/<run>/step-00000120/
        weights.safetensors ...     state that all processes share, written by the first one
        rank-0.safetensors ...      state of one process each
        checkpoint.json             step, base, settings, checksum of every file, and seal

It is written under another name, flushed to the disk and then renamed. Opening it cannot run code.
"""

import json
import logging
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import CheckpointMismatch, CheckpointNotSaved, InvalidConfig, ProcessFailed
from ..files.output_file import flush
from ..files.state_file import Tree, read_tree, write_tree
from .processes import Processes
from .run_identity import RunIdentity

_MANIFEST, _PARTS, _UNFINISHED = "checkpoint.json", ".safetensors", ".part"
_STEP = re.compile(r"step-(\d{8}|[1-9]\d{8,})")
_PART_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}|rank-\d+")
_LONGEST_NAME = 100
_TAKEN = re.compile(rf"(con|prn|aux|nul|con(in|out)\$|(com|lpt)[\d\xb9\xb2\xb3])\s*(\..*)?|.*\{_PARTS}", re.IGNORECASE)
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was read.

    Attributes:
        step: number of finished steps.
        shared: trees that all processes share, by name, with tensors on the CPU.
        own: the tree of this process.
    """

    step: int
    shared: dict[str, Tree]
    own: Tree


class CheckpointFolder:
    """The newest checkpoints of one run.

    Every process creates its own instance on the same disk, and calls `save` and `load` at the same steps.

    Attributes:
        run: random name that all files of the run carry; known after the first `save` or `load`.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        base: str,
        described: Mapping[str, Any] | None = None,
        accept_changes: Collection[str] = (),
        keep: int = 2,
        processes: Processes | None = None,
    ):
        """Set up the folder of a run; nothing is written before the first `save`.

        Args:
            root: folder that contains all runs.
            name: name of the run, a plain folder name.
            base: fingerprint of the base model.
            described: further settings of the run that JSON can store, such as teacher and rank.
            accept_changes: names of settings that may differ from those of the stored run.
            keep: number of checkpoints to keep, 1 or more.
            processes: the training processes; by default those of torch.distributed.
        Raises:
            InvalidConfig: the name is not a plain folder name or leads out of root, or keep is below 1.
        """
        if keep < 1:
            raise InvalidConfig(f"keep is {keep}; keep 1 checkpoint or more")
        self.path = _inside(root, name)
        self.described, self.keep = dict(described or {}), keep
        self.processes = processes or Processes()
        self.identity = RunIdentity(self.path, base, self.processes, frozenset(accept_changes))
        self.run: str | None = None
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending; a checkpoint among them may be damaged."""
        if not self.path.is_dir():
            return []
        found = (_STEP.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def is_of_this_run(self, run: str | None) -> bool:
        """Return whether a file with this name of a run in its metadata comes from the run in this folder."""
        for step in reversed(self.steps()):
            with suppress(OSError, ValueError, LookupError):
                text = (self.path / _folder_name(step) / _MANIFEST).read_text(encoding="utf-8")
                return run is not None and json.loads(text)["run"] == run
        return False

    def save(self, step: int, settings: Mapping[str, Any], shared: Mapping[str, Tree], own: Tree) -> None:
        """Write a checkpoint atomically, then remove the oldest ones.

        Args:
            step: number of finished steps.
            settings: settings of the loop; their names differ from those in `described`.
            shared: trees by part name (a-z, 0-9, _); those of the first process are written.
            own: tree of this process.
        Raises:
            CheckpointNotSaved: the disk is full, not writable or not shared; earlier checkpoints are intact.
        """
        part, first = self.path / f"{_folder_name(step)}{_UNFINISHED}", self.processes.first
        try:
            with self._all_or_none(step):
                if first:
                    self.sweep()
                    part.mkdir(parents=True)
            with self._all_or_none(step):
                write_tree(_file(part, f"rank-{self.processes.rank}"), own)
                for name, tree in shared.items() if first else ():
                    write_tree(_file(part, name), tree)
            with self._all_or_none(step):
                if first:
                    self._seal(part, step, {**self.described, **settings})
                    self._publish(part, step)
        finally:
            if first:
                shutil.rmtree(part, ignore_errors=True)
        if first:
            self._prune(step)

    def load(self, settings: Mapping[str, Any]) -> Stored | None:
        """Read the newest intact checkpoint; damaged ones are logged and skipped.

        Args:
            settings: settings of the loop, as for `save`.
        Returns:
            The checkpoint, or None if the run has none yet.
        Raises:
            CheckpointMismatch: the base, number of processes or format differs, or all checkpoints are damaged.
            InvalidConfig: a setting changed that is not in `accept_changes`.
        """
        steps = self.steps()
        for step in reversed(steps):
            stored, reason = None, "another process could not read it"
            try:
                stored = self._read(step, {**self.described, **settings})
            except _Damaged as damage:
                reason = str(damage)
            if not self.processes.any(stored is None):
                return stored
            self._damaged.add(step)
            log.warning("%s: checkpoint of step %d is damaged (%s); trying the one before", self.path, step, reason)
        if steps:
            raise CheckpointMismatch(
                f"{self.path} has {len(steps)} checkpoints, and all of them are damaged; restore one from a "
                "backup, or choose another run name"
            )
        return None

    def sweep(self) -> None:
        """Remove unfinished checkpoints of a killed run; call this only from the training run itself."""
        if self.processes.first:
            for leftover in self.path.glob(f"step-*{_UNFINISHED}"):
                shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def _all_or_none(self, step: int) -> Iterator[None]:
        """Fail in every process if writing fails in one; otherwise the others would wait for it forever."""
        try:
            with self.processes.all_or_none():
                yield
        except (OSError, SafetensorError, ProcessFailed) as error:
            raise CheckpointNotSaved(
                f"the checkpoint of step {step} could not be written to {self.path} ({error.__cause__ or error}); "
                "earlier ones are intact. Free space on that disk or correct its permissions, then start the run again "
                "to resume it"
            ) from error

    def _seal(self, part: Path, step: int, settings: Mapping[str, Any]) -> None:
        """Write the manifest after all other files."""
        missing = [f"rank-{rank}" for rank in range(self.processes.size) if not _file(part, f"rank-{rank}").is_file()]
        if missing:
            raise OSError(f"{missing[0]}{_PARTS} is missing; all processes must write to the same disk")
        files = {path.stem: _checksum(path) for path in sorted(part.iterdir())}
        self.run = self.run or secrets.token_hex(8)
        manifest = {**self.identity.manifest(step, settings), "run": self.run, "files": files}
        text = json.dumps({**manifest, "seal": _seal_of(manifest)}, indent=1, allow_nan=False)
        (part / _MANIFEST).write_text(text, encoding="utf-8")
        flush(part / _MANIFEST)
        flush(part)

    def _publish(self, part: Path, step: int) -> None:
        target = self.path / _folder_name(step)
        if target.exists():  # it is damaged: the run would have resumed from an intact one
            os.replace(target, target.with_name(f"{target.name}.old{_UNFINISHED}"))
        os.replace(part, target)
        self._damaged.discard(step)
        flush(self.path)
        flush(self.path.parent)

    def _prune(self, step: int) -> None:
        """Keep the newest usable checkpoints; remove damaged ones, and later ones of an abandoned attempt."""
        steps = self.steps()
        usable = [s for s in steps if s <= step and s not in self._damaged]
        try:
            for old in set(steps) - set(usable[-self.keep :]):
                path = self.path / _folder_name(old)
                # renamed first, so that a half-removed folder does not look like a checkpoint
                os.replace(path, path.with_name(f"{path.name}.old{_UNFINISHED}"))
        except OSError as error:
            log.warning("%s: an old checkpoint could not be removed (%s)", self.path, error)
        self.sweep()

    def _read(self, step: int, settings: Mapping[str, Any]) -> Stored:
        folder = self.path / _folder_name(step)
        with _as_damage():
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest.pop("seal") != _seal_of(manifest):
                raise _Damaged(f"{_MANIFEST} was altered")
        self.identity.check(manifest, settings)
        self.run = manifest["run"]
        own, shared = f"rank-{self.processes.rank}", {}
        with _as_damage():
            if manifest["step"] != step:
                raise _Damaged(f"the folder was renamed from step {manifest['step']}")
            for name, checksum in manifest["files"].items():
                if name == own or not name.startswith("rank-"):
                    if _checksum(_file(folder, name)) != checksum:
                        raise _Damaged(f"{name}{_PARTS} was cut or altered")
                    shared[name] = read_tree(_file(folder, name))
            return Stored(step, shared, shared.pop(own))


class _Damaged(Exception):
    """A checkpoint that differs from what was written."""


@contextmanager
def _as_damage() -> Iterator[None]:
    """Turn any error while reading into `_Damaged`."""
    try:
        yield
    except (CheckpointMismatch, OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Damaged(str(error) or type(error).__name__) from error


def _inside(root: Path, name: str) -> Path:
    """Return the folder of a run, a direct child of root on every operating system.

    Raises:
        InvalidConfig: the name does not give such a folder.
    """
    plain = name.isprintable() and not set(name) & set('/\\:*?"<>|') and 0 < len(name) <= _LONGEST_NAME
    taken = _TAKEN.fullmatch(name) is not None
    if taken or not plain or name != name.strip(" .") or (root / name).resolve().parent != root.resolve():
        raise InvalidConfig(
            f"the run name {name!r} is not a plain folder name; use at most {_LONGEST_NAME} letters, digits, spaces, "
            f"'.', '_' and '-', with no '.' or space at either end, no {_PARTS} at its end, no name of Windows such as "
            "CON or NUL, and no link to another folder"
        )
    return root / name


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _file(folder: Path, name: str) -> Path:
    if not _PART_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a part; use a-z, 0-9 and _")
    return folder / f"{name}{_PARTS}"


def _checksum(path: Path) -> str:
    """Return CRC-32 and length, which detect accidents but not forgery, and cost less than reading the disk."""
    crc = length = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc, length = zlib.crc32(chunk, crc), length + len(chunk)
    return f"{crc:08x}-{length}"


def _seal_of(manifest: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"
