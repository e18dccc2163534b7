"""Student and teacher in one box each, found as nodes are."""

import json

import pytest
from runner.places import ROOT

BOXES = {
    path.stem: json.loads(path.read_bytes().decode("ascii")) for path in sorted((ROOT / "subgraphs").glob("*.json"))
}
PROMPT = "a large red circle on a white background"
LOADER, EMPTY = "Load Demo SD3", "EmptySD3LatentImage"
SOCKETS = [(LOADER, "CLIP", "clip"), (LOADER, "VAE", "vae"), (EMPTY, "LATENT", "latent_image")]


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
    ui.page.wait_for_timeout(300)
    ui.shot(f"box_{name.replace(' ', '_')}")
    (address,) = ui.pictures()["Preview Image"]
    assert is_red_on_white(address)


@pytest.mark.parametrize("name", BOXES)
def test_a_box_has_the_names_by_which_it_is_found(name):
    (subgraph,), (node,) = BOXES[name]["definitions"]["subgraphs"], BOXES[name]["nodes"]
    assert node["title"] == subgraph["name"] == name and node["type"] == subgraph["id"]
    assert subgraph["description"] == BOXES[name]["extra"]["BlueprintDescription"]


def test_the_boxes_can_stand_in_for_one_another():
    sockets = [[(item["name"], item["type"]) for item in box["nodes"][0]["inputs"]] for box in BOXES.values()]
    assert len(sockets) == 2 and sockets[0] == sockets[1]
