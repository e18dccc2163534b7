"""Numbers, commands of README and docs against what produced them."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
each_page = pytest.mark.parametrize("name", ["README.md", "docs/train.md"])
RESULTS = REPO / "bench" / "results"


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        from benches import _pages
    finally:
        sys.path.remove(str(REPO / "scripts"))
    return _pages


@each_page
def test_every_table_equals_its_results(tables, name):
    page = (REPO / name).read_text(encoding="utf-8")
    assert name in tables.PAGES and tables.rendered(page, RESULTS) == page


@each_page
def test_every_table_has_results(tables, name):
    found = re.findall(r"<!-- table:(\w+) -->", (REPO / name).read_text(encoding="utf-8"))
    assert found
    for table in found:
        assert (RESULTS / f"{tables.TABLES[table][0]}.json").is_file(), f"run scripts/bench.py for {table}"


def test_a_changed_number_is_mended(tables, tmp_path):
    ratios = {"q1": 1.0, "median": 1.01, "q3": 1.02}
    row = {"size": 64, "batch": 1, "step_ms": {"stock": 5.0, "student": 5.05, "teacher": 9.0}}
    row |= {"student_over_stock": ratios, "teacher_over_student": ratios}
    (tmp_path / "overhead.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    page = tables.rendered("<!-- table:overhead -->\nold\n<!-- /table -->\n", tmp_path)
    assert "| 5.05 |" in page and "old" not in page
    assert tables.rendered(page.replace("5.05", "4.00"), tmp_path) == page


def test_every_command_names_a_script_that_is_there():
    commands = [line for line in README.splitlines() if line.startswith("python3 ")]
    assert commands
    for command in commands:
        assert (REPO / shlex.split(command, comments=True)[1]).is_file(), command


def test_every_linked_file_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (REPO / target).exists(), target
