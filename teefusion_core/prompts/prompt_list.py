"""Lists of prompts with their images."""

import re
from collections.abc import Sequence
from typing import TypeVar

from ..errors import InvalidConfig

Item = TypeVar("Item")
_LINE_END = re.compile(r"\r\n|\r|\n")


def lines_of(text: str) -> list[str]:
    """Return the non-empty lines without surrounding white space."""
    return [line.strip() for line in _LINE_END.split(text) if line.strip()]


def by_prompt(items: Sequence[Item], num_prompts: int, what: str) -> list[Sequence[Item]]:
    """Split images into equal groups, one per prompt, in order.

    Args:
        items: the images.
        num_prompts: at least 1.
        what: name of the images for the message.
    Raises:
        InvalidConfig: no images, or a number that is not a multiple of the number of prompts.
    """
    each, rest = divmod(len(items), num_prompts)
    if rest or not each:
        raise InvalidConfig(
            f"{what} holds {len(items)} images for {num_prompts} prompts; the number of images must be a multiple "
            "of the number of prompts"
        )
    return [items[number * each : (number + 1) * each] for number in range(num_prompts)]


def prompt_of_each(text: str, num_pictures: int, what: str) -> list[str]:
    """Return the prompt of every image: each line belongs to an equal share of the images, in order.

    Raises:
        InvalidConfig: no prompt, or a number of images that is not a multiple of the number of prompts.
    """
    prompts = lines_of(text)
    if not prompts:
        raise InvalidConfig("prompts is empty; enter the prompts of the images, one per line")
    groups = by_prompt(range(num_pictures), len(prompts), what)
    return [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
