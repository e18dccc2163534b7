"""Judges on the command line: score a folder of pictures, convert the weights of a judge."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..errors import InvalidConfig
from ..files.image_folder import captioned, opened, pictures_in
from ..prompts.prompt_list import prompt_of_each
from .judges import JUDGES
from .score_table import ScoreTable


def add_commands(commands) -> None:
    """Add `score` with `convert` to a parser's commands."""
    score = commands.add_parser("score", help="score pictures with the metrics of the field, by weights that you have")
    score.add_argument("folder", type=Path, help="pictures, each with its prompt in a .txt of its name beside it")
    score.add_argument("--prompts", type=Path, help="a file of prompts, a line each, instead; by the order of names")
    for judge in JUDGES:
        score.add_argument(f"--{judge.replace('_', '-')}", help="safetensors: a path, or a name in clip_vision folders")
    score.add_argument("--out", type=Path, help="write the scores there as JSON too")
    change = commands.add_parser("convert", help="write a pickle of weights as safetensors; only tensors are taken")
    change.add_argument("source", type=Path)
    change.add_argument("target", type=Path)


def score(arguments: argparse.Namespace, find: Callable[[str, str], Path], judged: Callable[..., ScoreTable]) -> None:
    """Print the table of a folder.

    Args:
        arguments: of the command.
        find: (judge, name) -> its weights in the host's folders.
        judged: (pictures, prompts, files, names) -> table, by the host.
    Raises:
        InvalidConfig: no pictures, no prompts, or no judge.
        CheckpointMismatch: weights that are none of this judge.
    """
    paths, prompts = _pictures(arguments.folder, arguments.prompts)
    given = {judge: getattr(arguments, judge) for judge in JUDGES}
    files = {judge: Path(name) if Path(name).is_file() else find(judge, name) for judge, name in given.items() if name}
    table = judged([opened(path) for path in paths], prompts, files, [path.name for path in paths])
    print(table.text(), flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table.json() + "\n", encoding="utf-8")


def convert(arguments: argparse.Namespace, write: Callable[[Path, Path], int]) -> None:
    """Write safetensors by the host's reader of files that nobody trusts, say how many tensors.

    Raises:
        CheckpointMismatch: a file that is more than tensors, or a target that is there.
    """
    print(f"{write(arguments.source, arguments.target)} tensors written to {arguments.target}", flush=True)


def _pictures(folder: Path, prompts: Path | None) -> tuple[list[Path], list[str]]:
    if prompts is None:
        found = captioned(folder)
        return [one.path for one in found], [one.caption for one in found]
    paths = pictures_in(folder)
    try:
        text = prompts.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{prompts} cannot be read ({error}); give a text file, a prompt per line") from error
    return paths, prompt_of_each(text, len(paths), str(folder))
