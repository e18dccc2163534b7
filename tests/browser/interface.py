"""ComfyUI's interface as a person uses it: type, drag, press Run, read.

Positions are pixels of the page unless a name says `graph`.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from playwright.sync_api import Browser, Error, Page
from runner.places import PACK
from runner.server import Server

SIZE = {"width": 1600, "height": 900}
SETTINGS = {
    "Comfy.Locale": "en", "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False,
    "Comfy.Minimap.Visible": False, "Comfy.Workflow.Persist": False, "Comfy.VersionCompatibility.DisableWarnings": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.RightSidePanel.IsOpen": False,
}  # fmt: skip
START_MS, WAIT_MS, CLICK_MS, RUN_MS = 300_000, 60_000, 5_000, 400_000
# what the interface says of itself: files that a new user has not got, the English help page under a second name,
# addresses outside this machine
OF_THE_HOST = re.compile(
    r"/(userdata|docs/\w+/en\.md|user\.css|favicon\.ico)|Content Security Policy|Fetch API cannot load|Failed to fetch"
    r"|ERR_NAME_NOT_RESOLVED|ERR_BLOCKED_BY_CSP|primevue/autocomplete"
)
EMPTY = {
    **{"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "config": {}, "version": 0.4},
    "extra": {"ds": {"scale": 0.7, "offset": [100, 150]}},
}
WATCH_RUNS = """() => {
    window.runEnds = []
    window.previews = 0
    app.api.addEventListener('b_preview', () => previews += 1)
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, event => runEnds.push({ kind, ...event.detail }))
}"""
OFFERS = ".comfy-vue-node-search-container [role=option], [data-testid=result-item]"
FIND_OFFER = """([offers, name]) => [...document.querySelectorAll(offers)]
    .find(offer => offer.innerText.split('\\n')[0].trim() === name)"""
ON_PAGE = """([x, y]) => {
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y])
    const canvas = app.canvas.canvas.getBoundingClientRect()
    return [left + canvas.left, top + canvas.top]
}"""


class Interface:
    """One page of the interface, with what went wrong in it."""

    def __init__(self, page: Page, shots: Path, way: str):
        self.page, self.shots, self.way = page, shots, way
        self.errors: list[str] = []
        self.loads = 0
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.errors.append(f"{error}"))
        page.on("console", self._heard)

    def _heard(self, message) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and not OF_THE_HOST.search(text):
            self.errors.append(text)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Empty the canvas; an error in the page during the block fails it."""
        self.empty()
        self.errors.clear()
        yield
        assert not self.errors, self.errors
        assert not (said := self.alerts()), said

    def forgive(self, expected: str) -> None:
        """Take an expected error from those that fail the test; it must be there."""
        rest = [error for error in self.errors if not re.search(expected, error)]
        assert len(rest) < len(self.errors), (expected, self.errors)
        self.errors[:] = rest

    def alerts(self) -> list[str]:
        return self.page.locator(".p-toast-message-warn, .p-toast-message-error").all_inner_texts()

    def version(self) -> tuple[int, int]:
        major, minor, *_ = self.page.evaluate("() => __COMFYUI_FRONTEND_VERSION__").split(".")
        return int(major), int(minor)

    # the canvas

    def load(self, workflow: dict) -> None:
        self.loads += 1  # a name that was there before brings its pictures back
        self.page.evaluate(
            "([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, f"shown {self.loads}"]
        )
        self.settle()

    def empty(self) -> None:
        """Close what is open, put nothing on the canvas, at a zoom that leaves room."""
        for _ in range(3):
            self.page.keyboard.press("Escape")
        self.load(EMPTY)

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => { app.canvas.draw(true, true); return new Promise(requestAnimationFrame) }")

    def nodes(self) -> list[dict]:
        """Return the nodes: id, type, whether the type is known, widget names with values."""
        return self.page.evaluate(
            """() => app.graph.nodes.map(node => ({
                id: node.id, type: node.type, title: node.title,
                known: node.type in LiteGraph.registered_node_types,
                widgets: (node.widgets ?? []).map(widget => [widget.name, widget.value]),
            }))"""
        )

    def overlapping(self) -> list[list[str]]:
        """Return pairs of titles of nodes that lie on one another as they are drawn, by more than a hair."""
        return self.page.evaluate(
            """() => {
                const bounds = app.graph.nodes.map(node => {
                    const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
                    const [x, y, width, height] = node.boundingRect
                    return [node.title, drawn ?? new DOMRect(x, y, width, height)]
                })
                const apart = (one, other) => one.right < other.left + 2 || one.bottom < other.top + 2
                return bounds.flatMap(([title, one], index) => bounds.slice(index + 1)
                    .filter(([_, other]) => !apart(one, other) && !apart(other, one)).map(([name]) => [title, name]))
            }"""
        )

    def node(self, kind: str):
        """Return the id of the newest node of a type, or of a title."""
        return [node["id"] for node in self.nodes() if kind in (node["type"], node["title"])][-1]

    def set_widget(self, title: str, name: str, value) -> None:
        """Give a widget of every node with this title another value."""
        changed = self.page.evaluate(
            """([title, name, value]) => app.graph.nodes.filter(node => node.title === title)
                .flatMap(node => node.widgets).filter(widget => widget.name === name)
                .map(widget => { widget.value = value; widget.callback?.(value) }).length""",
            [title, name, value],
        )
        assert changed, (title, name)

    # what a person does

    def search(self, text: str, wanted: Iterable[str], at: tuple[float, float] = (880, 500)) -> list[str]:
        """Open the search at an empty place, type; wait until it offers the wanted names; return all offers."""
        for _ in range(3):
            self.page.mouse.dblclick(*at, delay=5)
            self._search_box().press_sequentially(text)
            if self._search_box().is_visible() and self._search_box().input_value() == text:
                break
            self.page.keyboard.press("Escape")  # on a slow machine the box may close under the typing
        for name in wanted:
            self.page.wait_for_function(FIND_OFFER, arg=[OFFERS, name])
        return [offer.split("\n")[0].strip() for offer in self.page.locator(OFFERS).all_inner_texts()]

    def drop(self, name: str, at: tuple[float, float]) -> None:
        """Find a node by its whole name, put it at an empty place."""
        before = len(self.nodes())
        self.search(name, [name], at)
        hangs_on_pointer = self.page.get_by_role("search").count() > 0  # in newer interfaces, until a click
        self._choose(name)
        if hangs_on_pointer:
            self.page.mouse.click(*at)
        self.page.wait_for_function("before => app.graph.nodes.length === before + 1", arg=before)
        assert self.nodes()[-1]["title"] == name
        self.settle()

    def _choose(self, name: str) -> None:
        for _ in range(5):
            offer = self.page.wait_for_function(FIND_OFFER, arg=[OFFERS, name]).as_element()
            try:
                offer.click(timeout=CLICK_MS)
                return self._search_box().wait_for(state="hidden", timeout=CLICK_MS)
            except Error:
                continue  # the list follows the typing late: it was drawn anew before or under the click
        raise AssertionError(f"{name} could not be chosen")

    def close_search(self) -> None:
        self.page.keyboard.press("Escape")
        self._search_box().wait_for(state="hidden")

    def _search_box(self):
        older = self.page.locator(".comfy-vue-node-search-container input[type=text]")
        return older.or_(self.page.locator("[role=search] input[role=combobox]")).first

    def wire(self, origin, output: str, target, socket: str) -> None:
        """Drag from an output to an input, both by their names."""
        start, end = self.slot(origin, "output", output), self.slot(target, "input", socket)
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        self.page.mouse.move(*end, steps=3)
        self.page.mouse.up()
        self.page.wait_for_function(
            "([id, socket]) => app.graph.getNodeById(id).inputs.find(input => input.name === socket).link != null",
            arg=[target, socket],
        )

    def slot(self, node, side: str, name: str) -> list[float]:
        graph = self.page.evaluate(
            """([id, side, name]) => {
                const node = app.graph.getNodeById(id)
                const slots = side === 'input' ? node.inputs : node.outputs
                return [...node.getConnectionPos(side === 'input', slots.findIndex(slot => slot.name === name))]
            }""",
            [node, side, name],
        )
        return self.page.evaluate(ON_PAGE, graph)

    def widget(self, node, name: str) -> list[float]:
        """Return where the middle of a widget is that the canvas draws."""
        graph = self.page.evaluate(
            """([id, name]) => {
                const node = app.graph.getNodeById(id)
                const widget = node.widgets.find(widget => widget.name === name)
                return [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]
            }""",
            [node, name],
        )
        return self.page.evaluate(ON_PAGE, graph)

    def tooltip(self, at: list[float]) -> str:
        """Rest the pointer; return the tooltip that comes."""
        self.page.mouse.move(at[0] - 4, at[1])
        self.page.mouse.move(*at)
        shown = self.page.locator(".node-tooltip")
        shown.wait_for()
        return shown.inner_text()

    def select(self, node) -> None:
        self.page.evaluate("id => app.canvas.selectNodes([app.graph.getNodeById(id)])", node)

    def press_run(self) -> None:
        self.page.evaluate("() => { runEnds.length = previews = 0 }")
        self.page.locator("[data-testid=queue-button] button, button[data-testid=queue-button]").first.click()

    def error(self) -> str:
        folded = self.page.get_by_test_id("error-overlay-see-errors")  # newer interfaces unfold it in a panel
        self.page.locator("[role=dialog]").or_(folded).first.wait_for()
        if folded.count():
            folded.click()
        return self.page.locator("[role=dialog]").or_(self.page.get_by_test_id("properties-panel")).first.inner_text()

    def run(self, timeout_ms: int = RUN_MS) -> dict:
        self.press_run()
        self.page.wait_for_function("() => runEnds.length > 0", timeout=timeout_ms)
        return self.page.evaluate("() => runEnds[0]")

    def pictures(self) -> dict[str, list[str]]:
        """Return the addresses of the pictures that nodes show, by the nodes' titles."""
        return self.page.evaluate(
            """() => Object.fromEntries(app.graph.nodes.filter(node => app.nodeOutputs[node.id]?.images).map(node => [
                node.title,
                app.nodeOutputs[node.id].images.map(image => '/view?' + new URLSearchParams(image)),
            ]))"""
        )

    def shot(self, name: str, *, whole: bool = False) -> None:
        """Keep a picture of the page for a person to look at; `whole` fits the graph in first."""
        if whole:
            self.page.evaluate(
                """async () => {
                    app.canvas.deselectAll()
                    await app.extensionManager.setting.set('LiteGraph.Canvas.MinFontSizeForLOD', 0)
                    await app.extensionManager.command.execute('Comfy.Canvas.FitView')
                }"""
            )
            self.page.wait_for_timeout(500)  # the way there is animated
        self.settle()
        self.page.screenshot(path=self.shots / f"{name}.png", animations="disabled")


@contextlib.contextmanager
def opened(browser: Browser, server: Server, shots: Path, settings: dict) -> Iterator[Interface]:
    """Open the interface as a new user's, with some settings of it."""
    with browser.new_context(viewport=SIZE) as context:
        for key, value in (SETTINGS | settings).items():
            answer = context.request.post(f"{server.url}/api/settings/{key}", data=json.dumps(value))
            assert answer.ok, (key, answer.text())
        # the advertisement for the other way to draw nodes
        context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        page = context.new_page()
        shown = Interface(page, shots, "vue" if settings.get("Comfy.VueNodes.Enabled") else "classic")
        page.goto(server.url)
        page.wait_for_function("() => window.app?.graph && app.extensionManager", timeout=START_MS)
        page.evaluate(WATCH_RUNS)
        page.wait_for_timeout(500)
        assert not [error for error in shown.errors if PACK in error], shown.errors
        yield shown
