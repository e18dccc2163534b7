"""What the interface says of our nodes: help, tooltips, errors."""

import json
import re

import pytest
from runner.places import ROOT

WORKFLOW = json.loads((ROOT / "workflows" / "01 Student beside teacher.json").read_text(encoding="utf-8"))
TRAINING = json.loads((ROOT / "workflows" / "06 Distill a student.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "zh")
KEEPS_TEXTS_OF_PACKS = (1, 35)
"""Interfaces before it lose the texts of every pack when they load a language other than English."""


@pytest.fixture(scope="module", params=LANGUAGES)
def speaking(request, open_page):
    return request.param, open_page(**{"Comfy.Locale": request.param})


def texts(language, ui):
    if ui.version() < KEEPS_TEXTS_OF_PACKS:
        language = "en"
    path = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))["TeEFusionConditioning"]


def test_a_tooltip_says_what_a_value_does(speaking):
    language, ui = speaking
    with ui.watched():
        ui.load(WORKFLOW)
        node = ui.node("TeEFusionConditioning")
        at_value, at_socket = ui.widget(node, "guidance"), ui.slot(node, "input", "null")
        expected = texts(language, ui)["inputs"]
        assert ui.tooltip(at_value) == expected["guidance"]["tooltip"]
        ui.shot(f"tooltip_{language}")
        assert ui.tooltip(at_socket) == expected["null"]["tooltip"]


def open_help(ui):
    """Return the help page of a node, opened as a person opens it."""
    ui.load(WORKFLOW)
    ui.select(ui.node("TeEFusionConditioning"))
    ui.page.locator("[data-testid=info-button]").click()
    return ui.page.locator(".node-help-content")


def test_help_opens_beside_the_node(speaking):
    language, ui = speaking
    page = ROOT / "web" / "docs" / ("TeEFusionConditioning.md" if language == "en" else "TeEFusionConditioning/zh.md")
    headings = [line.strip("# ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    with ui.watched():
        text = open_help(ui)
        text.get_by_role("heading", name=headings[-1]).wait_for()
        assert text.get_by_role("heading").all_inner_texts() == headings
        ui.shot(f"help_{language}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_shows_its_pictures(language, open_page):
    ui = open_page(**{"Comfy.Locale": language})  # a new page: in the other, help is open and hides the button
    with ui.watched():
        pictures = open_help(ui).locator("img")
        pictures.first.wait_for()
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            ui.page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
        ui.shot(f"help_picture_{language}")


def test_a_socket_without_a_wire_is_named(ui):
    ui.load(TRAINING)
    ui.page.evaluate("() => app.graph.nodes.find(node => node.type === 'DistillTrainer').disconnectInput(1)")
    ui.press_run()
    said = ui.error()
    ui.shot("error_before_the_run")
    # by its kind in an older frontend, by its title in a newer one
    assert re.search("Distill ?Trainer", said) and re.search("missing: guider|no connection.*guider", said, re.S), said
    ui.forgive("PromptExecutionError|400.*/prompt")


def test_a_run_that_fails_says_what_to_do(ui):
    ui.load(TRAINING)
    ui.set_widget("Distill Trainer", "prompts", "")
    ended = ui.run()
    assert ended["kind"] == "execution_error", ended
    said = ui.error()
    ui.shot("error_in_the_run")
    assert "Distill Trainer" in said and "prompts" in said, said
    assert "Traceback" not in said or "ERROR LOG" in said, said  # a newer frontend puts its log below
