"""Connections in a graph as a browser sends it: node id -> {"class_type", "inputs"}."""

from __future__ import annotations

from collections.abc import Mapping


def links(node: object) -> list[tuple[str, object]]:
    """Return the node id and the output of every connection to a node."""
    if not isinstance(node, Mapping):
        return []
    values = dict(node.get("inputs") or {}).values()
    return [(str(value[0]), value[1]) for value in values if isinstance(value, list) and len(value) == 2]


def leading_to(node: str, graph: Mapping) -> dict[str, tuple]:
    """Return the part of a graph that decides what a node makes: kind and inputs by node id."""
    found: dict[str, tuple] = {}
    waiting = [node]
    while waiting:
        number = waiting.pop()
        made = graph.get(number)
        if isinstance(made, Mapping) and number not in found:
            # only these, because the host adds more when the node runs
            found[number] = made.get("class_type"), dict(made.get("inputs") or {})
            waiting += [origin for origin, _ in links(made)]
    return found
