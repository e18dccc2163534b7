"""What scripts/bench.py takes on its command line, before anything is set up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.benches._soak_graphs import graphs

REPO = Path(__file__).resolve().parent.parent.parent
SCRIPT = REPO / "scripts" / "bench.py"


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


def test_the_soak_asks_every_node():
    asked = {node["class_type"] for graph in graphs(0).values() for node in graph.values()}
    assert asked >= json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")).keys()
