"""Check that a stored checkpoint belongs to the run that resumes from it."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointMismatch, InvalidConfig
from .processes import Processes

FORMAT = "teefusion-run/1"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same in all checkpoints of a run.

    Attributes:
        path: folder of the run, for messages.
        base: fingerprint of the base model.
        processes: the training processes, whose number must not change.
        accept_changes: names of settings that may differ.
    """

    path: Path
    base: str
    processes: Processes
    accept_changes: frozenset[str]

    def manifest(self, step: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the manifest of a checkpoint."""
        return {
            "format": FORMAT, "step": step, "base": self.base, "processes": self.processes.size,
            "settings": dict(settings),
        }  # fmt: skip

    def check(self, manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            CheckpointMismatch: the format, the base or the number of processes differs.
            InvalidConfig: a setting changed that is not in `accept_changes`.
        """
        if manifest["format"] != FORMAT:
            raise CheckpointMismatch(
                f"run {self.path.name} has format {manifest['format']!r}, but this version reads {FORMAT!r}; "
                "resume with the version that started the run, or choose another run name"
            )
        if manifest["base"] != self.base:
            raise CheckpointMismatch(
                f"run {self.path.name} was trained on the base {manifest['base']}, but this model is {self.base}; "
                "connect the base of the run, or choose another run name"
            )
        if manifest["processes"] != self.processes.size:
            raise CheckpointMismatch(
                f"run {self.path.name} was started with {manifest['processes']} processes, but now there are "
                f"{self.processes.size}; start as many as before, or choose another run name"
            )
        _check_settings(self.path, manifest["settings"], json.loads(json.dumps(dict(settings))), self.accept_changes)


def _check_settings(
    path: Path, stored: Mapping[str, Any], given: Mapping[str, Any], accept_changes: Collection[str]
) -> None:
    absent = object()
    names = sorted(stored.keys() | given.keys())
    unknown = sorted(set(accept_changes) - set(names))
    if unknown:
        raise InvalidConfig(f"accept_changes has unknown names: {', '.join(unknown)}; allowed are {', '.join(names)}")
    changed = [name for name in names if stored.get(name, absent) != given.get(name, absent)]
    refused = [name for name in changed if name not in accept_changes]
    if refused:
        changes = ", ".join(
            f"{name} ({stored.get(name, 'not set')!r} -> {given.get(name, 'not set')!r})" for name in refused
        )
        raise InvalidConfig(
            f"run {path.name} was started with other settings: {changes}; restore them, list their names in "
            "accept_changes, or choose another run name"
        )
    for name in changed:
        log.info("%s: resuming with %s changed to %r", path, name, given.get(name))
