"""A world of coloured shapes, drawn from a description.

Shapes: H W picture size (64), 3 colour channels; pictures are uint8.
A `Scene` is what a picture shows; a `Scene` with None in a field is what a prompt claims (None: not mentioned).
"""

import dataclasses
import random
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
SUPERSAMPLE = 4
GAP = 5
RELATION_MARGIN = 9
JITTER = 10.0
"""Pixels by which an object may be off its spot, in either direction."""
HELD_OUT_SHARE = 10
"""One scene in this many is kept out of training."""

BACKGROUNDS = {"black": (16, 16, 20), "white": (242, 242, 240), "gray": (128, 130, 132), "brown": (96, 62, 36)}
COLORS = {
    "red": (222, 34, 40), "green": (34, 168, 62), "blue": (36, 74, 228), "yellow": (250, 224, 48),
    "purple": (156, 48, 196), "cyan": (52, 212, 232), "orange": (252, 140, 24),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring")
RADIUS = {"small": 7.0, "large": 11.0}
RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("left", "right", "top", "bottom")
SPOTS = {"left": (16, 32), "right": (48, 32), "top": (32, 16), "bottom": (32, 48), None: (32, 32)}
"""Where a composed picture has its subject, in pixels."""
ENDS = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom"),
        "below": ("bottom", "top")}  # fmt: skip
LAYOUTS = ((1,), (2,), (1, 1), (1, 1), (1, 2), (2, 1), (2, 2))
"""How many objects each group has; one is drawn at random."""


@dataclass(frozen=True)
class Group:
    """`count` equal objects; `size` may be None in a claim."""

    count: int
    color: str
    shape: str
    size: str | None


