"""Student and teacher in one box each, found as nodes are."""

import json

import pytest
from runner.places import ROOT

BOXES = {
    path.stem: json.loads(path.read_bytes().decode("ascii")) for path in sorted((ROOT / "subgraphs").glob("*.json"))
}
PROMPT = "a large red circle on a white background"
LOADER, EMPTY = "Load Demo Model", "EmptySD3LatentImage"
SOCKETS = [(LOADER, "CLIP", "clip"), (LOADER, "VAE", "vae"), (EMPTY, "LATENT", "latent_image")]
WIDGETS = {
    "TeEFusion Student": {"text": PROMPT, "guidance": 2.5, "seed": 7, "steps": 9},
    "TeEFusion Teacher": {"text": PROMPT, "cfg": 3.5, "inversion_cfg": 0.5, "seed": 7, "steps": 9},
}


def widgets(ui, name):
    """Return the values of a box by the names of its widgets."""
    (box,) = (node for node in ui.nodes() if node["title"] == name)
    return dict(box["widgets"])


@pytest.mark.parametrize("name", BOXES)
def test_a_box_has_its_widgets_and_keeps_their_values_in_a_saved_workflow(each_ui, name):
    each_ui.drop(name, (480, 200))
    lowest = each_ui.slot(each_ui.node(name), "input", "latent_image")[1]
    each_ui.page.wait_for_function(
        "lowest => [...document.querySelectorAll('textarea')].some(area => area.getBoundingClientRect().top > lowest)",
        arg=lowest,
    )
    assert list(widgets(each_ui, name)) == list(WIDGETS[name])
    for widget, value in WIDGETS[name].items():
        each_ui.set_widget(name, widget, value)
    each_ui.shot(f"box_dropped_{name.replace(' ', '_')}_{each_ui.way}")
    each_ui.load(json.loads(each_ui.page.evaluate("() => JSON.stringify(app.graph.serialize())")))
    assert widgets(each_ui, name) == WIDGETS[name]


@pytest.mark.parametrize("name", BOXES)
def test_a_subgraph_samples_what_is_typed_into_it(ui, is_red_on_white, name):
    ui.drop(LOADER, (110, 200))
    ui.drop(EMPTY, (110, 450))
    ui.drop(name, (480, 200))
    ui.drop("Preview Image", (900, 200))
    box = ui.node(name)
    ui.wire(ui.node(LOADER), "MODEL", box, "model")
    for origin, output, socket in SOCKETS:
        ui.wire(ui.node(origin), output, box, socket)
    ui.wire(box, "IMAGE", ui.node("Preview Image"), "images")
    ui.set_widget(LOADER, "variant", "student" if "Student" in name else "base")
    for side in ("width", "height"):
        ui.set_widget(EMPTY, side, 64)
    ui.set_widget(name, "steps", 8)
    ui.set_widget(name, "seed", 1)
    ui.set_widget(name, "text", PROMPT)
    assert ui.run()["kind"] == "execution_success"
    ui.page.wait_for_timeout(1500)  # notes come again after the run
    ui.shot(f"box_{name.replace(' ', '_')}")
    assert ("forward passes" in str(widgets(ui, name))) == ("Teacher" in name), "the cost of the node inside"
    (address,) = ui.pictures()["Preview Image"]
    assert is_red_on_white(address)


@pytest.mark.parametrize("name", BOXES)
def test_a_box_has_the_names_by_which_it_is_found(name):
    (subgraph,), (node,) = BOXES[name]["definitions"]["subgraphs"], BOXES[name]["nodes"]
    assert node["title"] == subgraph["name"] == name and node["type"] == subgraph["id"]
    assert subgraph["description"] == BOXES[name]["extra"]["BlueprintDescription"]


def test_the_boxes_can_stand_in_for_one_another():
    inputs = [[item for item in box["nodes"][0]["inputs"] if "widget" not in item] for box in BOXES.values()]
    sockets = [[(item["name"], item["type"]) for item in items] for items in inputs]
    assert len(sockets) == 2 and sockets[0] == sockets[1]
