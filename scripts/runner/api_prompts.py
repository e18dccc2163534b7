"""The shipped workflows as API prompts, and one that samples the student alone."""

import json
from pathlib import Path

from .comparison import WORKFLOW, read_workflow
from .graph import Json, find, to_prompt
from .places import WORKFLOWS

FOLDER: Path = WORKFLOWS / "api"
STUDENT = "student"
"""Name of the prompt that samples the student alone."""


def api_prompts(object_info: Json) -> dict[str, Json]:
    """Return name -> prompt of every workflow, and of the student of template 01 alone."""
    found = {path.stem: to_prompt(read_workflow(path), object_info) for path in sorted(WORKFLOWS.glob("*.json"))}
    return {**found, STUDENT: _student(to_prompt(read_workflow(WORKFLOW), object_info))}


def written(prompt: Json) -> str:
    return json.dumps(prompt, indent=1) + "\n"


def _student(prompt: Json) -> Json:
    """Keep what the images of the student need, and save these."""
    save, decode = find(prompt, "Result"), find(prompt, "Decode student")
    prompt[save]["inputs"]["images"] = [decode, 0]
    kept, waiting = {}, [save]
    while waiting:
        key = waiting.pop()
        kept[key] = prompt[key]
        waiting += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return {key: kept[key] for key in sorted(kept, key=int)}
