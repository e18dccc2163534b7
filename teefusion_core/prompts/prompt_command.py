"""Prompt sets on the command line: list prompts, arrange their pictures for a grader."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidConfig
from ..evaluation.grader_layouts import WRITERS
from ..files.image_folder import opened, pictures_in
from .prompt_list import by_prompt
from .prompt_sets import READERS, read_prompts


def add_commands(commands) -> None:
    """Add `prompts` with `arrange` to a parser's commands."""
    listed = commands.add_parser("prompts", help="print the prompts of a published set, one a line")
    listed.add_argument("set", choices=READERS)
    listed.add_argument("path", type=Path, help="its file or folder, which you have")
    listed.add_argument("--group", help="only those of this style or category")
    arranged = commands.add_parser("arrange", help="put pictures where the official grader of a set looks for them")
    arranged.add_argument("set", choices=WRITERS)
    arranged.add_argument("path", type=Path, help="its file or folder, which you have")
    arranged.add_argument("pictures", type=Path, help="a folder; by the order of names, as many for each prompt")
    arranged.add_argument("out", type=Path, help="a folder for the grader")


def prompts(arguments: argparse.Namespace) -> None:
    """Print a set, without line breaks inside of a prompt.

    Raises:
        InvalidConfig: a malformed file, or a group that is not there.
    """
    found = read_prompts(arguments.set, arguments.path)
    groups = list(dict.fromkeys(prompt.group for prompt in found))
    if arguments.group is not None and arguments.group not in groups:
        raise InvalidConfig(f"there is no group {arguments.group!r}; choose one of {', '.join(groups)}")
    for prompt in found:
        if arguments.group in (None, prompt.group):
            print(" ".join(prompt.text.split()), flush=True)


def arrange(arguments: argparse.Namespace) -> None:
    """Write the pictures of a folder anew.

    Raises:
        InvalidConfig: numbers that do not go up, a broken picture, or what the grader does not take.
    """
    found, paths = read_prompts(arguments.set, arguments.path), pictures_in(arguments.pictures)
    for prompt, files in zip(found, by_prompt(paths, len(found), str(arguments.pictures)), strict=True):
        WRITERS[arguments.set](arguments.out, prompt, [opened(path) for path in files])
    print(f"{len(paths)} pictures of {len(found)} prompts arranged in {arguments.out}", flush=True)
