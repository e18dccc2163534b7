"""Tables whose cells are the outcomes of tests: each test records `row|column|outcome`."""

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


def cells_of_this_host(name: str, *more: str) -> dict[str, Any]:
    """Run tests/host/test_<name>.py, and more files of its kind.

    Returns:
        Their cells under this ComfyUI's version, beside those stored for others.
    """
    path = RESULTS / f"{name}.json"
    hosts = json.loads(path.read_text(encoding="utf-8"))["hosts"] if path.is_file() else {}
    hosts[machine()["comfyui"]] = [cell for one in (name, *more) for cell in cells_of(f"tests/host/test_{one}.py")]
    return {"hosts": dict(sorted(hosts.items()))}


def cells_of(file: str) -> list[list[str]]:
    """Run a file of tests, those of the extended tests included, and return its cells."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-m", "", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if subprocess.run(
            [sys.executable, "-m", "pytest", *options, file], cwd=ROOT, env=os.environ, check=False
        ).returncode:
            raise Stop(f"{file} has failures, so there is no table to write. Fix them, then run again.")
        properties = ElementTree.parse(report).getroot().iter("property")
        return [p.attrib["value"].split("|") for p in properties if p.attrib["name"] == CELL]


def outcomes(result: dict[str, Any]) -> tuple[list[str], dict[str, dict[tuple[str, str], str]]]:
    """Return the names of all rows in the order of the tests, and host -> (row, column) -> outcome."""
    hosts = {host: {(row, column): out for row, column, out in cells} for host, cells in result["hosts"].items()}
    return list(dict.fromkeys(row for found in hosts.values() for row, _ in found)), hosts
