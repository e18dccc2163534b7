"""Effective guidance of several runs in one plot.

Shapes: B images, S steps.
"""

import math
from collections.abc import Sequence

from PIL import Image

from .guidance_report import BOX, SIZE, SMALL, TEXT, GuidanceReport, axis, levels_between, mean_of
from .labels import Labels
from .plot import INK, OTHER, PAPER, STRONG, Frame

GREEN, PURPLE = (30, 130, 70), (130, 60, 160)
COLOURS = (OTHER, STRONG, GREEN, PURPLE)
TOP, ROW = 40, 22


def overlay(reports: Sequence[GuidanceReport]) -> Image.Image:
    """Draw the effective guidance of each run over its steps, as the mean over its images.

    Args:
        reports: one or more runs, with a name for the legend; they may differ in steps.
    """
    image = Image.new("RGB", SIZE, PAPER)
    labels = Labels(image)
    labels.text((16, 14), "Effective CFG scale of each step", INK, TEXT)
    for row, report in enumerate(reports):
        y, colour = TOP + row * ROW, COLOURS[row % len(COLOURS)]
        labels.draw.line((16, y + 9, 40, y + 9), colour, 3)
        labels.text((48, y), labels.fitted(report.short(), SIZE[0] - 64, SMALL), INK, SMALL)
    left, _, right, bottom = BOX
    box = (left, max(BOX[1], TOP + len(reports) * ROW + 8), right, bottom)
    frame = Frame(
        labels, box, (0, 1), axis(value for report in reports for value in report.moved_SB.flatten().tolist())
    )
    for level in levels_between(*frame.y):
        frame.level(level, f"{level:g}", SMALL)
    for percent in range(0, 101, 20):
        frame.mark(percent / 100, f"{percent} %", SMALL)
    labels.text((sum(box[::2]) / 2, bottom + 30), "share of the sampling that is done", INK, SMALL, anchor="ma")
    for row, report in enumerate(reports):
        steps = max(len(report.sigmas), 1)
        means = [] if report.broken else [mean_of(moved_B) for moved_B in report.moved_SB]
        points = [(step / steps, mean) for step, mean in enumerate(means) if math.isfinite(mean)]
        frame.line(points, COLOURS[row % len(COLOURS)], width=3, dots=True)
    labels.report()
    return image
