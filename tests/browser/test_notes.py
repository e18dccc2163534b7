"""What a node says of its run can be read after the run, in every frontend and in both ways to draw nodes."""

import json

from runner.places import ROOT

WORKFLOW = json.loads((ROOT / "workflows" / "01 Student beside teacher.json").read_text(encoding="utf-8"))
CONNECT_PROMPT_AS_NULL = """() => {
    const [fusion, prompt] = ['TeEFusion Conditioning', 'Prompt'].map(
        title => app.graph.nodes.find(node => node.title === title))
    prompt.connect(0, fusion, fusion.inputs.findIndex(input => input.name === 'null'))
}"""
NOTES = {  # title of a node -> what it says
    "W2SD sampler": "2 steps, 6 forward passes",
    "TeEFusion Conditioning": "it is the prompt itself",
    "Student sampler": "TeEFusion warning: set cfg to 1: it is 4",
}
DRAWS_TEXTS_ABOVE_PICTURES = (1, 53)
"""Older interfaces have no room for both in a node that is drawn as elements."""


def test_costs_and_mistakes_stay_on_their_nodes(each_ui):
    each_ui.load(WORKFLOW)
    for sampler in ("Unguided sampler", "CFG sampler", "W2SD sampler", "Student sampler"):
        each_ui.set_widget(sampler, "steps", 2)
    each_ui.page.evaluate(CONNECT_PROMPT_AS_NULL)
    each_ui.set_widget("Student sampler", "cfg", 4)
    # other values in the second way to draw, so that the host reuses nothing
    each_ui.set_widget("W2SD sampler", "seed", len(each_ui.way))
    each_ui.set_widget("TeEFusion Conditioning", "guidance", len(each_ui.way) / 2)
    assert each_ui.run()["kind"] == "execution_success"
    each_ui.page.wait_for_timeout(1500)  # newer interfaces remove what nodes show when the run ends
    shown = {node["title"]: str(node["widgets"]) for node in each_ui.nodes()}
    assert {title: note for title, note in NOTES.items() if note not in shown[title]} == {}
    each_ui.shot(f"notes_{each_ui.way}", whole=True)
    if each_ui.way == "classic" or each_ui.version() >= DRAWS_TEXTS_ABOVE_PICTURES:
        assert [note for note in NOTES.values() if not each_ui.page.get_by_text(note).first.is_visible()] == []
