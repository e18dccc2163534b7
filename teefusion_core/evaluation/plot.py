"""Drawing helpers for plots."""

from collections.abc import Sequence

from .labels import Labels

INK, FAINT, PAPER = (30, 30, 30), (200, 200, 200), (255, 255, 255)
PALE, STRONG, OTHER = (170, 195, 230), (20, 80, 180), (200, 90, 20)
"""Colours of the band, the main line and the second line."""
DOT = 3

Point = tuple[float, float]


class Frame:
    """Axes of a plot in a rectangle of an image; y points upwards."""

    def __init__(self, labels: Labels, box: tuple[float, float, float, float], x: Point, y: Point):
        """Draw the rectangle.

        Args:
            labels: of the image to draw on.
            box: left, top, right, bottom in pixels.
            x, y: limits of the axes; equal limits are moved apart.
        """
        self.labels, self.draw, self.box = labels, labels.draw, box
        self.x, self.y = _apart(x), _apart(y)
        self.draw.rectangle(box, outline=FAINT)

    def place(self, x: float, y: float) -> Point:
        """Return the pixel position of a point."""
        left, top, right, bottom = self.box
        across, up = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + (right - left) * across, bottom - (bottom - top) * up

    def line(self, points: Sequence[Point], colour, width: int = 1, dots: bool = False) -> None:
        """Draw a line through points; a single point becomes a dot."""
        where = [self.place(*point) for point in points]
        if where:
            self.draw.line(where if len(where) > 1 else where * 2, fill=colour, width=width)
        for x, y in where if dots else ():
            self.draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)

    def band(self, lower: Sequence[Point], upper: Sequence[Point], colour) -> None:
        """Fill the area between two lines."""
        if len(lower) > 1:
            self.draw.polygon([self.place(*point) for point in (*lower, *reversed(upper))], fill=colour)

    def level(self, y: float, label: str, size: int) -> None:
        """Draw a horizontal grid line with a label on the y axis."""
        left, _, right, _ = self.box
        height = self.place(self.x[0], y)[1]
        self.draw.line((left, height, right, height), fill=FAINT)
        self.labels.text((left - 6, height), label, INK, size, anchor="rm")

    def mark(self, x: float, label: str, size: int) -> None:
        """Draw a label on the x axis."""
        self.labels.text((self.place(x, self.y[0])[0], self.box[3] + 6), label, INK, size, anchor="ma")


def _apart(span: Point) -> Point:
    return span if span[0] != span[1] else (span[0] - 0.5, span[1] + 0.5)
