"""Wiring mistakes that only the graph of a run shows."""

from collections.abc import Mapping

from ..notes import warn

MODEL, CONDITIONING = 0, 1  # outputs of TeEFusion Conditioning


def warn_if_model_is_unused(prompt: Mapping, kind: str) -> None:
    """Warn when the CONDITIONING of TeEFusion Conditioning is connected and no MODEL of such a node is.

    Args:
        prompt: graph of the run, node id -> {"class_type", "inputs"}, as the host gives it.
        kind: node id of the class.
    """
    fusing = {number for number, node in prompt.items() if node["class_type"] == kind}
    values = [value for node in prompt.values() for value in node["inputs"].values()]
    links = [value for value in values if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)]
    used = {output for node, output in links if node in fusing}
    if CONDITIONING in used and MODEL not in used:
        warn("MODEL is not connected, so the sampler ignores guidance; connect MODEL to the sampler too.")
