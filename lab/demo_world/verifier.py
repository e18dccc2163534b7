"""An exact judge of an image against its prompt.

Shapes: H W picture size, 3 colour channels, N objects found.
The categories are those of DPG-Bench: global, entity, attribute, relation, other (here: count).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from .scenes import BACKGROUNDS, COLORS, RADIUS, SHAPES, SIZE, Group, Scene, relation_margin, shape_template

MIN_AREA = 22
"""In pixels; the smallest drawn object (a small cross) has about 80, and a stray speck has fewer than this."""
MIN_SHAPE_IOU = 0.72
MAX_COLOR_DISTANCE = 75.0
FOREGROUND_DISTANCE = 40.0
SIZE_LIMIT = sum(RADIUS.values()) / 2
RELATION_TOLERANCE = 3.0
CATEGORIES = ("global", "entity", "attribute", "relation", "other")


@dataclass(frozen=True)
class Found:
    """One object found in an image; a field is None if it matches nothing in the world."""

    color: str | None
    shape: str | None
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Verdict:
    """Category -> whether it is right (None: the prompt does not mention it), and the objects found."""

    categories: dict[str, bool | None]
    background: str | None
    found: tuple[Found, ...]

    @property
    def overall(self) -> bool:
        """Whether the image shows all that the prompt claims and nothing else."""
        return all(right is None or right for right in self.categories.values())


def _nearest(color_3: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    names = list(palette)
    distances = np.linalg.norm(np.array([palette[n] for n in names], dtype=float) - color_3, axis=1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= MAX_COLOR_DISTANCE else None


def _shape_of(cover_HW: np.ndarray) -> str | None:
    """Return the shape of one object from its coverage of each pixel, cut to its bounding box."""
    rows, columns = (np.flatnonzero((cover_HW > 0.5).any(axis=axis)) for axis in (1, 0))
    cut = cover_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if not 0.7 < cut.shape[0] / cut.shape[1] < 1.43:
        return None
    cover = np.asarray(Image.fromarray(cut.astype(np.float32)).resize((24, 24), Image.Resampling.BOX))
    scores = {s: np.minimum(cover, t).sum() / np.maximum(cover, t).sum() for s in SHAPES for t in (shape_template(s),)}
    best = max(scores, key=lambda s: scores[s])
    return best if scores[best] >= MIN_SHAPE_IOU else None


def _read_object(pixels_HW3: np.ndarray, mask_HW: np.ndarray, ground_3: np.ndarray, corner: tuple[int, int]) -> Found:
    core = ndimage.binary_erosion(mask_HW)
    color_3 = np.median(pixels_HW3[core if core.sum() >= 4 else mask_HW], axis=0)
    contrast_3 = color_3 - ground_3
    cover_HW = ((pixels_HW3 - ground_3) @ contrast_3 / (contrast_3 @ contrast_3)).clip(0, 1) * mask_HW
    rows, columns = (np.flatnonzero((cover_HW > 0.5).any(axis=axis)) for axis in (1, 0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    size = "large" if (height + width) / 4 > SIZE_LIMIT else "small"
    x, y = corner[1] + (columns[0] + columns[-1]) / 2, corner[0] + (rows[0] + rows[-1]) / 2
    return Found(_nearest(color_3, COLORS), _shape_of(cover_HW), size, x, y)


def read_picture(image_HW3: np.ndarray) -> tuple[str | None, tuple[Found, ...]]:
    """Return background and objects of a uint8 image [64,64,3]."""
    pixels = image_HW3.astype(float)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground_3 = np.median(border, axis=0)
    foreground = np.linalg.norm(pixels - ground_3, axis=2) > FOREGROUND_DISTANCE
    labels, num = ndimage.label(foreground, structure=np.ones((3, 3)))
    found = []
    for index, window in enumerate(ndimage.find_objects(labels, num), start=1):
        mask = labels[window] == index
        if mask.sum() >= MIN_AREA:
            found.append(_read_object(pixels[window], mask, ground_3, (window[0].start, window[1].start)))
    return _nearest(ground_3, BACKGROUNDS), tuple(found)


def _members(group: Group, found: tuple[Found, ...], *, attributes: bool) -> list[Found]:
    return [
        f
        for f in found
        if f.shape == group.shape and (not attributes or (f.color == group.color and group.size in (None, f.size)))
    ]


def _relation(claim: Scene, found: tuple[Found, ...]) -> bool | None:
    members = [[(f.x, f.y) for f in _members(g, found, attributes=True)] for g in claim.groups]
    if claim.place is not None:
        middle = SIZE / 2
        side = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[claim.place]
        return bool(members[0]) and all((middle - c[side[0]]) * side[1] > RELATION_TOLERANCE for c in members[0])
    if claim.relation is None:
        return None
    return all(members) and bool(relation_margin(claim.relation, *members) >= RELATION_TOLERANCE)


def judge(image_HW3: np.ndarray, claim: Scene) -> Verdict:
    background, found = read_picture(image_HW3)
    exact = [_members(g, found, attributes=True) for g in claim.groups]
    categories: dict[str, bool | None] = {
        "global": None if claim.background is None else background == claim.background,
        "entity": all(_members(g, found, attributes=False) for g in claim.groups),
        "attribute": all(exact),
        "relation": _relation(claim, found),
        # each object counts for one group: a pair of equal groups needs two sets of objects
        "other": len(found) == sum(g.count for g in claim.groups) == len({id(f) for e in exact for f in e})
        and all(len(e) == g.count for e, g in zip(exact, claim.groups, strict=True)),
    }
    return Verdict(categories, background, found)


def score(images_BHW3: np.ndarray, claims: list[Scene]) -> dict[str, float]:
    """Return the share of right images per category (over the prompts that claim it), and `overall`."""
    verdicts = [judge(image, claim) for image, claim in zip(images_BHW3, claims, strict=True)]
    table = {}
    for name in CATEGORIES:
        known = [v.categories[name] for v in verdicts if v.categories[name] is not None]
        table[name] = float(np.mean(known)) if known else float("nan")
    table["overall"] = float(np.mean([v.overall for v in verdicts]))
    return table
