"""Which custom node pack a function or an error comes from."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType

OURS = Path(__file__).resolve().parents[2]
HOST_FOLDERS = ("comfy", "comfy_extras")


def plain(function: Callable) -> Callable:
    """Return the function behind decorators, partials and bound methods; an object that can be called stays."""
    while True:
        inner = inspect.unwrap(function)
        inner = inner.func if isinstance(inner, functools.partial) else inner
        inner = inner.__func__ if isinstance(inner, MethodType) else inner
        if inner is function:
            return function
        function = inner


def described(function: Callable) -> str:
    """Return a function as users can find it: the name of its node and pack, then its own name."""
    found = plain(function)
    named = found if hasattr(found, "__qualname__") else type(found)
    code = getattr(found, "__code__", None)
    file = code.co_filename if code else getattr(sys.modules.get(named.__module__), "__file__", None)
    where = pack_of(file or "") or named.__module__
    return f"{_node_of(named)} of {where} (function {named.__qualname__})"


def pack_of(file: str) -> str:
    """Return the folder in custom_nodes that holds a file, "ComfyUI" for its own files, or an empty text."""
    parts = Path(file).parts
    if "custom_nodes" in parts[:-1]:
        return parts[len(parts) - parts[::-1].index("custom_nodes")]
    return "ComfyUI" if set(parts) & set(HOST_FOLDERS) else ""


def foreign_pack(error: BaseException) -> str:
    """Return the other pack in whose code an error was raised last; empty if no other pack took part."""
    found, frame = "", error.__traceback__
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if (pack := pack_of(file)) not in ("", "ComfyUI") and not Path(file).resolve().is_relative_to(OURS):
            found = pack
        frame = frame.tb_next
    return found


def _node_of(function) -> str:
    """Return the display name of the node that defines a function, else the outermost name around the function."""
    outer = function.__qualname__.partition(".")[0]
    host = vars(sys.modules["nodes"]) if "nodes" in sys.modules else {}
    for node_id, node in host.get("NODE_CLASS_MAPPINGS", {}).items():
        if (node.__module__, node.__qualname__) == (function.__module__, outer):
            return host["NODE_DISPLAY_NAME_MAPPINGS"].get(node_id, node_id)
    return outer
