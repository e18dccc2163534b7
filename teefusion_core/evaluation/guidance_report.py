"""Report of the effective guidance of a run, as text or plot.

Shapes: B images, S steps.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .labels import Labels
from .plot import INK, OTHER, PALE, PAPER, STRONG, Frame

SIZE, BOX = (768, 512), (64, 92, 744, 440)
"""Size of the plot and frame (left, top, right, bottom) in pixels."""
TEXT, SMALL = 17, 14
MOST_MARKS, MOST_LEVELS, HEADROOM = 12, 6, 0.1
WHAT_TO_DO = "lower cfg or guidance, or run the model in 32 bits"
UNDEFINED = "undefined: the model predicts the same for positive and negative; connect an encoded empty prompt"


@dataclass(frozen=True)
class GuidanceReport:
    """Measurements of one run; passes are forward passes per image."""

    name: str
    """Name of the guider, e.g. "CFGGuider"."""
    sigmas: Sequence[float]
    """Noise level at the start of each step, S of them."""
    predicted_SB: Tensor
    """Effective guidance of the last prediction of each step; NaN where it is undefined."""
    moved_SB: Tensor
    """Effective guidance of the average velocity of each step."""
    passes: float
    seconds: float
    own_passes: float
    """Passes of the measurement itself."""
    own_seconds: float
    clipped: float | None = None
    """Share of color values at their limits; None without decoded images."""
    saturation: float | None = None
    broken: str = ""
    """Where the run first had NaN or infinite values, e.g. "step 3 (image 2)"; empty for a run of numbers."""

    def text(self) -> str:
        """Return the report as text, with a line per step."""
        lines = [self.cost(), self.strength()]
        if self.clipped is not None and self.saturation is not None and not self.broken:
            lines.append(
                f"{100 * self.clipped:.2f} % of the color values are clipped; saturation {self.saturation:.3f}"
            )
        lines.append(f"measuring took {self.own_passes:g} more passes of the base model, {self.own_seconds:.2f} s")
        if self.broken:
            return "\n".join(lines)
        lines += [
            "",
            "| step | sigma | CFG scale of the prediction | CFG scale of the step |",
            "| --- | --- | --- | --- |",
        ]
        for step, sigma in enumerate(self.sigmas):
            cells = (_with_range(of[step]) for of in (self.predicted_SB, self.moved_SB))
            lines.append(f"| {step + 1} | {sigma:.4g} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def cost(self) -> str:
        """Return steps, passes and seconds of the run as one line."""
        steps = len(self.sigmas)
        each = self.passes / max(steps, 1)
        return f"{self.name}: {steps} steps, {self.passes:g} passes ({each:.3g} per step), {self.seconds:.2f} s"

    def strength(self) -> str:
        """Return the mean effective guidance as one line, over the steps and images that have one."""
        if self.broken:
            return f"no reading: NaN or infinite values from {self.broken} on; {WHAT_TO_DO}"
        mean, predicted = self.mean(), mean_of(self.predicted_SB.flatten())
        if math.isnan(mean):
            return f"effective guidance {UNDEFINED}"
        return f"effective guidance as a CFG scale: {mean:.2f} (steps), {predicted:.2f} (predictions)"

    def mean(self) -> float:
        """Return the mean effective guidance of the steps; NaN without a reading."""
        return math.nan if self.broken else mean_of(self.moved_SB.flatten())

    def short(self) -> str:
        """Return name, mean effective guidance of the steps and passes as one line."""
        read = "no reading" if math.isnan(self.mean()) else f"CFG scale {self.mean():.2f}"
        return f"{self.name}: {read}, {self.passes:g} passes"

    def plot(self) -> Image.Image:
        """Draw the effective guidance over the noise levels; the band is the range over all images."""
        image = Image.new("RGB", SIZE, PAPER)
        labels = Labels(image)
        header = [self.cost(), self.strength()]
        if self.clipped is not None and not self.broken:
            header[1] += f"; {100 * self.clipped:.2f} % clipped"
        for row, line in enumerate(header):
            labels.text((16, 14 + row * 24), labels.fitted(line, SIZE[0] - 32, TEXT), INK, TEXT)
        self._legend(labels)
        frame = Frame(labels, BOX, (0, max(len(self.sigmas) - 1, 1)), self._span())
        for level in levels_between(*frame.y):
            frame.level(level, f"{level:g}", SMALL)
        every = max(1, -(-len(self.sigmas) // MOST_MARKS))
        for step in range(0, len(self.sigmas), every):
            frame.mark(step, f"{self.sigmas[step]:.3g}", SMALL)
        labels.text(
            (sum(BOX[::2]) / 2, BOX[3] + 30), "noise level sigma at the start of each step", INK, SMALL, anchor="ma"
        )
        if not self.broken:
            lower, upper = zip(*map(_ends, self.moved_SB), strict=True)
            frame.band(_points(lower), _points(upper), PALE)
            frame.line(_points(map(mean_of, self.moved_SB)), STRONG, width=3, dots=True)
            frame.line(_points(map(mean_of, self.predicted_SB)), OTHER, width=2)
        labels.report()
        return image

    def _legend(self, labels: Labels) -> None:
        labels.text((16, 66), "Effective CFG scale:", INK, SMALL)
        for x, colour, label in ((170, STRONG, "of the step (band: all images)"), (430, OTHER, "of the prediction")):
            labels.draw.line((x, 75, x + 24, 75), colour, 3)
            labels.text((x + 32, 66), label, INK, SMALL)

    def _span(self) -> tuple[float, float]:
        """Return the lower and upper limit of the y axis; 0 is always inside."""
        return axis(value for of in (self.moved_SB, self.predicted_SB) for value in of.flatten().tolist())


def axis(values: Iterable[float]) -> tuple[float, float]:
    """Return the lower and upper limit of a y axis with these values; 0 and 1 are always inside."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([1.0, *finite])
    return low, high + HEADROOM * (high - low)


def _points(values_S: Iterable[float | Tensor]) -> list[tuple[float, float]]:
    return [(step, float(value)) for step, value in enumerate(values_S) if math.isfinite(value)]


def mean_of(values_B: Tensor) -> float:
    """Return the mean over the images whose guidance is defined; NaN if there is none."""
    return float(values_B[~values_B.isnan()].mean())


def _with_range(values_B: Tensor) -> str:
    mean = mean_of(values_B)
    if len(values_B) == 1 or math.isnan(mean):
        return f"{mean:.3f}"
    low, high = _ends(values_B)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _ends(values_B: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest value of the images that have a guidance; NaN if none has one."""
    found = values_B[~values_B.isnan()].tolist()
    return min(found, default=math.nan), max(found, default=math.nan)


def levels_between(low: float, high: float) -> list[float]:
    """Return about MOST_LEVELS round numbers between two."""
    rough = (high - low) / MOST_LEVELS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
