"""The shipped workflows as API prompts, and one that samples the student alone."""

import json
from pathlib import Path

from .comparison import WORKFLOW, read_workflow
from .graph import Json, find, to_prompt
from .places import WORKFLOWS

FOLDER: Path = WORKFLOWS / "api"
STUDENT, SWEEP = "student", "student_sweep"
"""Names of the prompts that sample the student alone: at one guidance, and at several with a file for each."""


def api_prompts(object_info: Json) -> dict[str, Json]:
    """Return name -> prompt of every workflow, of the student of template 01, and of a sweep as single files."""
    found = {path.stem: to_prompt(read_workflow(path), object_info) for path in sorted(WORKFLOWS.glob("*.json"))}
    student = _saved(found[WORKFLOW.stem], "Decode student", f"teefusion/{STUDENT}")
    return {**found, STUDENT: student, SWEEP: _saved(found["11 Guidance sweep"], "Decode", f"teefusion/{SWEEP}")}


def written(prompt: Json) -> str:
    return json.dumps(prompt, indent=1) + "\n"


def _saved(prompt: Json, title: str, prefix: str) -> Json:
    """Return what the images of a node need, and the node that saves them; one image per request."""
    save, decode = find(prompt, "Result"), find(prompt, title)
    inputs = {"images": [decode, 0], "filename_prefix": prefix}
    kept, waiting = {save: {**prompt[save], "inputs": inputs}}, [decode]
    while waiting:
        key = waiting.pop()
        kept[key] = prompt[key]
        waiting += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    for key, node in kept.items():
        if "batch_size" in node["inputs"]:
            kept[key] = {**node, "inputs": {**node["inputs"], "batch_size": 1}}
    return {key: kept[key] for key in sorted(kept, key=int)}
