"""A full disk and a read-only one, real ones: nothing finished is lost, nothing half-written stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
NAMED = {"student": "student.safetensors", "scores": "scores.json", "images": "arranged", "checkpoint": "run"}
FINISHED = ["run/step-00000001/checkpoint.json", "run/step-00000001/rank-0.safetensors"]
FINISHED += ["run/step-00000001/weights.safetensors"]
MOUNT = 'mount -t tmpfs -o size=256k tmpfs "$1" && echo old > "$1/old" && touch "$1/writable"'
READ_ONLY = 'rm "$1/writable" && mount -o remount,ro "$1"'


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_every_writer(tmp_path, disk):
    script = " && ".join([MOUNT, *([READ_ONLY] if disk == "read-only" else []), '"$2" -m tests.unit.full_disk "$1"'])
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", tmp_path, sys.executable]
    if os.geteuid() == 0:
        command.remove("--map-root-user")
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said, files = json.loads(done.stdout)
    for writer, name in NAMED.items():
        assert name in said[writer] and ("space" if disk == "full" else "read-only") in said[writer].lower(), said
    assert files == sorted(["old", "writable", *FINISHED] if disk == "full" else ["old"])
