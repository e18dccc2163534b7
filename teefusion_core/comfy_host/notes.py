"""Notes on the node that is running: what its run cost, where a file is, what is probably a mistake.

A note is progress text, the only text that every frontend draws on any node, in both renderers. Newer frontends remove
it when the run ends, so it is sent once more then.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from dataclasses import dataclass, field

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
"""Seconds between two looks at the queue, and from the end of a run to its notes."""


@dataclass
class _Notes:
    """What one node shows in one run."""

    warnings: list[str] = field(default_factory=list)
    line: str = ""

    def text(self) -> str:
        return "\n\n".join([*self.warnings, self.line] if self.line else self.warnings)


_shown: dict[tuple[str, str], _Notes] = {}
"""Notes by run and node, kept until the run has ended."""


def tell(text: str) -> None:
    """Log a line and show it in the running node, where it replaces the line before."""
    log.info("TeEFusion: %s", text)
    _show(line=text)


def warn(text: str) -> None:
    """Log a warning and show it in the running node, above its line, once per run."""
    log.warning("TeEFusion: %s", text)
    _show(warning=f"TeEFusion warning: {text}")


def _show(*, line: str = "", warning: str = "") -> None:
    # there is no server if ComfyUI is used as a library, and no node outside of a run or without a browser
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    node = getattr(server, "last_node_id", None)
    if server is None or node is None:
        return
    run = getattr(server, "last_prompt_id", "")
    known = (run, node) in _shown
    notes = _shown.setdefault((run, node), _Notes())
    notes.line = line or notes.line
    if warning and warning not in notes.warnings:
        notes.warnings.append(warning)
    _send(server, run, node, notes.text(), server.client_id)
    if not known:
        asyncio.run_coroutine_threadsafe(_show_after_run(server, run, node, server.client_id), server.loop)


async def _show_after_run(server, run: str, node: str, client: str | None) -> None:
    try:
        while any(item[1] == run for item in server.prompt_queue.get_current_queue_volatile()[0]):
            await asyncio.sleep(POLL_SECONDS)
        await asyncio.sleep(POLL_SECONDS)
    finally:
        notes = _shown.pop((run, node))
    _send(server, run, node, notes.text(), client)


def _send(server, run: str, node: str, text: str, client: str | None) -> None:
    """Send a text to a node and to the subgraph nodes around it: of a path like 7:1003 one is on the canvas."""
    # a frontend whose server can name the run expects it in every text
    named = {"prompt_id": run} if "prompt_id" in inspect.signature(server.send_progress_text).parameters else {}
    parts = node.split(":")
    for depth in range(1, len(parts) + 1):
        server.send_progress_text(text, ":".join(parts[:depth]), sid=client, **named)
