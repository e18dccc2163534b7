"""What scripts/bench.py takes on its command line, before anything is set up."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "bench.py"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--render", "tables"], "leave the names out"),
        (["nothing"], "no benchmark is called nothing; choose from alignment"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(given, told):
    done = subprocess.run([sys.executable, str(SCRIPT), *given], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and told in done.stderr


def test_tables_are_on_offer():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "tables" in done.stdout and "--render" in done.stdout
