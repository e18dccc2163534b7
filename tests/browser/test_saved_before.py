"""A workflow that was saved before a node got another socket keeps its wires."""

from .interface import EMPTY


def _socket(name, kind, link=None, **more):
    return {"name": name, "type": kind, "link": link, **more}


def _node(number, kind, inputs, outputs, values):
    place = {"pos": [300 * number, 100], "size": [260, 150], "flags": {}, "order": number, "mode": 0, "properties": {}}
    return {"id": number, "type": kind, "inputs": inputs, "outputs": outputs, "widgets_values": values, **place}


# TeEFusion Conditioning without its input schedule, and guidance from another node
SAVED = {
    **EMPTY, "last_node_id": 2, "last_link_id": 1, "links": [[1, 1, 0, 2, 3, "FLOAT"]],
    "nodes": [
        _node(1, "PrimitiveFloat", [], [{"name": "FLOAT", "type": "FLOAT", "links": [1]}], [2.5]),
        _node(
            2, "TeEFusionConditioning",
            [_socket("model", "MODEL"), _socket("positive", "CONDITIONING"), _socket("null", "CONDITIONING"),
             _socket("guidance", "FLOAT", 1, widget={"name": "guidance"})],
            [{"name": kind, "type": kind, "links": []} for kind in ("MODEL", "CONDITIONING")],
            [3.0, "auto"],
        ),
    ],
}  # fmt: skip


def test_a_wire_to_a_widget_stays_where_it_was(each_ui):
    each_ui.load(SAVED)
    prompt = each_ui.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt["2"]["inputs"]["guidance"] == ["1", 0], prompt
