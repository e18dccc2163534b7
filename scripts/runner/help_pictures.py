"""Pictures of nodes in the real interface: how a node is wired, what its graph makes, a whole template.

A wiring picture is cut from a shipped workflow: only the node and its neighbours stay, in columns, so that the text
is still legible in the narrow help panel.
"""

import io
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from .chromium import FLAGS, find_chromium
from .comparison import read_workflow
from .graph import Json
from .places import ROOT, WORKFLOWS
from .server import Server, make_base, running
from .stop import Stop, say
from .thumbnails import draw_columns

sys.path.insert(0, str(ROOT))  # first: other packages are called tests too

from tests.browser.interface import ON_PAGE, Interface, opened

IMAGES = ROOT / "web" / "docs" / "images"
INTERFACE, README = ROOT / "docs" / "interface.webp", "README"
FIRST_TEMPLATE = "01 Student beside teacher"
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


@dataclass(frozen=True)
class Wiring:
    """What a picture shows: the titles of the nodes, column by column, from a workflow or from a graph given here."""

    columns: tuple[tuple[str, ...], ...]
    sizes: dict[str, tuple[int, int]]
    """Title -> width and height of the nodes that are open; the others show their title only."""
    workflow: str = ""
    graph: Json = field(default_factory=dict)
    run: bool = True


def _node(kind: str, title: str, **inputs: object) -> Json:
    return {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}


