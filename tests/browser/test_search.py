"""Typing finds our nodes."""

import pytest
from runner.places import PACK

FUSION, TEACHER = "TeEFusion Conditioning", "W2SD Teacher Sampler"
WORDS = {
    **dict.fromkeys(("guidance", "cfg", "fast", "faster", "speed", "half", "negative", "one pass"), FUSION),
    **dict.fromkeys(("teacher", "w2sd"), TEACHER), "zigzag": "Z-Sampling (zigzag)", "sharpen": "DICE Sharpen",
    "student": "Load TeEFusion Student", "distill": "Distill Trainer", "report": "Guidance Report",
    "compare": "Compare Grid", "score": "Score Images",
}  # fmt: skip
"""Word that people type -> node that they look for."""


@pytest.fixture(scope="module")
def ours(server):
    info = server.get("/object_info")
    return {name: node for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK}"}


def test_every_node_is_found_by_its_name_dropped_on_the_canvas(ui, ours):
    assert len(ours) >= 10
    for name, node in ours.items():
        ui.empty()  # the larger ones leave no empty place for all
        ui.drop(node["display_name"], (500, 200))
        assert [dropped["type"] for dropped in ui.nodes()] == [name]
        ui.shot(f"search_dropped_{name}")


@pytest.mark.parametrize("word", WORDS)
def test_words_of_the_field_find_them(ui, ours, word, record_property):
    """Where the host knows aliases; an older one searches names alone."""
    knows_aliases = any("search_aliases" in node for node in ours.values())
    named = [node["display_name"] for node in ours.values() if word in node["display_name"].lower()]
    wanted = [WORDS[word]] if knows_aliases else named
    offers = ui.search(word, wanted)
    record_property("place in the list", {name: offers.index(name) + 1 for name in wanted})
    ui.shot(f"search_{word}")
    ui.close_search()
