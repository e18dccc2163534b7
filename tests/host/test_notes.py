"""Notes are sent in the form that the server offers."""

import sys

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
