"""Notes on nodes: what a run cost, where a file is, what is probably a mistake.

A note is progress text, the only text that every frontend draws on any node, in both renderers. Newer frontends remove
it when the run ends, so it is sent once more then. A node that runs again without a mistake loses its old warning.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import comfy.model_management

from .prompt_graph import leading_to

T = TypeVar("T")
log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
"""Seconds between two looks at the queue, and from the end of a run to its notes."""
SECONDS_BETWEEN_LINES = 2.0
"""Seconds between two lines about one long computation."""
NOTHING = " "
"""What replaces an old text; the interface ignores an empty one."""
MOST_NODES = 1000
"""Number of nodes whose notes are kept; browsers that are gone are never reported."""


@dataclass
class _Notes:
    """What one node shows in one browser."""

    run: str = ""
    of_graph: str = ""
    warnings: list[str] = field(default_factory=list)
    warned_at: Mapping = field(default_factory=dict)
    """The part of the graph that led to the warnings."""
    line: str = ""
    sent: str = ""

    def text(self) -> str:
        return "\n\n".join(part for part in (self.of_graph, *self.warnings, self.line) if part)


_shown: dict[tuple[str | None, str], _Notes] = {}
"""Notes by browser and node."""
_followed: set[str] = set()
"""Runs whose notes are sent again at their end."""


def tell(text: str) -> None:
    """Log a line and show it in the running node, where it replaces the line before."""
    log.info("TeEFusion: %s", text)
    _show(line=text)


def warn(text: str) -> None:
    """Log a warning and show it in the running node, above its line, once per run."""
    log.warning("%s", _marked(text))
    _show(warning=_marked(text))


class Wait:
    """Tells how far a long computation in parts is, and lets the user cancel before each part."""

    def __init__(self, what: str, parts: int):
        """Start the clock; the first line comes with the first part.

        Args:
            what: what is done in one part, e.g. "encoding prompt"; if it is empty, no line is shown.
            parts: number of parts.
        """
        self.what, self.parts, self.part = what, parts, 0
        self.start, self.last_line = time.monotonic(), -SECONDS_BETWEEN_LINES

    def next(self, *_: object) -> None:
        """Tell that the next part begins; after the last one, only look for a cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.part += 1
        now = time.monotonic()
        if self.what and self.part <= self.parts and now - self.last_line >= SECONDS_BETWEEN_LINES:
            done = self.part - 1
            left = f", {duration((now - self.start) / done * (self.parts - done))} left" if done else ""
            tell(f"{self.what} {self.part} of {self.parts}{left}")
            self.last_line = now


def each(what: str, parts: Iterable[T]) -> Iterator[T]:
    """Yield each part of a long computation, and tell how far it is."""
    parts = list(parts)
    wait = Wait(what, len(parts))
    for part in parts:
        wait.next()
        yield part


def duration(seconds: float) -> str:
    """Return a time in minutes, or in seconds if it is short."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def begin() -> None:
    """Remove what the running node said in an earlier run."""
    _show()


def watch_graphs(find: Callable[[Mapping], Mapping[str, str]]) -> None:
    """Warn in nodes of a graph as soon as it is queued, also in nodes that will not run because nothing changed.

    Args:
        find: graph, node id -> {"class_type", "inputs"} -> warnings by node id.
    """
    server = _server()
    if server is None:
        return

    def on_prompt(data: dict) -> dict:
        client, found = data.get("client_id"), find(data.get("prompt") or {})
        for text in found.values():
            log.warning("%s", _marked(text))
        if client is not None:
            _forget_outdated(server, client, data.get("prompt") or {})
            # nodes of another thread add their notes meanwhile
            before = {node for (browser, node), kept in list(_shown.items()) if browser == client and kept.of_graph}
            for node in before | found.keys():
                notes = _of(client, node)
                notes.of_graph = _marked(found[node]) if node in found else ""
                _update(server, notes.run, node, client)
            if found:
                asyncio.ensure_future(_show_after_queue(server, client, list(found)))
        return data

    server.add_on_prompt_handler(on_prompt)


def _forget_outdated(server, client: str, graph: Mapping) -> None:
    """Remove warnings of earlier runs from nodes that will run again, because something before them changed.

    The node itself cannot remove them: without our model it runs without us.
    """
    for (browser, node), notes in list(_shown.items()):
        if browser == client and notes.warnings and notes.warned_at != leading_to(node, graph):
            notes.warnings = []
            _update(server, notes.run, node, client)


def _marked(warning: str) -> str:
    return f"TeEFusion warning: {warning}"


def _server():
    """Return the host's server; None if ComfyUI is used as a library."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _of(client: str | None, node: str) -> _Notes:
    if len(_shown) > MOST_NODES:
        _shown.clear()
    return _shown.setdefault((client, node), _Notes())


def _show(*, line: str = "", warning: str = "") -> None:
    server = _server()
    node = getattr(server, "last_node_id", None)
    if server is None or node is None:  # there is no node outside of a run
        return
    run, client = getattr(server, "last_prompt_id", ""), server.client_id
    notes = _of(client, node)
    if notes.run != run:
        notes.run, notes.warnings, notes.line = run, [], ""
    notes.line = line or notes.line
    if warning and warning not in notes.warnings:
        notes.warnings.append(warning)
        notes.warned_at = leading_to(node, _running_graph(server, run))
    _update(server, run, node, client)
    if notes.text() and run not in _followed:
        _followed.add(run)
        asyncio.run_coroutine_threadsafe(_show_after_run(server, run, client), server.loop)


def _update(server, run: str, node: str, client: str | None) -> None:
    """Send what a node shows, if it is something new."""
    notes = _of(client, node)
    if notes.sent != notes.text():
        notes.sent = notes.text()
        _send(server, run, node, notes.sent or NOTHING, client)


async def _show_after_run(server, run: str, client: str | None) -> None:
    while any(item[1] == run for item in server.prompt_queue.get_current_queue_volatile()[0]):
        await asyncio.sleep(POLL_SECONDS)
    await asyncio.sleep(POLL_SECONDS)
    _followed.discard(run)
    for (browser, node), notes in list(_shown.items()):
        if browser == client and notes.run == run and notes.text():
            _send(server, run, node, notes.text(), client)


def _items(server) -> list:
    """Return what runs and what waits."""
    running, waiting = server.prompt_queue.get_current_queue_volatile()
    return [*running, *waiting]


def _running_graph(server, run: str) -> Mapping:
    return next((item[2] for item in _items(server) if item[1] == run), {})


async def _show_after_queue(server, client: str, nodes: list[str]) -> None:
    """Send the notes of a graph again when nothing of its browser runs or waits."""
    await asyncio.sleep(POLL_SECONDS)  # the prompt is put into the queue after its handlers
    while any(item[3].get("client_id") == client for item in _items(server)):
        await asyncio.sleep(POLL_SECONDS)
    await asyncio.sleep(POLL_SECONDS)
    for node in nodes:
        notes = _of(client, node)
        if notes.text():
            _send(server, notes.run, node, notes.text(), client)


def _send(server, run: str, node: str, text: str, client: str | None) -> None:
    """Send a text to a node and to the subgraph nodes around it: of a path like 7:1003 one is on the canvas."""
    # a frontend whose server can name the run expects it in every text
    named = {"prompt_id": run} if "prompt_id" in inspect.signature(server.send_progress_text).parameters else {}
    parts = node.split(":")
    for depth in range(1, len(parts) + 1):
        server.send_progress_text(text, ":".join(parts[:depth]), sid=client, **named)
