"""Commands for image scores: score, convert."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..files import pickle_file
from ..files.image_file import opened
from ..files.image_folder import captioned, pictures_in
from ..files.output_file import check_target, write_text
from ..files.text_file import read_text
from ..prompts.prompt_list import prompt_of_each
from .judges import JUDGES
from .score_table import ScoreTable


def add_commands(commands) -> None:
    """Add the commands `score` and `convert` to a parser."""
    score = commands.add_parser(
        "score", help="score images with CLIPScore, PickScore, HPSv2.1, LAION aesthetic, ImageReward"
    )
    score.add_argument("folder", type=Path, help="images, each with its prompt in a .txt file of the same name")
    score.add_argument(
        "--prompts", type=Path, help="a file with one prompt per line instead, in the order of the file names"
    )
    score.add_argument("--subfolders", action="store_true", help="also score the images in the folders inside")
    for judge in JUDGES:
        score.add_argument(
            f"--{judge.replace('_', '-')}", help="weights: a .safetensors path, or a name in clip_vision folders"
        )
    score.add_argument("--out", type=Path, help="also write the scores to this file as JSON")
    change = commands.add_parser("convert", help="convert a pickle of weights to safetensors; only tensors are read")
    change.add_argument("source", type=Path)
    change.add_argument("target", type=Path)
    change.add_argument("--state", default="", help="which state to take if the pickle has several, e.g. ema")


def score(arguments: argparse.Namespace, find: Callable[[str, str], Path], judged: Callable[..., ScoreTable]) -> None:
    """Print the scores of a folder.

    Args:
        arguments: of the command.
        find: (judge, name) -> path of its weights in the host's folders.
        judged: (paths of images, prompts, files, names) -> table.
    Raises:
        InvalidConfig: no images, a damaged image, no prompts, or no judge.
        CheckpointMismatch: weights of another model.
        NotWritten: the scores are printed, but the file could not be written.
    """
    paths, prompts = _pictures(arguments.folder, arguments.prompts, arguments.subfolders)
    given = {judge: getattr(arguments, judge) for judge in JUDGES}
    files = {judge: Path(name) if Path(name).is_file() else find(judge, name) for judge, name in given.items() if name}
    if arguments.out is not None:
        check_target(arguments.out)
    for path in paths:
        opened(path)  # a damaged image is an error now, not after an hour; all of them together may not fit in memory
    table = judged(paths, prompts, files, [str(path.relative_to(arguments.folder)) for path in paths])
    try:  # neither a full disk nor a closed pipe loses the scores of both
        print(table.text(), flush=True)
    finally:
        if arguments.out is not None:
            write_text(arguments.out, table.json() + "\n")


def convert(arguments: argparse.Namespace) -> None:
    """Convert weights; print which state they are and the number of tensors.

    Raises:
        CheckpointMismatch: the source holds more than tensors.
        InvalidConfig: the source has several states.
        TargetExists: the target exists.
    """
    state, number = pickle_file.convert(arguments.source, arguments.target, arguments.state)
    of = "" if state == pickle_file.TOP else f" of {state!r}"
    print(f"{number} tensors{of} written to {arguments.target}", flush=True)


def _pictures(folder: Path, prompts: Path | None, subfolders: bool) -> tuple[list[Path], list[str]]:
    if prompts is None:
        found = captioned(folder, subfolders=subfolders)
        return [one.path for one in found], [one.caption for one in found]
    paths = pictures_in(folder, subfolders=subfolders)
    return paths, prompt_of_each(read_text(prompts), len(paths), str(folder))
