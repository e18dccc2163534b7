"""Numbers, commands of README and docs against what produced them."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
README, CHINESE = ((REPO / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
PAGES = ["README.md", "README.zh-CN.md"]
PAGES += [
    f"docs/{name}.md" for name in ("method", "reflection", "training", "evidence", "compatibility", "text_arithmetic")
]
each_page = pytest.mark.parametrize("name", PAGES)
each_readme = pytest.mark.parametrize("readme", [README, CHINESE], ids=["English", "Chinese"])
RESULTS = REPO / "lab" / "results"


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        from lab.benches import _pages
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


@each_readme
def test_every_command_names_a_script_that_is_there(readme):
    commands = [line for line in readme.splitlines() if line.startswith("python3 ")]
    assert commands
    for command in commands:
        assert (REPO / shlex.split(command, comments=True)[1]).is_file(), command


@each_readme
def test_every_linked_file_is_there(readme):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (REPO / target).exists(), target


@each_readme
def test_every_named_workflow_is_there(readme):
    for name in re.findall(r"`(?:workflows/)?(\d\d_\w+)(?:\.json)?`", readme):
        assert (REPO / "workflows" / f"{name}.json").is_file(), name


class TestChinese:
    def test_each_links_to_the_other_in_its_first_lines(self):
        assert "(README.zh-CN.md)" in README[:200] and "(README.md)" in CHINESE[:200]

    def test_both_show_the_same_tables(self):
        shown = [sorted(re.findall(r"<!-- table:(\w+) -->", readme)) for readme in (README, CHINESE)]
        assert shown[0] == shown[1]

    def test_it_tells_no_number_that_the_english_one_does_not(self):
        prose = re.sub(r"(?:docs|web|workflows)/\S+|`\d\d_\w+`", "", CHINESE)
        assert set(_numbers(prose)) <= set(_numbers(README))

    def test_nodes_have_the_names_that_the_canvas_shows(self):
        names = json.loads((REPO / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
        for node in names.values():
            assert f"**{node['display_name']}**" in CHINESE, node["display_name"]


def _numbers(text):
    return re.findall(r"\d+(?:\.\d+)*", text)
