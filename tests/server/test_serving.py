"""What docs/serving.md says to a client."""

import json
import re
import subprocess
import sys

from runner.comparison import WORKFLOW, read_workflow
from runner.graph import to_prompt
from runner.places import ROOT


def test_the_program_in_the_docs_samples_three_strengths(server, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), re.S)
    prompt = to_prompt(read_workflow(WORKFLOW), server.get("/object_info"))
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    (tmp_path / "workflow_api.json").write_text(json.dumps(prompt), encoding="utf-8")
    command = [sys.executable, "-c", program, server.url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["1.0", "2.0", "4.0"]
    assert len({name for line in lines for name in line[1:]}) == 3, done.stdout
    ranged = program.replace("(1.0, 2.0, 4.0)", "(50.0,)")
    done = subprocess.run([*command[:2], ranged, server.url], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          check=False)  # fmt: skip
    assert done.returncode != 0 and "trained for w from 0.5 to" in done.stderr
