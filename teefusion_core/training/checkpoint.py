"""The checkpoints of a training run on disk.

A checkpoint is a folder that appears whole or not at all:

    <root>/<run>/step-00000120/
        weights.safetensors ...     what the processes share, written by the first
        rank-0.safetensors ...      what each process has for itself
        checkpoint.json             step, base, settings, checksum of every file, seal

It is written under another name, flushed to the disk, then renamed; nothing in it can run code when it is opened.
"""

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import CheckpointMismatch, CheckpointNotSaved, InvalidConfig, ProcessFailed
from ..files.state_file import Tree, read_tree, write_tree
from ..files.tensor_file import flush
from .processes import Processes
from .run_identity import RunIdentity

_MANIFEST, _PARTS, _UNFINISHED = "checkpoint.json", ".safetensors", ".part"
_STEP = re.compile(r"step-(\d{8}|[1-9]\d{8,})")
_PART_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}|rank-\d+")
_LONGEST_NAME = 100
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A checkpoint as read.

    Attributes:
        step: finished steps.
        shared: trees that all processes share, by name; tensors on the CPU.
        own: the tree of this process.
    """

    step: int
    shared: dict[str, Tree]
    own: Tree


class CheckpointFolder:
    """The newest checkpoints of one run.

    Every process of the run makes one of its own on the same disk, then calls `save`, `load` at the same steps.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        base: str,
        described: Mapping[str, Any] | None = None,
        accept_changes: Collection[str] = (),
        keep: int = 3,
        processes: Processes | None = None,
    ):
        """Name a run; nothing is written before the first `save`.

        Args:
            root: folder of runs.
            name: of the run, one folder name.
            base: fingerprint of the base model.
            described: settings of the run that the loop does not know (teacher, rank ...), as JSON can hold them.
            accept_changes: names of settings that may differ from those of the stored run.
            keep: how many checkpoints stay, 1 or more.
            processes: who trains; by default those of torch.distributed.
        Raises:
            InvalidConfig: a name that is no plain folder name, leads out of root, or a keep below 1.
        """
        if keep < 1:
            raise InvalidConfig(f"keep is {keep}; keep one checkpoint or more")
        self.path = _inside(root, name)
        self.described, self.keep = dict(described or {}), keep
        self.processes = processes or Processes()
        self.identity = RunIdentity(self.path, base, self.processes, frozenset(accept_changes))
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending; one may turn out damaged when it is read."""
        if not self.path.is_dir():
            return []
        found = (_STEP.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, settings: Mapping[str, Any], shared: Mapping[str, Tree], own: Tree) -> None:
        """Write a checkpoint, whole or not at all, then drop the oldest.

        Args:
            step: finished steps.
            settings: of the loop; names other than those in `described`.
            shared: trees by part name (a-z, 0-9, _); those of the first process are written.
            own: tree of this process.
        Raises:
            CheckpointNotSaved: disk full, not writable, not shared by the processes; the ones before stay whole.
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
        """Read the newest whole checkpoint; a damaged one is told through `logging`, the one before it taken.

        Args:
            settings: of the loop, as for `save`.
        Returns:
            None where the run has no checkpoint yet.
        Raises:
            CheckpointMismatch: another base or number of processes, another format, or no checkpoint is whole.
            InvalidConfig: settings changed without being accepted.
        """
        steps = self.steps()
        for step in reversed(steps):
            stored, reason = None, "damaged for another process"
            try:
                stored = self._read(step, {**self.described, **settings})
            except _Damaged as damage:
                reason = str(damage)
            if not self.processes.any(stored is None):
                return stored
            self._damaged.add(step)
            log.warning("%s: checkpoint of step %d is damaged (%s), trying the one before", self.path, step, reason)
        if steps:
            raise CheckpointMismatch(
                f"{self.path} has {len(steps)} checkpoints, none of them whole; restore one from a backup, "
                "or start under another run name"
            )
        return None

    def sweep(self) -> None:
        """Remove what a killed run left unfinished; for who trains, not for who looks on."""
        if self.processes.first:
            for leftover in self.path.glob(f"step-*{_UNFINISHED}"):
                shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def _all_or_none(self, step: int) -> Iterator[None]:
        """Fail in every process if the disk fails one, or the others would wait for it forever."""
        try:
            with self.processes.all_or_none():
                yield
        except (OSError, SafetensorError, ProcessFailed) as error:
            raise CheckpointNotSaved(
                f"the checkpoint of step {step} could not be written to {self.path} ({error}); those before it are "
                "whole: make room on that disk or mend its rights, then start the run again to go on from them"
            ) from error

    def _seal(self, part: Path, step: int, settings: Mapping[str, Any]) -> None:
        """Write the manifest, last of all files."""
        missing = [f"rank-{rank}" for rank in range(self.processes.size) if not _file(part, f"rank-{rank}").is_file()]
        if missing:
            raise OSError(f"{missing[0]}{_PARTS} did not arrive; all processes need the same disk")
        files = {path.stem: _checksum(path) for path in sorted(part.iterdir())}
        manifest = {**self.identity.manifest(step, settings), "files": files}
        text = json.dumps({**manifest, "seal": _seal_of(manifest)}, indent=1, allow_nan=False)
        (part / _MANIFEST).write_text(text, encoding="utf-8")
        flush(part / _MANIFEST)
        flush(part)

    def _publish(self, part: Path, step: int) -> None:
        target = self.path / _folder_name(step)
        if target.exists():  # damaged, or the run would not be at this step again
            os.replace(target, target.with_name(f"{target.name}.old{_UNFINISHED}"))
        os.replace(part, target)
        self._damaged.discard(step)
        flush(self.path)
        flush(self.path.parent)

    def _prune(self, step: int) -> None:
        """Keep the newest that can be whole; later ones belong to a future that did not happen."""
        steps = self.steps()
        usable = [s for s in steps if s <= step and s not in self._damaged]
        try:
            for old in set(steps) - set(usable[-self.keep :]):
                path = self.path / _folder_name(old)
                # renamed first: killed halfway, it shall not look like a checkpoint
                os.replace(path, path.with_name(f"{path.name}.old{_UNFINISHED}"))
        except OSError as error:
            log.warning("%s: an old checkpoint could not be removed (%s)", self.path, error)
        self.sweep()

    def _read(self, step: int, settings: Mapping[str, Any]) -> Stored:
        folder = self.path / _folder_name(step)
        with _as_damage():
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest.pop("seal") != _seal_of(manifest):
                raise _Damaged(f"{_MANIFEST} is altered")
        self.identity.check(manifest, settings)
        own, shared = f"rank-{self.processes.rank}", {}
        with _as_damage():
            if manifest["step"] != step:
                raise _Damaged(f"the folder was renamed from step {manifest['step']}")
            for name, checksum in manifest["files"].items():
                if name == own or not name.startswith("rank-"):
                    if _checksum(_file(folder, name)) != checksum:
                        raise _Damaged(f"{name}{_PARTS} is cut or altered")
                    shared[name] = read_tree(_file(folder, name))
            return Stored(step, shared, shared.pop(own))


