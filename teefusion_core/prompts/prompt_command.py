"""Commands for prompt sets: prompts, arrange."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidConfig
from ..evaluation.grader_layouts import WRITERS
from ..files.image_file import opened
from ..files.image_folder import pictures_in
from ..files.output_file import check_target, written_folder
from .prompt_list import by_prompt
from .prompt_sets import READERS, read_prompts


def add_commands(commands) -> None:
    """Add the commands `prompts` and `arrange` to a parser."""
    listed = commands.add_parser("prompts", help="print the prompts of a published set, one per line")
    listed.add_argument("set", choices=READERS)
    listed.add_argument("path", type=Path, help="the file or folder of the set on your disk")
    listed.add_argument("--group", help="print only this style or category")
    arranged = commands.add_parser(
        "arrange", help="copy images into the layout that the official grader of a set expects"
    )
    arranged.add_argument("set", choices=WRITERS)
    arranged.add_argument("path", type=Path, help="the file or folder of the set on your disk")
    arranged.add_argument(
        "images", type=Path, help="a folder of images in the order of the prompts, the same number for each"
    )
    arranged.add_argument("out", type=Path, help="output folder for the grader")


def prompts(arguments: argparse.Namespace) -> None:
    """Print the prompts of a set, without line breaks in a prompt.

    Raises:
        InvalidConfig: a malformed file, or an unknown group.
    """
    found = read_prompts(arguments.set, arguments.path)
    groups = list(dict.fromkeys(prompt.group for prompt in found))
    if arguments.group is not None and arguments.group not in groups:
        raise InvalidConfig(f"there is no group {arguments.group!r}; choose one of {', '.join(groups)}")
    for prompt in found:
        if arguments.group in (None, prompt.group):
            print(" ".join(prompt.text.split()), flush=True)


def arrange(arguments: argparse.Namespace) -> None:
    """Write the images of a folder in the layout of a grader.

    Raises:
        InvalidConfig: the number of images does not match, an image is damaged, or the grader does not accept it.
        TargetExists, NotWritten: the output folder exists, or it cannot be written.
    """
    found, paths = read_prompts(arguments.set, arguments.path), pictures_in(arguments.images)
    check_target(arguments.out)
    groups = by_prompt(paths, len(found), str(arguments.images))
    with written_folder(arguments.out) as folder:
        for prompt, files in zip(found, groups, strict=True):
            WRITERS[arguments.set](folder, prompt, [opened(path) for path in files])
    print(f"{len(paths)} images of {len(found)} prompts written to {arguments.out}", flush=True)