# graphs that need files which only the user has; they are shown, not run
OWN_STUDENT = {
    "1": _node("TinySD3Loader", "Base model", variant="base"),
    "2": _node("CLIPTextEncode", "Prompt", clip=["1", 1], text="a large red circle"),
    "3": _node("CLIPTextEncode", "Empty prompt", clip=["1", 1], text=""),
    "4": _node("TeEFusionStudentLoader", "Load TeEFusion Student", model=["1", 0], student="my_student.safetensors"),
    "5": _node(
        "TeEFusionConditioning",
        "TeEFusion Conditioning",
        model=["4", 0],
        positive=["2", 0],
        null=["3", 0],
        guidance=3.0,
    ),
}
SHARPENER = {
    "1": _node("CheckpointLoaderSimple", "Model"),
    "2": _node("CLIPTextEncode", "Prompt", clip=["1", 1], text="a red fox in the snow"),
    "3": _node("CLIPTextEncode", "Empty prompt", clip=["1", 1], text=""),
    "4": _node(
        "DICESharpen", "DICE Sharpen", conditioning=["2", 0], null=["3", 0], model=["1", 0], alpha=1.0,
        sharpener="my_sharpener.safetensors",
    ),
    "5": _node("EmptyLatentImage", "Empty image"),
    "6": _node(
        "KSampler", "KSampler", model=["1", 0], positive=["4", 0], negative=["3", 0], latent_image=["5", 0], cfg=1.0,
        seed=1, control_after_generate="fixed",
    ),
}  # fmt: skip
METRICS = {
    "1": _node("VAEDecode", "VAE Decode"),
    "2": _node(
        "ScoreImages", "Score Images", images=["1", 0], prompts="a red fox in the snow\na bowl of oranges",
        clip="clip-vit-large-patch14.safetensors",
    ),
    "3": _node("PreviewAny", "Preview Any", source=["2", 0]),
}  # fmt: skip
PROMPTS, ENCODER, SAMPLER = ("Prompt", "Empty prompt"), (190, 80), (255, 0)
WIRINGS = {
    "TeEFusionConditioning": Wiring(
        (("Student model", *PROMPTS, "Three empty images"), ("TeEFusion Conditioning",), ("Student sampler",)),
        {"TeEFusion Conditioning": (285, 0), "Student sampler": SAMPLER}, FIRST_TEMPLATE, run=False,
    ),
    "TeEFusionStudentLoader": Wiring(
        (("Base model", *PROMPTS), ("Load TeEFusion Student",), ("TeEFusion Conditioning",)),
        {"Load TeEFusion Student": (310, 0), "TeEFusion Conditioning": (285, 0)}, graph=OWN_STUDENT, run=False,
    ),
    "TinySD3Loader": Wiring(
        (("Base model",), (*PROMPTS, "Four empty images"), ("CFG sampler",), ("Decode CFG",)),
        {"Base model": (210, 0), "Prompt": (210, 90), "CFG sampler": SAMPLER}, "03 W2SD beside CFG", run=False,
    ),
    "DistillTrainer": Wiring(
        (("Base model", "Teacher guidance", "Teacher sampler"), ("Distill Trainer",), ("Loss curve",)),
        {"Distill Trainer": (360, 0)}, "06 Distill a student", run=False,
    ),
    "W2SDTeacherSampler": Wiring(
        (("Base model", "Weak model", *PROMPTS, "Four empty images"), ("W2SD Teacher Sampler",), ("Decode W2SD",)),
        {"W2SD Teacher Sampler": (290, 0)}, "03 W2SD beside CFG",
    ),
    "ZSampling": Wiring(
        (("Base model", *PROMPTS, "Four empty images"), ("Z-Sampling",), ("Decode Z-Sampling",)),
        {"Z-Sampling": (290, 0)}, "04 Z-Sampling",
    ),
    "ReflectionGuider": Wiring(
        (("Base model", *PROMPTS),
         ("Reflection Guider", "Reflection Sampler", "Random noise", "Noise levels", "Four empty images"),
         ("Sampler of the parts",)),
        {"Reflection Guider": (270, 0), "Sampler of the parts": (210, 0)}, "04 Z-Sampling", run=False,
    ),
    "ReflectionSampler": Wiring(
        (("Reflection Guider", "Reflection Sampler", "Random noise", "Noise levels", "Four empty images"),
         ("Sampler of the parts",), ("Decode parts",)),
        {"Reflection Sampler": (250, 0), "Sampler of the parts": (210, 0)}, "04 Z-Sampling", run=False,
    ),
    "GuidanceReport": Wiring(
        (("Base model", "Student guidance", "Euler", "Noise levels", "Three empty images", *PROMPTS, "Teacher report"),
         ("Student report",), ("Plot",)),
        {"Student report": (260, 0), "Plot": (340, 300)}, "08 Guidance report",
    ),
    "CompareGrid": Wiring(
        (("Decode unguided", "Decode CFG", "Decode W2SD", "Decode student"), ("Compare Grid",), ("Result",)),
        {"Compare Grid": (270, 420), "Result": (360, 420)}, FIRST_TEMPLATE,
    ),
    "ScoreImages": Wiring(
        (("VAE Decode",), ("Score Images",), ("Preview Any",)), {"Score Images": (360, 280)}, graph=METRICS, run=False
    ),
    "DICESharpen": Wiring(
        (("Model", *PROMPTS, "Empty image"), ("DICE Sharpen",), ("KSampler",)),
        {"DICE Sharpen": (330, 0), "KSampler": SAMPLER}, graph=SHARPENER, run=False,
    ),
    "TextEmbeddingBlend": Wiring(
        (("Base prompt", "Added prompt", "Empty prompt", "Whole prompt"), ("Text Embedding Blend",),
         ("Cosines of the sum", "Sum sampler")),
        {"Base prompt": ENCODER, "Added prompt": ENCODER, "Whole prompt": ENCODER, "Text Embedding Blend": (250, 0),
         "Cosines of the sum": (230, 200)}, "09 Text arithmetic",
    ),
}  # fmt: skip
# workflow -> name of the file, titles of the nodes whose pictures it shows, ids of the nodes on whose pages it is
RESULTS = {
    FIRST_TEMPLATE: ("grid", ("Result",), ("CompareGrid", "TinySD3Loader")),
    "10 Student of 8 steps": ("student", ("Result",), ("TeEFusionConditioning",)),
    "03 W2SD beside CFG": ("w2sd", ("CFG images", "W2SD images"), ("W2SDTeacherSampler",)),
    "04 Z-Sampling": (
        "zigzag", ("CFG images", "Z-Sampling images"), ("ZSampling", "ReflectionGuider", "ReflectionSampler")
    ),
    "08 Guidance report": ("plot", ("Plot",), ("GuidanceReport",)),
    "06 Distill a student": ("own_student", ("Result",), ("DistillTrainer",)),
    "09 Text arithmetic": ("sum", ("Whole images", "Base images", "Sum images"), ("TextEmbeddingBlend",)),
}  # fmt: skip
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
