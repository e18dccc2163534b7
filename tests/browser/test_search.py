"""Typing finds our nodes."""

import pytest
from runner.places import PACK

ALIASED = ("guidance", "teefusion", "w2sd", "zigzag", "distill")


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


@pytest.mark.parametrize("word", ALIASED)
def test_words_of_the_field_find_them(ui, ours, word):
    """Where the host knows aliases; an older one searches names alone."""
    aliased = [node for node in ours.values() if word in " ".join(node.get("search_aliases") or ()).lower()]
    named = [node for name, node in ours.items() if word in f"{name} {node['display_name']}".lower()]
    wanted = {node["display_name"] for node in (*aliased, *named)}
    knows_aliases = any("search_aliases" in node for node in ours.values())
    assert wanted or not knows_aliases, f"no node of ours goes by {word}"
    ui.search(word, wanted)
    ui.shot(f"search_{word}")
    ui.close_search()
