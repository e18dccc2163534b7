"""Help pages that open beside a node."""

import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
DOCS = REPO / "web" / "docs"
NODES = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
each_node = pytest.mark.parametrize("node_id", NODES)


@each_node
def test_the_page_explains_every_input(node_id):
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    assert not [name for name in NODES[node_id]["inputs"] if f"**{name}**" not in page]


def test_every_page_belongs_to_a_node():
    pages = {name for node_id in NODES for name in (f"{node_id}.md", f"{node_id}/zh.md")}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == pages


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_tables_have_even_rows(path):
    for block in re.findall(r"(?:^\|.*\|\n)+", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert len({row.count("|") for row in block.splitlines()}) == 1, block
