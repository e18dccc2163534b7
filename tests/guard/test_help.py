"""Help pages that open behind the question mark of a node."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent


def inputs_of_nodes():
    """Return node id -> ids of its inputs, read off the schemas."""
    found = {}
    for path in sorted((REPO / "nodes").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "schema":
                given = {keyword.arg: keyword.value for keyword in call.keywords}
                if isinstance(given.get("node_id"), ast.Constant):
                    found[given["node_id"].value] = [item.args[1].value for item in given["inputs"].elts]
    return found


NODES = inputs_of_nodes()
each_node = pytest.mark.parametrize("node_id", NODES)


def page_of(node_id):
    return (REPO / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")


def test_nodes_are_found():
    assert {"TeEFusionConditioning", "TinySD3Loader"} <= NODES.keys()


@each_node
def test_the_page_explains_every_input(node_id):
    page = page_of(node_id)
    assert page.startswith("# ")
    for name in NODES[node_id]:
        assert f"**{name}**" in page, name


@each_node
def test_the_page_answers_what_when_cost_trouble(node_id):
    headings = re.findall(r"^## (.+)$", page_of(node_id), flags=re.MULTILINE)
    assert {"When to use it", "Outputs", "Cost", "If something looks wrong"} <= set(headings)


@each_node
def test_tables_have_even_rows(node_id):
    for block in re.findall(r"(?:^\|.*\|\n)+", page_of(node_id), flags=re.MULTILINE):
        assert len({row.count("|") for row in block.splitlines()}) == 1, block


def test_every_page_belongs_to_a_node():
    assert {path.stem for path in (REPO / "web" / "docs").glob("*.md")} == NODES.keys()
