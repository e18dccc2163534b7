"""Every writer on a disk that is full or read-only: `python full_disk.py FOLDER`, in a mount namespace.

It prints, as JSON, what each one said, then the files that are there.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from teefusion_core.errors import TeEFusionError
from teefusion_core.evaluation.grader_layouts import write_geneval
from teefusion_core.files.output_file import write_text, written_folder
from teefusion_core.files.tensor_file import write_tensors
from teefusion_core.prompts.prompt_sets import BenchmarkPrompt
from teefusion_core.training.checkpoint import CheckpointFolder

BIG = torch.rand(1 << 18)  # a megabyte, four times the disk
RECORD = {"tag": "", "include": [], "prompt": "x"}


def images(folder):
    noise = Image.effect_noise((512, 512), 100)
    with written_folder(folder / "arranged") as part:
        write_geneval(part, BenchmarkPrompt("00000", "x", record=RECORD), [noise] * 4)


def checkpoint(folder):
    run = CheckpointFolder(folder, "run", base="base")
    small = {"a": torch.ones(4)}
    if not run.steps() and (folder / "writable").exists():
        run.save(1, {}, {"weights": small}, {"x": 1})
    run.save(2, {}, {"weights": {"a": BIG}}, {"x": 1})


WRITERS = {
    "student": lambda folder: write_tensors(folder / "student.safetensors", {"a": BIG}, {"format": "x"}),
    "scores": lambda folder: write_text(folder / "scores.json", "x" * (1 << 20)),
    "images": images,
    "checkpoint": checkpoint,
}


def tried(write, folder):
    try:
        write(folder)
    except TeEFusionError as error:
        return " ".join(str(error).split())
    return "written"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    said = {name: tried(write, place) for name, write in WRITERS.items()}
    print(json.dumps([said, sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())]))
