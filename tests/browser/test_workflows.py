"""Every shipped workflow opens; those of the embedded model run to pictures from the page."""

import io
import json
import re
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from runner.places import PACK, WORKFLOWS
from runner.thumbnails import runs_here

FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(WORKFLOWS.glob("*.json"))}
SHORT = {  # widget -> value that makes a run a matter of seconds
    "DistillTrainer": dict(
        steps=3, cache_size=1, images_per_trajectory=2, batch_size=2, teacher_steps=3, preview_every=1,
        name="browser_student", calibration=1,
    ),
    **dict.fromkeys(("KSampler", "W2SDTeacherSampler", "ZSampling", "BasicScheduler"), {"steps": 3}),
}  # fmt: skip
# what a node shows under its widgets after a run
SHOWN = {"W2SDTeacherSampler": "10 forward", "ZSampling": "12 forward", "DistillTrainer": "loras/browser_student"}
PICTURES = ("SaveImage", "PreviewImage", "LossGraphNode")
PICTURED = {path.stem for path in WORKFLOWS.glob("*.jpg")}
HERE = [name for name, workflow in FILES.items() if runs_here(workflow)]


def saved_values(workflow):
    return {str(node["id"]): node["widgets_values"] for node in workflow["nodes"]}


@pytest.mark.parametrize("name", FILES)
def test_it_opens(each_ui, name):
    each_ui.load(FILES[name])
    nodes = each_ui.nodes()
    assert [node["type"] for node in nodes if not node["known"]] == []
    assert not each_ui.page.locator(".comfy-missing-nodes, [data-testid=missing-node-card]").count()
    shown = {str(node["id"]): [value for _, value in node["widgets"]] for node in nodes}
    for number, values in saved_values(FILES[name]).items():
        # a button, a preview come after what is saved
        assert shown[number][: len(values)] == values, number
    # letters smaller than the interface draws leave empty boxes
    assert not each_ui.page.evaluate("() => app.canvas.low_quality")
    assert each_ui.overlapping() == []
    each_ui.shot(f"open_{name}_{each_ui.way}")
    each_ui.shot(f"whole_{name}_{each_ui.way}", whole=True)


@pytest.mark.parametrize("name", HERE)
def test_it_runs_to_pictures(ui, server, name):
    ui.load(FILES[name])
    assert ui.pictures() == {}, "pictures of another workflow"
    for node in FILES[name]["nodes"]:
        for widget, value in SHORT.get(node["type"], {}).items():
            ui.set_widget(node["title"], widget, value)
    ended = ui.run()
    assert ended["kind"] == "execution_success", ended
    shown = ui.pictures()
    expected = {node["title"] for node in FILES[name]["nodes"] if node["type"] in PICTURES}
    assert expected and expected <= set(shown), shown
    for address in (address for title in expected for address in shown[title]):
        picture_HW3 = np.asarray(Image.open(io.BytesIO(server.read(address))).convert("RGB"))
        assert picture_HW3.shape[0] >= 64 and picture_HW3.std() > 1, address
    if SHORT.keys() & {node["type"] for node in FILES[name]["nodes"]}:
        assert ui.page.evaluate("() => previews") > 0, "nothing was shown on the way"
    ui.page.wait_for_timeout(1500)  # nodes fetch their pictures, notes come again after the run
    for node in FILES[name]["nodes"]:
        if node["type"] in SHOWN:
            assert ui.page.get_by_text(SHOWN[node["type"]]).first.is_visible()
    ui.shot(f"run_{name}", whole=True)


def test_templates_offer_them_with_their_pictures(ui):
    """Under the name of the pack, as a new user finds them; a card opens its workflow."""
    page = ui.page
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK, exact=True).first.click()
    for name in FILES:
        card = page.locator(f"[data-testid='template-workflow-{name}']")
        card.scroll_into_view_if_needed()
        if name in PICTURED:
            page.wait_for_function(
                "name => [...document.querySelectorAll(`[data-testid='template-workflow-${name}'] img`)]"
                ".some(image => image.naturalWidth > 0 && !image.src.includes('default'))",
                arg=name,
            )
    ui.shot("templates")
    for name in FILES.keys() - PICTURED:
        ui.forgive(rf"404.*/{re.escape(quote(name))}\.jpg")
    page.locator(f"[data-testid='template-workflow-{HERE[0]}']").click()
    page.wait_for_function("number => app.graph.nodes.length === number", arg=len(FILES[HERE[0]]["nodes"]))
    ui.shot("templates_opened")


def test_templates_are_offered_where_a_host_serves_no_pictures(open_page):
    """A host may serve the workflows of a template folder only, and answer its pictures with 404."""
    ui = open_page()
    ui.page.route("**/workflow_templates/**/*.jpg", lambda route: route.fulfill(status=404))
    ui.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    ui.page.get_by_text(PACK, exact=True).first.click()
    card = ui.page.locator(f"[data-testid='template-workflow-{HERE[0]}']")
    card.get_by_text(HERE[0]).first.wait_for()
    ui.page.wait_for_timeout(500)  # pictures that the interface puts in place of the missing ones
    ui.shot("templates_without_pictures")
    assert not card.evaluate("card => [...card.querySelectorAll('img')].some(image => !image.naturalWidth)")
    card.click()
    ui.page.wait_for_function("number => app.graph.nodes.length === number", arg=len(FILES[HERE[0]]["nodes"]))


@pytest.mark.parametrize("size", [(1366, 768), (1920, 1080)])
def test_the_first_template_opens_with_its_result_in_view(each_ui, size):
    page, name = each_ui.page, HERE[0]
    before = page.viewport_size
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    try:
        each_ui.load(FILES[name])
        page.wait_for_timeout(500)
        assert not page.evaluate("() => app.canvas.low_quality")
        shown = page.evaluate("() => { app.canvas.ds.computeVisibleArea(); return [...app.canvas.ds.visible_area] }")
        for node in FILES[name]["nodes"]:
            left, top, width, height = page.evaluate("id => [...app.graph.getNodeById(id).boundingRect]", node["id"])
            inside = shown[0] <= left and left + width <= shown[0] + shown[2]
            assert inside and shown[1] <= top and top + height <= shown[1] + shown[3], (node["title"], shown)
        each_ui.run()
        page.wait_for_timeout(1500)
        each_ui.shot(f"first_{each_ui.way}_{size[0]}")
    finally:
        page.set_viewport_size(before)
