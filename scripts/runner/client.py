"""Hand a prompt to a running ComfyUI, follow it to its pictures."""

import asyncio
import io
import json
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import numpy as np
from PIL import Image

from .graph import Json
from .server import Server
from .stop import Stop

Progress = Callable[[str, int, int], None]
"""Called with the title of the node at work, its step, its number of steps."""
LOOK_SECONDS = 1.0
SOON_SECONDS = 0.02
PREVIEW_IMAGE, NODE_TEXT = 1, 3
"""How the server marks a preview and the text of a node among its binary messages."""


@dataclass
class Run:
    """What one prompt gave."""

    prompt_id: str
    outputs: Json = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Node id -> seconds between its start and the next node's."""
    preview: bytes | None = None
    """The last picture that a node showed while it worked, as a file."""
    texts: list[tuple[float, str, str]] = field(default_factory=list)
    """(seconds since its node started, node id, text) of each line that a node showed."""


def run_prompt(server: Server, prompt: Json, on_progress: Progress | None = None) -> Run:
    """Queue a prompt in API format, wait for its end."""
    try:
        return asyncio.run(_run(server, prompt, on_progress))
    except (aiohttp.ClientError, ConnectionError) as error:
        # the process takes a moment to be gone after its sockets are
        time.sleep(LOOK_SECONDS)
        server.check_alive("while working")
        raise Stop(f"The connection to ComfyUI broke ({error}); see {server.log}, then run again.") from error


async def _run(server: Server, prompt: Json, on_progress: Progress | None) -> Run:
    client_id = uuid.uuid4().hex
    # no limit on time: a step on a CPU may take minutes
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        async with session.ws_connect(f"{server.url}/ws?clientId={client_id}", max_msg_size=0) as events:
            async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": client_id}) as answer:
                reply = await answer.json()
            if "prompt_id" not in reply:
                raise Stop(f"ComfyUI refused the workflow: {_complaints(reply, prompt)}.")
            run = Run(reply["prompt_id"])
            await _follow(server, events, prompt, run, on_progress)
        run.outputs = await _outputs(server, session, run.prompt_id)
    return run


async def _outputs(server: Server, session: aiohttp.ClientSession, prompt_id: str) -> Json:
    while True:
        async with session.get(f"{server.url}/history/{prompt_id}") as answer:
            history = await answer.json()
        if prompt_id in history:
            return history[prompt_id]["outputs"]
        # the server announces the end first, then writes the history
        await asyncio.sleep(SOON_SECONDS)


async def _follow(server: Server, events, prompt: Json, run: Run, on_progress: Progress | None) -> None:
    node, since = None, time.monotonic()
    while True:
        try:
            message = await events.receive(timeout=LOOK_SECONDS)
        except asyncio.TimeoutError:
            server.check_alive("while working")
            continue
        if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
            raise aiohttp.ClientConnectionError("it was closed")
        # a binary message is its kind, the picture's format, four bytes each, then a file
        if message.type is aiohttp.WSMsgType.BINARY:
            mark = int.from_bytes(message.data[:4], "big")
            if mark == PREVIEW_IMAGE:
                run.preview = message.data[8:]
            elif mark == NODE_TEXT:
                run.texts.append((time.monotonic() - since, *_node_text(message.data[4:])))
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data", {})
        if data.get("prompt_id") != run.prompt_id:
            continue
        if kind in ("executing", "execution_success"):
            if node is not None:
                run.seconds[node] = time.monotonic() - since
            node, since = data.get("node"), time.monotonic()
        if kind == "execution_success":
            return
        if kind in ("execution_error", "execution_interrupted"):
            title = prompt.get(data.get("node_id"), {}).get("_meta", {}).get("title", data.get("node_type"))
            raise Stop(f"The node '{title}' failed: {' '.join(data.get('exception_message', 'interrupted').split())}")
        if kind == "progress" and on_progress is not None:
            shown = prompt.get(data.get("node"), {}).get("_meta", {}).get("title", "")
            on_progress(shown, data["value"], data["max"])


def _node_text(data: bytes) -> tuple[str, str]:
    """Return the node id, which comes after its length, and the text."""
    end = 4 + int.from_bytes(data[:4], "big")
    return data[4:end].decode(), data[end:].decode()


def _complaints(reply: Json, prompt: Json) -> str:
    found = []
    for key, node in reply.get("node_errors", {}).items():
        title = prompt.get(key, {}).get("_meta", {}).get("title", key)
        found += [f"{title}: {error['message']} ({error['details']})" for error in node["errors"]]
    return "; ".join(found) or reply.get("error", {}).get("message", "no reason given")


def pictures(server: Server, run: Run, node: str) -> np.ndarray:
    """Return the saved pictures of a SaveImage or PreviewImage node, [B, H, W, 3] uint8."""
    files = run.outputs.get(node, {}).get("images", [])
    if not files:
        raise Stop(f"The workflow ran, but its node {node} saved no picture; see {server.log}.")
    read = [server.read(f"/view?{urllib.parse.urlencode(file)}") for file in files]
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in read])
