"""Prompts typed one per line, with the pictures that belong to them."""

from collections.abc import Sequence
from typing import TypeVar

from ..errors import InvalidConfig

Item = TypeVar("Item")


def lines_of(text: str) -> list[str]:
    """Return the lines that hold something, without the space around."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def by_prompt(items: Sequence[Item], num_prompts: int, what: str) -> list[Sequence[Item]]:
    """Split pictures among prompts, those of the first prompt first, as many for each.

    Args:
        items: the pictures.
        num_prompts: at least 1.
        what: how the user knows the pictures, for the message.
    Raises:
        InvalidConfig: none at all, or a number that does not go up.
    """
    each, rest = divmod(len(items), num_prompts)
    if rest or not each:
        raise InvalidConfig(
            f"{what} holds {len(items)} pictures for {num_prompts} prompts; give each prompt as many, those of the "
            "first prompt first, or correct the lines of prompts"
        )
    return [items[number * each : (number + 1) * each] for number in range(num_prompts)]


def prompt_of_each(text: str, num_pictures: int, what: str) -> list[str]:
    """Return the prompt of every picture: one line serves all, several share the pictures evenly, in order.

    Raises:
        InvalidConfig: no prompt, or numbers that do not go up.
    """
    prompts = lines_of(text)
    if not prompts:
        raise InvalidConfig("prompts is empty; write the prompt that the pictures were made with")
    groups = by_prompt(range(num_pictures), len(prompts), what)
    return [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
