"""Numbers, commands of the README against what produced them."""

import re
import shlex
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
RESULTS = REPO / "bench" / "results"


@pytest.fixture(scope="module")
def readme_tables():
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        from benches import _readme
    finally:
        sys.path.remove(str(REPO / "scripts"))
    return _readme


def test_every_table_equals_its_results(readme_tables):
    assert readme_tables.rendered(README, RESULTS) == README


def test_every_table_has_results(readme_tables):
    named = re.findall(r"<!-- table:(\w+) -->", README)
    assert set(named) == readme_tables.TABLES.keys()
    for name in named:
        assert (RESULTS / f"{readme_tables.TABLES[name][0]}.json").is_file(), f"run scripts/bench.py for {name}"


def test_a_changed_number_is_noticed(readme_tables):
    wrong = re.sub(r"(\| TeEFusion student \| w 2[^\n]*\| )0\.\d+( \| \d+ \|)", r"\g<1>9.999\2", README)
    assert wrong != README
    assert readme_tables.rendered(wrong, RESULTS) == README


def test_every_command_names_a_script_that_is_there():
    commands = [line for line in README.splitlines() if line.startswith("python3 ")]
    assert commands
    for command in commands:
        assert (REPO / shlex.split(command, comments=True)[1]).is_file(), command


def test_every_linked_file_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (REPO / target).exists(), target
