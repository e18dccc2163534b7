"""Thumbnails of the workflows that need weights: what they do, the passes of each method, what they need."""

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, BAR, PASS = 480, 32, 30, 64
"""Side of a thumbnail (the interface shows half of it), margin, height of a bar and width of one pass, in pixels."""
PAPER, INK, FAINT, STRONG = (250, 250, 250), (30, 30, 30), (110, 110, 118), (20, 80, 180)


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        title: one or two lines.
        passes: method -> forward passes per step.
        needs: one or two lines.
    """

    title: str
    passes: dict[str, float]
    needs: str


CARDS = {
    "02 TeEFusion SD3-medium": Card(
        "SD3-medium,\npublished student", {"CFG": 2, "student": 1}, "five files to download,\nnot for commercial use"
    ),
    "05 W2SD SD3.5 with a LoRA": Card(
        "W2SD on SD3.5\nwith your LoRA", {"CFG": 2, "W2SD": 4}, "SD3.5-medium and a LoRA,\nonly one copy in memory"
    ),
    "07 Distill SD3.5-medium": Card(
        "Distill SD3.5-medium", {"teacher (CFG)": 2, "your student": 1}, "SD3.5-medium; never run\non the real weights"
    ),
}


def draw_card(card: Card) -> Image.Image:
    """Draw a square card."""
    image = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw = ImageDraw.Draw(image)
    draw.multiline_text((MARGIN, MARGIN), card.title, INK, ImageFont.load_default(40), spacing=8)
    top = 180
    draw.text((MARGIN, top - 36), "forward passes per step", FAINT, ImageFont.load_default(20))
    for number, (method, passes) in enumerate(card.passes.items()):
        y = top + number * 2 * BAR
        draw.rectangle((MARGIN, y, MARGIN + PASS * passes, y + BAR), STRONG)
        draw.text(
            (MARGIN + PASS * passes + 12, y + BAR / 2), f"{method}: {passes:g}", INK, ImageFont.load_default(24), "lm"
        )
    draw.multiline_text((MARGIN, 350), f"needs {card.needs}", INK, ImageFont.load_default(24), spacing=8)
    return image