@dataclass(frozen=True)
class Scene:
    """One or two groups on a background; `relation` is that of the first to the second, `place` of a single one."""

    background: str | None
    groups: tuple[Group, ...]
    relation: str | None = None
    place: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether training never sees this scene (decided by a checksum of its words)."""
        return zlib.crc32(repr(self).encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Placed:
    """One object on the canvas: centre and radius in pixels."""

    group: int
    x: float
    y: float
    radius: float


def random_scene(rng: random.Random) -> Scene:
    while True:
        counts = rng.choice(LAYOUTS)
        groups = tuple(
            Group(count, rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(list(RADIUS))) for count in counts
        )
        if len({(g.color, g.shape) for g in groups}) < len(groups):
            continue
        relation = rng.choice(RELATIONS) if len(groups) == 2 else None
        place = rng.choice(PLACES) if counts == (1,) and rng.random() < 0.6 else None
        return Scene(rng.choice(list(BACKGROUNDS)), groups, relation, place)


def _obeys(scene: Scene, objects: list[Placed]) -> bool:
    """Whether finished positions fulfil relation and place with a margin a person would see."""
    if scene.place is not None:
        x, y, edge = objects[0].x, objects[0].y, SIZE / 2 - 7
        return {"left": x < edge, "right": x > SIZE - edge, "top": y < edge, "bottom": y > SIZE - edge}[scene.place]
    if scene.relation is None:
        return True
    return relation_margin(scene.relation, *([(o.x, o.y) for o in objects if o.group == g] for g in (0, 1))) >= (
        RELATION_MARGIN
    )


def relation_margin(relation: str, first: list[tuple[float, float]], second: list[tuple[float, float]]) -> float:
    """Pixels by which all centres of `first` are on the named side of those of `second` (negative: they are not)."""
    axis = 0 if relation in ("left of", "right of") else 1
    low, high = (first, second) if relation in ("left of", "above") else (second, first)
    return min(c[axis] for c in high) - max(c[axis] for c in low)


def _spots(scene: Scene) -> list[tuple[int, int]]:
    """The spot of each object: a single one by its place, equal ones side by side, two groups by their relation."""
    counts = [group.count for group in scene.groups]
    if counts == [1]:
        return [SPOTS[scene.place]]
    if counts == [2]:
        return [SPOTS["left"], SPOTS["right"]]
    if len(counts) != 2 or scene.relation is None or max(counts) > 2:
        return []
    spots = []
    for end, count in zip(ENDS[scene.relation], counts, strict=True):
        x, y = SPOTS[end]
        aside = (16, 0) if end in ("top", "bottom") else (0, 16)
        spots += [(x, y)] if count == 1 else [(x + s * aside[0], y + s * aside[1]) for s in (-1, 1)]
    return spots


def _put(spot: tuple[int, int] | None, radius: float, rng: random.Random) -> tuple[float, float]:
    """A centre near the spot (None: anywhere) with the whole object on the canvas."""
    low, high = radius + 2, SIZE - radius - 2
    if spot is None:
        return rng.uniform(low, high), rng.uniform(low, high)
    x, y = (min(high, max(low, c + rng.uniform(-JITTER, JITTER))) for c in spot)
    return x, y


def place_objects(scene: Scene, rng: random.Random, tries: int = 400) -> list[Placed] | None:
    """Put every object on the canvas without touching another, or None when no room was found."""
    members = [index for index, group in enumerate(scene.groups) for _ in range(group.count)]
    spots = _spots(scene) or [None] * len(members)
    for _ in range(tries):
        objects: list[Placed] = []
        for index, spot in zip(members, spots, strict=True):
            radius = RADIUS[scene.groups[index].size or "small"] + rng.uniform(-0.5, 0.5)
            x, y = _put(spot, radius, rng)
            reach = radius + GAP
            if any(max(abs(o.x - x), abs(o.y - y)) < o.radius + reach for o in objects):
                break
            objects.append(Placed(index, x, y, radius))
        if len(objects) == len(members) and _obeys(scene, objects):
            return objects
    return None


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill, hole) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape in ("circle", "ring"):
        draw.ellipse(box, fill=fill)
        if shape == "ring":
            draw.ellipse((x - r * 0.56, y - r * 0.56, x + r * 0.56, y + r * 0.56), fill=hole)
    elif shape == "square":
        draw.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r * 0.9), (x + r, y + r * 0.9)], fill=fill)
    elif shape == "cross":
        arm = r * 0.36
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)


def _jitter(color: tuple[int, int, int], rng: random.Random, amount: int) -> tuple[int, ...]:
    return tuple(min(255, max(0, c + rng.randint(-amount, amount))) for c in color)


def draw_scene(scene: Scene, objects: list[Placed], rng: random.Random) -> np.ndarray:
    """Render placed objects, anti-aliased, as uint8 [64,64,3]."""
    s = SUPERSAMPLE
    ground = _jitter(BACKGROUNDS[scene.background or "black"], rng, 5)
    image = Image.new("RGB", (SIZE * s, SIZE * s), ground)
    draw = ImageDraw.Draw(image)
    fills = [_jitter(COLORS[g.color], rng, 8) for g in scene.groups]
    for o in objects:
        _draw_shape(draw, scene.groups[o.group].shape, o.x * s, o.y * s, o.radius * s, fills[o.group], ground)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


@cache
def shape_template(shape: str, pixels: int = 24) -> np.ndarray:
    """The ideal mask of `shape` cut to its bounding box, float [pixels,pixels] in 0..1."""
    image = Image.new("L", (200, 200), 0)
    _draw_shape(ImageDraw.Draw(image), shape, 100, 100, 90, 255, 0)
    return np.asarray(image.crop(image.getbbox()).resize((pixels, pixels), Image.Resampling.BOX)) / 255.0


def sample_picture(rng: random.Random, *, held_out: bool = False) -> tuple[Scene, np.ndarray]:
    """A random scene of the training (or held-out) part with its picture."""
    while True:
        scene = random_scene(rng)
        if scene.held_out == held_out and (objects := place_objects(scene, rng)) is not None:
            return scene, draw_scene(scene, objects, rng)


def claim_of(scene: Scene, rng: random.Random) -> Scene:
    """What one prompt mentions of a scene: sizes and background may be left out."""
    groups = tuple(dataclasses.replace(g, size=g.size if rng.random() < 0.75 else None) for g in scene.groups)
    return dataclasses.replace(scene, groups=groups, background=scene.background if rng.random() < 0.85 else None)


def corrupt(claim: Scene, rng: random.Random) -> Scene:
    """A claim with one or two facts wrong, as captions on the web have them.

    Without such captions a small model is nearly right unguided, which no real model is.
    """
    for _ in range(rng.choice((1, 1, 2))):
        index = rng.randrange(len(claim.groups))
        group = claim.groups[index]
        fact = rng.choice(("color", "color", "shape", "shape", "count", "size", "relation", "background"))
        if fact == "relation":
            if claim.relation is not None:
                claim = dataclasses.replace(claim, relation=rng.choice(RELATIONS))
            elif claim.place is not None:
                claim = dataclasses.replace(claim, place=rng.choice(PLACES))
        elif fact == "background":
            if claim.background is not None:
                claim = dataclasses.replace(claim, background=rng.choice(list(BACKGROUNDS)))
        elif not (fact == "size" and group.size is None):
            value = rng.choice({"color": list(COLORS), "shape": SHAPES, "count": (1, 2), "size": list(RADIUS)}[fact])
            groups = list(claim.groups)
            groups[index] = dataclasses.replace(group, **{fact: value})
            claim = dataclasses.replace(claim, groups=tuple(groups))
    return claim
