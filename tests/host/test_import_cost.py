"""What a starting ComfyUI has to import for this pack; counted, since seconds depend on the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
OURS_AT_MOST = 90


def test_it_imports_few_modules_of_its_own_and_no_library(host):
    command = [sys.executable, str(REPO / "lab" / "benches" / "_import.py"), str(host.path), str(REPO)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    cost = json.loads(done.stdout.splitlines()[-1])
    assert cost["others"] == [], "import it where it is used"
    assert 20 < cost["ours"] <= OURS_AT_MOST
