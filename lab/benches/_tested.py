"""Tables that tests write: a test tells cells, this reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from runner.places import ROOT
from runner.stop import Stop

from ._report import RESULTS, machine

CELL = "cell"
"""Property of a test, `row|column|outcome`."""


def of_this_host(name: str) -> dict[str, Any]:
    """Run tests/host/test_<name>.py; return its cells by the host's version, beside those of hosts before.

    Raises:
        Stop: a test failed, which leaves the table as it is.
    """
    path = RESULTS / f"{name}.json"
    hosts = json.loads(path.read_text(encoding="utf-8"))["hosts"] if path.is_file() else {}
    hosts[machine()["comfyui"]] = _cells(f"tests/host/test_{name}.py")
    return {"hosts": dict(sorted(hosts.items()))}


def _cells(file: str) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, check=False)
        if done.returncode:
            raise Stop(f"{file} has failures, so there is no table to write; mend them, then run again.")
        properties = ElementTree.parse(report).getroot().iter("property")
    return [p.attrib["value"].split("|") for p in properties if p.attrib["name"] == CELL]


def by_row(cells: list[list[str]]) -> dict[str, dict[str, str]]:
    """Return row -> column -> outcome, in the order of the tests."""
    found: dict[str, dict[str, str]] = {}
    for row, column, outcome in cells:
        found.setdefault(row, {})[column] = outcome
    return found
