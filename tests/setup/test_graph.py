"""From the saved workflow to the prompt that the server runs."""

import pytest
from runner.graph import find, to_prompt
from runner.stop import Stop

SEED = ["INT", {"control_after_generate": True}]
INFO = {
    "Load": {"input": {"required": {"file": [["a", "b"]]}}, "output": ["MODEL"], "display_name": "Load it"},
    "Patch": {"input": {"required": {"model": ["MODEL"], "amount": ["FLOAT", {"default": 1.0}]}}},
    "Sample": {
        "input": {
            "required": {"model": ["MODEL", {}], "seed": SEED, "steps": ["INT", {}]},
            "optional": {"mask": ["MASK", {}], "mode": ["COMBO", {"options": ["x", "y"], "default": "x"}]},
        },
        "input_order": {"required": ["model", "seed", "steps"], "optional": ["mask", "mode"]},
    },
    "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}], "after": ["INT", {}]}}},
}


def node(number, kind, values=(), inputs=(), mode=0, outputs=("MODEL",), **more):
    slots = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
    kinds = [{"name": type_, "type": type_} for type_ in outputs]
    return {
        "id": number, "type": kind, "widgets_values": list(values), "inputs": slots, "outputs": kinds, "mode": mode,
    } | more  # fmt: skip


def workflow(*nodes, links=()):
    return {"nodes": list(nodes), "links": [list(link) for link in links]}


def chain(middle, values=(7, "randomize", 20, "y")):
    return workflow(
        node(1, "Load", ["b"]),
        middle,
        node(3, "Sample", values, [("model", "MODEL", 11), ("mask", "MASK", None)]),
        links=[(10, 1, 0, 2, 0, "MODEL"), (11, 2, 0, 3, 0, "MODEL")],
    )


PATCH_IN = [("model", "MODEL", 10)]


def test_links_and_widgets_arrive_under_their_names():
    prompt = to_prompt(chain(node(2, "Patch", [0.5], PATCH_IN, title="Mine")), INFO)
    inputs = {"amount": 0.5, "model": ["1", 0]}
    assert prompt["2"] == {"class_type": "Patch", "inputs": inputs, "_meta": {"title": "Mine"}}
    assert prompt["1"]["_meta"]["title"] == "Load it"


@pytest.mark.parametrize(("values", "mode"), [((7, "randomize", 20, "y"), "y"), ((7, 20), "x")])
def test_the_choice_below_a_seed_is_no_input_saved_or_not(values, mode):
    prompt = to_prompt(chain(node(2, "Patch", [0.5], PATCH_IN), values=values), INFO)
    assert prompt["3"]["inputs"] == {"seed": 7, "steps": 20, "mode": mode, "model": ["2", 0]}


@pytest.mark.parametrize("middle", [{"mode": 2}, {"mode": 4}, {"kind": "Reroute"}, {"kind": "PrimitiveNode"}])
def test_what_only_the_browser_resolves_is_refused(middle):
    with pytest.raises(Stop, match="run it in the browser"):
        to_prompt(chain(node(2, **{"kind": "Patch", "values": [0.5], "inputs": PATCH_IN} | middle)), INFO)


def test_the_upload_button_is_no_input():
    prompt = to_prompt(workflow(node(1, "LoadImage", ["a.png", "image", 5])), INFO)
    assert prompt["1"]["inputs"] == {"image": "a.png", "after": 5}


def test_notes_are_left_out():
    assert to_prompt(workflow(node(1, "Note", ["hello"]), node(2, "MarkdownNote", ["# hi"])), INFO) == {}


def test_an_unknown_node_is_named():
    with pytest.raises(Stop, match="has no node 'Strange'"):
        to_prompt(workflow(node(1, "Strange")), INFO)


def test_a_title_must_stand_once():
    prompt = to_prompt(workflow(node(1, "Load", ["a"], title="T"), node(2, "Load", ["b"], title="T")), INFO)
    with pytest.raises(Stop, match="2 nodes titled 'T'"):
        find(prompt, "T")
    with pytest.raises(Stop, match="0 nodes titled 'U'"):
        find(prompt, "U")
