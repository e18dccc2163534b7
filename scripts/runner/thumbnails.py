"""The pictures by which workflows are chosen: what a run of the workflow made.

Shapes: B pictures of a node, H W their size, 3 colour channels.
"""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .cards import CARDS, SIDE, draw_card
from .client import Json, Run, pictures, run_prompt
from .comparison import read_workflow
from .graph import to_prompt
from .places import BASE, HOST, WORKFLOWS
from .server import Server, make_base, running
from .stop import Stop, say

HEAD, GAP = 46, 6
INK, PAPER = (30, 30, 30), (255, 255, 255)
QUALITY = 88
PICTURE_NODES = ("SaveImage", "PreviewImage")
EMBEDDED = "TinySD3Loader"


def runs_here(workflow: Json) -> bool:
    """Tell whether a workflow needs no file from outside: its only loader is that of the embedded model."""
    return {node["type"] for node in workflow["nodes"] if "Loader" in node["type"]} == {EMBEDDED}


def make_thumbnails(comfyui: Path, names: list[str]) -> None:
    """Run the named workflows as they are shipped; write a .jpg beside each.

    Without names, run all that run here, and draw the cards of the others.
    """
    found = {path.stem: read_workflow(path) for path in sorted(WORKFLOWS.glob("*.json"))}
    if not names:
        for name, card in CARDS.items():
            _save(draw_card(card), name)
    for name in names:
        if name not in found or not runs_here(found[name]):
            here = ", ".join(stem for stem, workflow in found.items() if runs_here(workflow))
            raise Stop(f"There is no workflow {name} that runs without weights; choose from {here}.")
    with running(comfyui, make_base(BASE), HOST / "comfyui.log") as server:
        for name, workflow in found.items():
            if runs_here(workflow) and (not names or name in names):
                _save(_thumbnail(server, to_prompt(workflow, server.get("/object_info"))), name)


def _save(thumbnail: Image.Image, name: str) -> None:
    target = WORKFLOWS / f"{name}.jpg"
    thumbnail.save(target, quality=QUALITY, optimize=True)
    say(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


def _thumbnail(server: Server, prompt: Json) -> Image.Image:
    run = run_prompt(server, prompt)
    columns = {
        node["_meta"]["title"].removesuffix(" images"): pictures(server, run, key)
        for key, node in prompt.items()
        if node["class_type"] in PICTURE_NODES and run.outputs.get(key, {}).get("images")
    }
    return draw_columns(columns) if columns else student_pictures(run)


def draw_columns(columns: dict[str, np.ndarray]) -> Image.Image:
    """Return a square with a column for each node, its label on top, as many rows as columns.

    Pictures [B, H, W, 3] of a lone node fill the square without a label.
    """
    head, num = HEAD, len(columns)
    if num > 1 and all(len(images_BHW3) == 1 for images_BHW3 in columns.values()):
        return _stacked([images_BHW3[0] for images_BHW3 in columns.values()])
    if num == 1:
        (images_BHW3,) = columns.values()
        head, num = 0, math.ceil(math.sqrt(len(images_BHW3)))
        columns = {" " * column: images_BHW3[column::num] for column in range(num)}
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, width, height = ImageDraw.Draw(square), SIDE // num, (SIDE - head) // num
    for column, (label, images_BHW3) in enumerate(columns.items()):
        middle = column * width + width / 2
        draw.text((middle, head / 2), label, INK, ImageFont.load_default(30 if num < 3 else 22), anchor="mm")
        for row, image_HW3 in enumerate(images_BHW3[:num]):
            _paste(square, image_HW3, (column * width, head + row * height, width, height))
    return square


def _stacked(images_HW3: list[np.ndarray]) -> Image.Image:
    """Return a square of lone pictures one below another, which say themselves what they are."""
    square, height = Image.new("RGB", (SIDE, SIDE), PAPER), SIDE // len(images_HW3)
    for row, image_HW3 in enumerate(images_HW3):
        _paste(square, image_HW3, (0, row * height, SIDE, height))
    return square


def student_pictures(run: Run) -> Image.Image:
    """Return what the trainer last showed: the student's pictures, in the right square of its preview."""
    if run.preview is None:
        raise Stop("The workflow ran, but showed no picture; give it a node that saves one.")
    shown = Image.open(io.BytesIO(run.preview)).convert("RGB")
    square = shown.crop((shown.width - shown.height, 0, shown.width, shown.height))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _paste(square: Image.Image, image_HW3: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Fit a picture into left, top, width, height, in its own proportions."""
    left, top, width, height = box
    picture = Image.fromarray(image_HW3)
    scale = min((width - GAP) / picture.width, (height - GAP) / picture.height)
    fitted = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    square.paste(fitted, (left + (width - fitted.width) // 2, top + (height - fitted.height) // 2))
