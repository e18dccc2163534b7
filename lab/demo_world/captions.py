"""Plain English for a claim, in many wordings.

The claim's groups are named in their order; every word used here is in `VOCABULARY`.
"""

import random
from dataclasses import replace

from .scenes import BACKGROUNDS, COLORS, SHAPES, Group, Scene, sample_picture

COUNTS = {1: ("a", "one"), 2: ("two",)}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
NOUNS = {"circle": ("circle", "disc"), "cross": ("cross", "plus")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
PLACE_WORDS = {
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
}
OPENINGS = ("", "", "", "a picture of", "an image of", "there is", "we see")
GROUND_WORDS = ("on a {} background", "against a {} background", "with a {} background", "on {}")


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "ss")) else "s")


def _phrase(group: Group, rng: random.Random) -> str:
    noun = rng.choice(NOUNS.get(group.shape, (group.shape,)))
    size = rng.choice(SIZES[group.size]) if group.size else ""
    words = (rng.choice(COUNTS[group.count]), size, group.color, noun if group.count == 1 else plural(noun))
    return " ".join(w for w in words if w)


def caption(claim: Scene, rng: random.Random) -> str:
    parts = [rng.choice(OPENINGS), _phrase(claim.groups[0], rng)]
    if claim.place is not None:
        parts.append(rng.choice(PLACE_WORDS[claim.place]))
    if len(claim.groups) == 2:
        parts.append(rng.choice(RELATION_WORDS[claim.relation]) if claim.relation else rng.choice(("and", "with")))
        parts.append(_phrase(claim.groups[1], rng))
    if claim.background is not None:
        parts.append(rng.choice(GROUND_WORDS).format(claim.background))
    return " ".join(p for p in parts if p)


def held_out_prompts(num: int, seed: int = 2024) -> list[tuple[str, Scene]]:
    """Return prompts with claims of all facts of held-out scenes; the same seed gives the same list."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(num):
        # the whole scene: a claim that leaves facts out would also fit scenes of the training part
        scene = sample_picture(rng, held_out=True)[0]
        prompts.append((caption(scene, rng), scene))
    return prompts


def _vocabulary() -> tuple[str, ...]:
    words: set[str] = set(COLORS) | set(BACKGROUNDS) | {"and", "with", "no", "without", "empty"}
    for shape in SHAPES:
        for noun in NOUNS.get(shape, (shape,)):
            words |= {noun, plural(noun)}
    tables = (COUNTS, SIZES, RELATION_WORDS, PLACE_WORDS)
    texts = [t for table in tables for row in table.values() for t in row] + [*OPENINGS, *GROUND_WORDS]
    for text in texts:
        words |= set(text.replace("{}", "").split())
    return tuple(sorted(words))


VOCABULARY = _vocabulary()


def open_prompts(number: int) -> tuple[list[str], list[Scene]]:
    """Return held-out prompts that do not mention the background, with their claims."""
    rng = random.Random(7)
    claims = [replace(sample_picture(rng, held_out=True)[0], background=None) for _ in range(number)]
    return [caption(claim, rng) for claim in claims], claims
