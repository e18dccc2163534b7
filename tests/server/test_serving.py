"""What docs/serving.md says to a client."""

import json
import os
import re
import subprocess
import time

from runner.comparison import WORKFLOW, read_workflow
from runner.graph import to_prompt
from runner.places import ROOT

DEADLINE = 300  # seconds


def asked(program, server, folder):
    """Run the commands of the page; return what the history says of each prompt."""
    command, environment = ["bash", "-e", "-c", program], {**os.environ, "SERVER": server.url}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = []
    for number in re.findall(r'"prompt_id": "([^"]+)"', done.stdout):
        end = time.monotonic() + DEADLINE
        while not (history := server.get(f"/history/{number}")):
            assert time.monotonic() < end
            time.sleep(0.2)
        found.append(history[number])
    return found


def test_the_commands_in_the_docs_sample_three_strengths(server, tmp_path):
    (program,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), re.S)
    prompt = to_prompt(read_workflow(WORKFLOW), server.get("/object_info"))
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    (tmp_path / "workflow_api.json").write_text(json.dumps(prompt, indent=2), encoding="utf-8")
    runs = asked(program, server, tmp_path)
    assert [run["status"]["status_str"] for run in runs] == ["success"] * 3
    images = [image["filename"] for run in runs for out in run["outputs"].values() for image in out.get("images", ())]
    assert len(set(images)) == 3
    (wrong,) = asked(program.replace("1.0 2.0 3.0", "50.0"), server, tmp_path)
    assert wrong["status"]["status_str"] == "error"
    assert "guidance is 50, but this student allows" in json.dumps(wrong["status"]["messages"])
