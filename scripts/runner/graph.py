"""Turn a workflow as the browser saves it into the prompt that the server runs.

The browser does the same when a person presses Run; so the shipped files are run as they are, not a twin of them.
"""

from collections.abc import Iterator
from typing import Any

from .stop import Stop

NOTES = ("Note", "MarkdownNote")
BROWSER_ONLY = ("Reroute", "PrimitiveNode")
"""Nodes that the browser resolves before it queues a prompt; no shipped workflow has one."""
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEED_NAMES = ("seed", "noise_seed")
AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")
"""Choices of the small widget that the browser adds below a seed; saved with the values, unknown to the server."""

NONE_LEFT = object()

Json = dict[str, Any]


def to_prompt(workflow: Json, object_info: Json) -> Json:
    """Return the API-format prompt: node id -> class_type, inputs, title."""
    if workflow.get("definitions", {}).get("subgraphs"):
        raise Stop("This workflow has subgraphs, which our runner does not unfold; run it in the browser.")
    # saved as [id, from node, from slot, to node, to slot, type]
    links = {link[0]: [str(link[1]), link[2]] for link in workflow.get("links", [])}
    prompt: Json = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in NOTES:
            continue
        if kind in BROWSER_ONLY or node.get("mode", 0):
            raise Stop(f"The node '{kind}' is a {' or '.join(BROWSER_ONLY)}, muted or bypassed; run it in the browser.")
        if kind not in object_info:
            raise Stop(f"This ComfyUI has no node '{kind}', which the workflow uses; install the pack that brings it.")
        info = object_info[kind]
        inputs = dict(_widget_values(node, info))
        inputs |= {slot["name"]: links[slot["link"]] for slot in node.get("inputs", []) if slot.get("link") in links}
        title = node.get("title") or info.get("display_name") or kind
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return prompt


def find(prompt: Json, title: str) -> str:
    found = [key for key, node in prompt.items() if node["_meta"]["title"] == title]
    if len(found) != 1:
        raise Stop(f"The workflow has {len(found)} nodes titled '{title}' where one is needed; restore the file.")
    return found[0]


def _declared(info: Json) -> Iterator[tuple[str, Any, Json]]:
    """Give name, type, options of every input, in the order of the node's widgets."""
    for group in ("required", "optional"):
        specs = info["input"].get(group, {})
        for name in info.get("input_order", {}).get(group, specs):
            spec = specs[name]
            yield name, spec[0], spec[1] if len(spec) > 1 else {}


def _widget_values(node: Json, info: Json) -> Iterator[tuple[str, Any]]:
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        yield from saved.items()
        return
    values = iter(saved)
    following = next(values, NONE_LEFT)
    for name, kind, options in _declared(info):
        is_widget = isinstance(kind, list) or kind in WIDGET_TYPES
        if not is_widget or options.get("forceInput"):
            continue
        if following is NONE_LEFT:
            # a widget that came after the file was saved: what the browser would show
            if options.get("default") is not None:
                yield name, options["default"]
            continue
        yield name, following
        following = next(values, NONE_LEFT)
        steered = kind == "INT" and (options.get("control_after_generate") or name in SEED_NAMES)
        uploads = any(options.get(key) for key in ("image_upload", "video_upload", "audio_upload"))
        if (steered and following in AFTER_GENERATE) or (uploads and following in ("image", "video", "audio")):
            following = next(values, NONE_LEFT)
