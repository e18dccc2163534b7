"""The preview of a training run: the loss curve beside images of the student."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..evaluation.labels import Labels
from ..evaluation.plot import FAINT, INK, OTHER, PALE, STRONG, Frame
from ..guidance.calibration import Calibration

SIZE, MARGIN, LINE, TEXT = 256, 28, 16, 12
CURVE, SMOOTH, HELD_OUT = PALE, STRONG, OTHER
SMOOTHING = 0.95
"""Decay of the running mean that is drawn over the single losses."""


def loss_curve(losses: Sequence[float], steps: int, held_out: Sequence[tuple[int, float]] = ()) -> Image.Image:
    """Draw the losses over the steps of the whole run, on a logarithmic scale.

    Args:
        losses: loss of every step so far.
        steps: number of steps of the whole run.
        held_out: steps, each with the loss on held-out examples after it.
    """
    image = Image.new("RGB", (SIZE, SIZE), "white")
    finite = [max(loss, 1e-12) for loss in losses if math.isfinite(loss)]
    if not finite:
        return image
    tested = [(step - 1, math.log(max(loss, 1e-12))) for step, loss in held_out if math.isfinite(loss)]
    low, high = math.log(min(finite)), math.log(max(finite))
    low, high = min([low, *(loss for _, loss in tested)]), max([high, *(loss for _, loss in tested)])
    middle, half = (low + high) / 2, max(high - low, 0.05) / 2
    far = SIZE - MARGIN
    labels = Labels(image)
    frame = Frame(labels, (MARGIN, MARGIN, far, far), (0, max(steps - 1, 1)), (middle - half, middle + half))
    mean, points, smooth = finite[0], [], []
    for step, loss in enumerate(finite):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss if step else loss
        points.append((step, math.log(loss)))
        smooth.append((step, math.log(mean)))
    frame.line(points, CURVE)
    frame.line(smooth, SMOOTH, width=2)
    frame.line(tested, HELD_OUT, width=2, dots=True)
    labels.text((MARGIN, 6), f"loss {mean:.3g}, step {len(losses)} of {steps}", INK, TEXT)
    if tested:
        labels.text((far - 4, MARGIN + 4), f"held out {math.exp(tested[-1][1]):.3g}", HELD_OUT, TEXT, anchor="ra")
    labels.text((MARGIN, SIZE - 20), f"{math.exp(low):.3g} to {math.exp(high):.3g}, logarithmic", INK, TEXT)
    return image


def calibration_plot(curve: Calibration) -> Image.Image:
    """Plot the effective guidance of the student against its teacher's, before and after calibration."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    labels, far, both = Labels(image), SIZE - MARGIN, [*curve.teacher, *curve.before, *curve.after]
    span, around = (min(both), max(both)), (curve.teacher[0], curve.teacher[-1])
    frame = Frame(labels, (MARGIN, MARGIN, far, far), around, span)
    frame.line([(value, value) for value in curve.teacher], FAINT)
    frame.line(list(zip(curve.teacher, curve.before, strict=True)), OTHER, dots=True)
    frame.line(list(zip(curve.teacher, curve.after, strict=True)), STRONG, width=2, dots=True)
    labels.text((MARGIN, 6), "guidance, uncalibrated", OTHER, TEXT)
    labels.text((MARGIN + 168, 6), "calibrated", STRONG, TEXT)
    labels.text(
        (MARGIN, SIZE - 20), f"gray: teacher, CFG {around[0]:.3g} to {around[1]:.3g}, w {curve.typed()}", INK, TEXT
    )
    return image


def preview_image(
    curve: Image.Image,
    pictures: np.ndarray | None,
    labels: Sequence[str],
    rows: int,
    calibration: Calibration | None = None,
) -> Image.Image:
    """Put the loss curve beside the images of the student and the plot of its calibration.

    Args:
        curve: from `loss_curve`.
        pictures: uint8 [rows * columns, H, W, 3], row by row; None before the first preview.
        labels: one per column.
        rows: number of prompts.
        calibration: of the finished student.
    """
    if calibration is not None:
        plotted = Image.new("RGB", (2 * SIZE, SIZE), "white")
        plotted.paste(curve, (0, 0))
        plotted.paste(calibration_plot(calibration), (SIZE, 0))
        curve = plotted
    if pictures is None:
        return curve
    columns, cell = len(labels), (SIZE - LINE) // rows
    image = Image.new("RGB", (curve.width + 4 + columns * (cell + 2), SIZE), "white")
    image.paste(curve, (0, 0))
    shown = Labels(image)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left = curve.width + 4 + column * (cell + 2)
        image.paste(Image.fromarray(picture).resize((cell - 2, cell - 2)), (left, LINE + row * cell))
        if row == 0:
            shown.text((left, 1), labels[column], INK, TEXT)
    shown.report()
    return image
