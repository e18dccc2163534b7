"""Sums of prompts with known meaning: the parts, the whole prompt, and what its image must show."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from .scenes import BACKGROUNDS, COLORS, RADIUS, RELATIONS, SHAPES, Group, Scene


@dataclass(frozen=True)
class Sum:
    """base + weight * text + ... = whole, where a weight of -1 takes away; `claim` is what the whole says."""

    kind: str
    base: str
    terms: tuple[tuple[float, str], ...]
    whole: str
    claim: Scene

    @property
    def spelled(self) -> str:
        return " ".join([f'"{self.base}"', *(f'{"+" if weight > 0 else "-"} "{text}"' for weight, text in self.terms)])


def _group(rng: random.Random) -> Group:
    return Group(1, rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(list(RADIUS)))


def _named(group: Group) -> str:
    return f"a {group.size} {group.color} {group.shape}"


def _background(rng: random.Random) -> Sum:
    group, ground = _group(rng), rng.choice(list(BACKGROUNDS))
    base, added = _named(group), f"on a {ground} background"
    return Sum("add a background", base, ((1.0, added),), f"{base} {added}", Scene(ground, (group,)))


def _pair(rng: random.Random) -> tuple[str, str, Scene]:
    one, other, relation = _group(rng), _group(rng), rng.choice(RELATIONS)
    while (other.color, other.shape) == (one.color, one.shape):
        other = _group(rng)
    return _named(one), f"{relation} {_named(other)}", Scene(None, (one, other), relation)


def _object(rng: random.Random) -> Sum:
    base, added, claim = _pair(rng)
    return Sum("add an object", base, ((1.0, added),), f"{base} {added}", claim)


def _less(rng: random.Random) -> Sum:
    base, taken, claim = _pair(rng)
    alone = replace(claim, groups=claim.groups[:1], relation=None)
    return Sum("take an object away", f"{base} {taken}", ((-1.0, taken),), base, alone)


def _likeness(rng: random.Random) -> Sum:
    """Make an analogy, a is to b as c is to what; words have the same positions in all of them."""
    group = _group(rng)
    new = replace(group, color=rng.choice([color for color in COLORS if color != group.color]))
    shape = rng.choice([shape for shape in SHAPES if shape != group.shape])
    before, after = (_named(replace(one, shape=shape)) for one in (group, new))
    return Sum("change the color", _named(group), ((-1.0, before), (1.0, after)), _named(new), Scene(None, (new,)))


def _likeness_of_grounds(rng: random.Random) -> Sum:
    group, other = _group(rng), _group(rng)
    old, new = rng.sample(list(BACKGROUNDS), 2)
    base, before, after, whole = (
        f"{_named(one)} on a {ground} background"
        for one, ground in ((group, old), (other, old), (other, new), (group, new))
    )
    return Sum("change the background", base, ((-1.0, before), (1.0, after)), whole, Scene(new, (group,)))


KINDS: dict[str, Callable[[random.Random], Sum]] = {
    "add a background": _background, "add an object": _object, "take an object away": _less,
    "change the color": _likeness, "change the background": _likeness_of_grounds,
}  # fmt: skip


def sums(num: int, seed: int = 5) -> list[Sum]:
    """Make a number of sums of each kind; the same seed gives the same sums."""
    rng = random.Random(seed)
    return [make(rng) for make in KINDS.values() for _ in range(num)]
