"""Tables whose cells are the outcomes of tests: each test records `row|column|outcome`."""

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
"""Name of the property in which a test records its cell."""


def cells_of_this_host(name: str) -> dict[str, Any]:
    """Run tests/host/test_<name>.py; return its cells for this ComfyUI, and the stored ones for other versions.

    Raises:
        Stop: a test failed; the table is not changed.
    """
    path, file = RESULTS / f"{name}.json", f"tests/host/test_{name}.py"
    hosts = json.loads(path.read_text(encoding="utf-8"))["hosts"] if path.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file]
        if subprocess.run(command, cwd=ROOT, env=os.environ, check=False).returncode:
            raise Stop(f"{file} has failures, so there is no table to write. Fix them, then run again.")
        properties = ElementTree.parse(report).getroot().iter("property")
        hosts[machine()["comfyui"]] = [p.attrib["value"].split("|") for p in properties if p.attrib["name"] == CELL]
    return {"hosts": dict(sorted(hosts.items()))}


def outcomes(result: dict[str, Any]) -> tuple[list[str], dict[str, dict[tuple[str, str], str]]]:
    """Return the names of all rows in the order of the tests, and host -> (row, column) -> outcome."""
    hosts = {host: {(row, column): out for row, column, out in cells} for host, cells in result["hosts"].items()}
    return list(dict.fromkeys(row for found in hosts.values() for row, _ in found)), hosts
