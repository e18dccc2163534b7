"""The shipped workflows as API prompts, and some of them without the methods that they compare with."""

import json
from pathlib import Path

from .comparison import WORKFLOW, read_workflow
from .graph import Json, find, to_prompt
from .places import WORKFLOWS

FOLDER: Path = WORKFLOWS / "api"
STUDENT, SWEEP, MIDDLE = "student", "student_sweep", "cfg_in_the_middle"
"""Names of the prompts of one method alone: a student, a sweep with a file for each guidance, CFG in an interval."""


def api_prompts(object_info: Json) -> dict[str, Json]:
    """Return name -> prompt of every workflow, and of those that sample one method alone."""
    found = {path.stem: to_prompt(read_workflow(path), object_info) for path in sorted(WORKFLOWS.glob("*.json"))}
    alone = {
        STUDENT: (WORKFLOW.stem, "Decode student"),
        SWEEP: ("11 Guidance sweep", "Decode"),
        MIDDLE: ("13 CFG in the middle only", "Decode schedule"),
    }
    parts = {name: _saved(found[of], title, f"teefusion/{name}") for name, (of, title) in alone.items()}
    return {**found, **parts}


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
            kept[key] = {**node, "inputs": {**node["inputs"], "batch_size": 1}, "_meta": {"title": "One empty image"}}
    return {key: kept[key] for key in sorted(kept, key=int)}
