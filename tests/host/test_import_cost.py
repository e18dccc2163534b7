"""What a starting ComfyUI has to import for this pack; counted, since seconds depend on the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
OURS_AT_MOST = 100


@pytest.fixture(scope="module")
def cost(host):
    script = REPO / "lab" / "benches" / "import_time.py"
    done = subprocess.run(
        [sys.executable, str(script), str(host.path), str(REPO), "1"], check=True, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_it_brings_no_library_in(cost):
    assert cost["others"] == [], "import it where it is used"


def test_its_own_modules_are_few(cost):
    assert 20 < cost["ours"] <= OURS_AT_MOST
