"""Pictures of nodes in the real interface: how a node is wired, what its graph makes, a whole template.

A wiring picture is cut from a shipped workflow: only the node and its neighbours stay, in columns, so that the text
is still legible in the narrow help panel.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from .chromium import FLAGS, find_chromium
from .comparison import read_workflow
from .graph import Json
from .help_wirings import FIRST_TEMPLATE, RESULTS, WIRINGS, Wiring
from .places import ROOT, WORKFLOWS
from .server import Server, make_base, running
from .stop import Stop, say
from .thumbnails import draw_columns

sys.path.insert(0, str(ROOT))  # first: other packages are called tests too

from tests.browser.interface import ON_PAGE, Interface, opened

IMAGES = ROOT / "web" / "docs" / "images"
INTERFACE, README = ROOT / "docs" / "interface.webp", "README"
ROOMY, SCREEN = {"width": 2400, "height": 2800}, {"width": 1366, "height": 768}
ZOOM = 1.5
WIDEST, RESULT_SIDE = 960, 640
"""Pixels: the help panel is at most 500 wide, on screens with up to two pixels for each of these."""
QUALITY = 80
OPTIONS = ("--preview-method", "none")
"""As ComfyUI starts by itself; with previews, a sampler keeps the blurred one of its last step."""
TRAINING_MS = 1_500_000
MARGIN = 12
SETTLE_MS = 1500
"""Nodes fetch their pictures after the run, and show their notes once more."""


# keep the named nodes without the wires inside a column, which would cross it; open those with a size, collapse the
# others; put them in columns, beside the sockets, which are at the top of a node
ARRANGE = """async ([columns, sizes, zoom]) => {
    const graph = app.graph, named = title => graph.nodes.find(node => node.title === title)
    const kept = columns.map(titles => titles.map(named))
    for (const other of [...graph.groups, ...graph.nodes]) if (!kept.flat().includes(other)) graph.remove(other)
    for (const column of kept) for (const node of column) node.inputs.forEach((input, slot) => {
        if (column.some(origin => origin.id === graph.getLink(input.link)?.origin_id)) node.disconnectInput(slot)
    })
    app.canvas.deselectAll()
    app.canvas.ds.scale = zoom
    for (const node of kept.flat()) {
        if (!!node.flags.collapsed === node.title in sizes) node.collapse(true)
        const [width, height] = sizes[node.title] ?? []
        if (width) node.setSize([width, Math.max(height, node.computeSize()[1])])
    }
    const frame = () => { app.canvas.draw(true, true); return new Promise(requestAnimationFrame) }
    await frame(); await frame()
    let left = 0
    for (const column of kept) {
        const width = Math.max(...column.map(node => node.boundingRect[2]))
        let top = 0
        for (const node of column) {
            const [x, y, own, tall] = node.boundingRect
            const [over, above] = [node.pos[0] - x, node.pos[1] - y]
            node.pos = [left + over + (column === kept.at(-1) ? 0 : width - own), top + above]
            top += tall + 24
        }
        left += width + 48
    }
    app.canvas.ds.offset = [200 / zoom, 200 / zoom]
    await frame(); await frame()
    const bounds = kept.flat().map(node => [...node.boundingRect])
    return [Math.min(...bounds.map(b => b[0])), Math.min(...bounds.map(b => b[1])),
        Math.max(...bounds.map(b => b[0] + b[2])), Math.max(...bounds.map(b => b[1] + b[3]))]
}"""


def make_pictures(comfyui: Path, chosen: list[str]) -> None:
    """Take the pictures of the chosen pages, or of all."""
    if unknown := set(chosen) - {README, *WIRINGS}:
        raise Stop(f"There is no help page {min(unknown)}; choose from {', '.join((README, *WIRINGS))}.")
    wanted = set(chosen) or {README, *WIRINGS}
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = make_base(Path(folder) / "base", probe=False)
        with running(comfyui, base, Path(folder) / "comfyui.log", options=OPTIONS) as server:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
            with opened(browser, server, Path(folder), {"Comfy.Graph.CanvasInfo": False}) as ui:
                _take_all(ui, server, wanted)


def _take_all(ui: Interface, server: Server, wanted: set[str]) -> None:
    if README in wanted:
        _save(_interface(ui), INTERFACE)
    ui.page.set_viewport_size(ROOMY)
    for badge in ("NodeSource", "NodeLifeCycle"):  # above a node, where they would cover wires
        ui.page.evaluate(f"() => app.extensionManager.setting.set('Comfy.NodeBadge.{badge}BadgeMode', 'None')")
    results = {name: result for name, result in RESULTS.items() if wanted & set(result[2])}
    for node, wiring in WIRINGS.items():
        if node not in wanted:
            continue
        _open(ui, wiring.workflow, wiring.graph, run=wiring.run)
        if wiring.run and wiring.workflow in results:  # before the nodes of other wirings go
            _save_result(ui, server, *results.pop(wiring.workflow)[:2])
        _save(_wiring(ui, wiring), IMAGES / f"{node}.webp")
    for workflow, (name, titles, _) in results.items():
        _open(ui, workflow, run=True)
        _save_result(ui, server, name, titles)


def _save(picture: Image.Image, target: Path) -> None:
    picture.save(target, quality=QUALITY, method=6)
    say(f"{target.name}: {picture.width} x {picture.height}, {target.stat().st_size / 1000:.0f} kB")


def _open(ui: Interface, workflow: str, graph: Json | None = None, *, run: bool) -> None:
    """Put a shipped workflow on the canvas, or a graph in API format, and run it."""
    if workflow:
        ui.load(read_workflow(WORKFLOWS / f"{workflow}.json"))
    else:
        ui.page.evaluate("graph => app.loadApiJson(graph, 'shown')", graph)
    if run:
        _run(ui, workflow)


def _run(ui: Interface, workflow: str) -> None:
    ended = ui.run(TRAINING_MS)
    if ended["kind"] != "execution_success":
        raise Stop(f"The workflow {workflow} failed: {ended.get('exception_message', ended['kind'])}")
    ui.page.wait_for_timeout(SETTLE_MS)


def _interface(ui: Interface) -> Image.Image:
    """Return the whole interface with the first template after its run, as a new user sees it."""
    ui.page.set_viewport_size(SCREEN)
    workflow = read_workflow(WORKFLOWS / f"{FIRST_TEMPLATE}.json")
    ui.page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, FIRST_TEMPLATE])
    _run(ui, FIRST_TEMPLATE)
    ui.page.mouse.move(SCREEN["width"] / 2, SCREEN["height"] - 5)  # away from buttons with tooltips
    ui.settle()
    return Image.open(io.BytesIO(ui.page.screenshot(animations="disabled"))).convert("RGB")


def _wiring(ui: Interface, wiring: Wiring) -> Image.Image:
    """Return the nodes of a wiring, cut out of the canvas, as wide as two pixels for each of the help panel."""
    left, top, right, bottom = ui.page.evaluate(ARRANGE, [wiring.columns, wiring.sizes, ZOOM])
    ui.page.wait_for_timeout(500)  # text fields follow their nodes a little later
    ui.settle()
    (x, y), (end_x, end_y) = (ui.page.evaluate(ON_PAGE, corner) for corner in ([left, top], [right, bottom]))
    clip = {"x": x - MARGIN, "y": y - MARGIN, "width": end_x - x + 2 * MARGIN, "height": end_y - y + 2 * MARGIN}
    picture = Image.open(io.BytesIO(ui.page.screenshot(clip=clip, animations="disabled"))).convert("RGB")
    picture.thumbnail((WIDEST, picture.height), Image.Resampling.LANCZOS)
    return picture


def _save_result(ui: Interface, server: Server, name: str, titles: tuple[str, ...]) -> None:
    """Keep what nodes show after the run: a lone picture as it is, others in columns."""
    shown = ui.pictures()
    images = {
        title.removesuffix(" images"): [Image.open(io.BytesIO(server.read(at))).convert("RGB") for at in shown[title]]
        for title in titles
    }
    [*columns] = images.values()
    picture = columns[0][0]
    if len(columns) > 1:
        picture = draw_columns({title: np.stack([np.asarray(one) for one in many]) for title, many in images.items()})
    picture.thumbnail((RESULT_SIDE, RESULT_SIDE), Image.Resampling.LANCZOS)
    _save(picture, IMAGES / f"result_{name}.webp")
