"""Pictures in the folders that the official graders of DPG-Bench, GenEval look into."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..errors import InvalidConfig
from ..prompts.prompt_sets import BenchmarkPrompt

DPG_COUNTS = (1, 4)


def write_dpg(folder: Path, prompt: BenchmarkPrompt, pictures: Sequence[Image.Image]) -> None:
    """Write FOLDER/NAME.png: one picture, or four as two rows of two.

    The grader is then run with --pic-num 1 or 4, --resolution the side of one picture.
    Raises:
        InvalidConfig: another number of pictures, or pictures that are not square and alike.
    """
    if len(pictures) not in DPG_COUNTS:
        raise InvalidConfig(f"DPG-Bench takes 1 or 4 pictures of a prompt, {prompt.name} has {len(pictures)}")
    width, height = pictures[0].size
    if width != height or any(picture.size != (width, height) for picture in pictures):
        raise InvalidConfig(f"the pictures of {prompt.name} are not square and of one size, as the grader cuts them")
    across = 2 if len(pictures) == 4 else 1
    whole = Image.new("RGB", (across * width, across * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture.convert("RGB"), (number % across * width, number // across * height))
    folder.mkdir(parents=True, exist_ok=True)
    whole.save(folder / f"{prompt.name}.png")


def write_geneval(folder: Path, prompt: BenchmarkPrompt, pictures: Sequence[Image.Image]) -> None:
    """Write FOLDER/NUMBER/metadata.jsonl with FOLDER/NUMBER/samples/00000.png and so on.

    Raises:
        InvalidConfig: a prompt of another set, which has no metadata.
    """
    if not {"tag", "include", "prompt"} <= prompt.record.keys():
        raise InvalidConfig(f"{prompt.name} is no prompt of GenEval; read evaluation_metadata.jsonl")
    samples = folder / prompt.name / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    (folder / prompt.name / "metadata.jsonl").write_text(json.dumps(dict(prompt.record)), encoding="utf-8")
    for number, picture in enumerate(pictures):
        picture.convert("RGB").save(samples / f"{number:05}.png")


WRITERS: dict[str, Callable[[Path, BenchmarkPrompt, Sequence[Image.Image]], None]] = {
    "dpg": write_dpg,
    "geneval": write_geneval,
}
"""Name of a set -> how its grader finds pictures."""
