"""Image layouts for the official graders of DPG-Bench or GenEval."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..errors import InvalidConfig
from ..prompts.prompt_sets import BenchmarkPrompt

DPG_COUNTS = (1, 4)


def write_dpg(folder: Path, prompt: BenchmarkPrompt, pictures: Sequence[Image.Image]) -> None:
    """Write FOLDER/NAME.png with one image, or with four in two rows of two.

    Run the grader with --pic-num 1 or 4 and the side of one image as --resolution.
    Raises:
        InvalidConfig: another number of images, or images that are not square and of one size.
    """
    if len(pictures) not in DPG_COUNTS:
        raise InvalidConfig(f"{prompt.name} has {len(pictures)} images; DPG-Bench takes 1 or 4 images per prompt")
    width, height = pictures[0].size
    if width != height or any(picture.size != (width, height) for picture in pictures):
        raise InvalidConfig(f"the images of {prompt.name} are not square and of one size; DPG-Bench needs both")
    across = 2 if len(pictures) == 4 else 1
    whole = Image.new("RGB", (across * width, across * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture.convert("RGB"), (number % across * width, number // across * height))
    folder.mkdir(parents=True, exist_ok=True)
    whole.save(folder / f"{prompt.name}.png")


def write_geneval(folder: Path, prompt: BenchmarkPrompt, pictures: Sequence[Image.Image]) -> None:
    """Write FOLDER/NUMBER/metadata.jsonl and FOLDER/NUMBER/samples/00000.png etc.

    Raises:
        InvalidConfig: the prompt is not from GenEval and has no metadata.
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
"""Name of a set -> function that writes the images of a prompt."""