class _Damaged(Exception):
    """A checkpoint that is not what was written."""


@contextmanager
def _as_damage() -> Iterator[None]:
    """Whatever goes wrong while reading says that the files are not those that were written."""
    try:
        yield
    except (CheckpointMismatch, OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Damaged(str(error) or type(error).__name__) from error


def _inside(root: Path, name: str) -> Path:
    """Return the folder of a run, which is a child of root on any system.

    Raises:
        InvalidConfig: it is not.
    """
    plain = name.isprintable() and not set(name) & set('/\\:*?"<>|') and 0 < len(name) <= _LONGEST_NAME
    if not plain or name != name.strip(" .") or (root / name).resolve().parent != root.resolve():
        raise InvalidConfig(
            f"the run name {name!r} is no plain folder name; use up to {_LONGEST_NAME} letters, digits, spaces, "
            "'.', '_', '-' (no '/' or '\\', no '.' or space at either end, no link to another place)"
        )
    return root / name


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _file(folder: Path, name: str) -> Path:
    if not _PART_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a part; use a-z, 0-9, _")
    return folder / f"{name}{_PARTS}"


def _checksum(path: Path) -> str:
    """Tell accidents, not forgery: CRC-32 with the length, which costs less than reading the disk."""
    crc = length = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc, length = zlib.crc32(chunk, crc), length + len(chunk)
    return f"{crc:08x}-{length}"


def _seal_of(manifest: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"
