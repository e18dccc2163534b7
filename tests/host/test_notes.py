"""Notes are sent in the form that the server offers."""

import sys
from types import SimpleNamespace

import pytest


class Older:
    """Sends texts as the tested hosts do."""

    def __init__(self):
        self.sent = []

    def send_progress_text(self, text, node_id, sid=None):
        self.sent.append((text, node_id, sid, None))


class Newer(Older):
    """Sends texts as a later host is to do."""

    def send_progress_text(self, text, node_id, prompt_id=None, sid=None):
        self.sent.append((text, node_id, sid, prompt_id))


@pytest.mark.parametrize(("server", "named"), [(Older(), None), (Newer(), "run")])
def test_a_text_goes_to_the_node_and_the_subgraphs_around_it(pack, server, named):
    notes = sys.modules[f"{pack.module.__name__}.teefusion_core.comfy_host.notes"]
    notes._send(server, "run", "7:1003", "done", "browser")
    assert server.sent == [("done", "7", "browser", named), ("done", "7:1003", "browser", named)]


def test_nodes_may_add_notes_while_a_graph_is_queued(pack, monkeypatch):
    """A run has a thread of its own."""
    notes = sys.modules[f"{pack.module.__name__}.teefusion_core.comfy_host.notes"]

    class Meanwhile(SimpleNamespace):
        warnings = ()

        @property
        def of_graph(self):
            notes._of("browser", f"new {len(shown)}")
            return ""

    shown = {("browser", name): Meanwhile() for name in ("7", "8")}
    handlers = []
    monkeypatch.setattr(notes, "_shown", shown)
    monkeypatch.setattr(notes, "_server", lambda: SimpleNamespace(add_on_prompt_handler=handlers.append))
    notes.watch_graphs(lambda graph: {})
    handlers[0]({"client_id": "browser", "prompt": {}})
    assert len(shown) == 4
