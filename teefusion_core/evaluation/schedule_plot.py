"""Plot of a guidance schedule."""

from PIL import Image

from ..guidance.schedule import LIST, GuidanceSchedule
from .labels import Labels
from .plot import PAPER, STRONG, Frame

SIZE, BOX, TEXT = (420, 200), (56.0, 16.0, 380.0, 158.0), 13
POINTS = 500


def schedule_plot(schedule: GuidanceSchedule) -> Image.Image:
    """Draw the share of the guidance over sampling."""
    image = Image.new("RGB", SIZE, PAPER)
    labels = Labels(image)
    places = [number / POINTS for number in range(POINTS + 1)]
    shares = [schedule.share(place) for place in places]
    top = max(1.0, *shares)
    frame = Frame(labels, BOX, (0.0, 1.0), (0.0, 1.1 * top))
    full = f"{top:g} x" if schedule.shape == LIST and top > 1 else "full"
    frame.level(0.0, "low", TEXT)
    frame.level(top, full, TEXT)
    for percent in (0, 25, 50, 75, 100):
        frame.mark(percent / 100, f"{percent} %", TEXT)
    frame.line(list(zip(places, shares, strict=True)), STRONG, width=3)
    labels.report()
    return image
