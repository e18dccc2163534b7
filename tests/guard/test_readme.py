"""README and docs: their tables against lab/results, their links against the files."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
RESULTS = REPO / "lab" / "results"
PAGES = sorted(path.relative_to(REPO).as_posix() for path in [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
each_page = pytest.mark.parametrize("name", PAGES)


@each_page
def test_every_table_equals_its_results(name):
    from lab.benches import _pages

    page = (REPO / name).read_text(encoding="utf-8")
    tables = re.findall(r"<!-- table:(\w+) -->", page)
    assert bool(tables) == (name in _pages.PAGES)
    for table in tables:
        assert (RESULTS / f"{_pages.TABLES[table][0]}.json").is_file(), f"run scripts/bench.py for {table}"
    assert not tables or _pages.rendered(page, RESULTS) == page


@each_page
def test_no_relative_link_is_broken(name):
    page = REPO / name
    broken = [
        target for target in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()
    ]
    assert not broken


def test_both_readmes_show_the_same_tables():
    english, chinese = ((REPO / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert sorted(re.findall(r"<!-- table:(\w+) -->", english)) == sorted(re.findall(r"<!-- table:(\w+) -->", chinese))
