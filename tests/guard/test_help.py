"""Help pages that open behind the question mark of a node."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent


def inputs_of_nodes():
    """Return node id -> ids of its inputs, read off `execute`, which takes exactly these (a test of the host tier)."""
    found = {}
    for path in sorted((REPO / "nodes").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            keywords = [item for item in ast.walk(node) if isinstance(item, ast.keyword) and item.arg == "node_id"]
            methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
            if keywords:
                found[keywords[0].value.value] = [argument.arg for argument in methods["execute"].args.args[1:]]
    return found


def sentences_of_the_code():
    """Return every text of nodes and core, with ... where the code fills something in."""
    texts = set()
    for path in [*(REPO / "nodes").glob("*.py"), *(REPO / "teefusion_core").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                texts.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(re.sub(r"%[sg]", "...", node.value))
    return texts


NODES, SENTENCES = inputs_of_nodes(), sentences_of_the_code()
each_node = pytest.mark.parametrize("node_id", NODES)


def page_of(node_id):
    return (REPO / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")


def test_nodes_are_found():
    assert {"TeEFusionConditioning", "TinySD3Loader", "W2SDTeacherSampler", "ReflectionGuider"} <= NODES.keys()
    assert all(NODES[node_id] for node_id in NODES)


@each_node
def test_the_page_explains_every_input(node_id):
    page = page_of(node_id)
    assert page.startswith("# ")
    for name in NODES[node_id]:
        assert f"**{name}**" in page, name


@each_node
def test_the_page_answers_what_when_cost_trouble(node_id):
    headings = re.findall(r"^## (.+)$", page_of(node_id), flags=re.MULTILINE)
    assert {"When to use it", "Outputs", "Cost and limits", "Troubleshooting"} <= set(headings)


@each_node
def test_quoted_messages_are_those_of_the_code(node_id):
    for quote in re.findall(r'^\|[^|]*"([^"|]+)"', page_of(node_id), flags=re.MULTILINE):
        pattern = re.compile(".*".join(re.escape(part) for part in quote.split("...")))
        assert any(pattern.search(text) for text in SENTENCES), quote


@pytest.mark.parametrize("node_id", ["W2SDTeacherSampler", "ZSampling", "ReflectionGuider"])
def test_costs_follow_from_the_scales(node_id):
    rows = re.findall(r"^\| ([\d.]+(?: / [\d.]+)+) \| .*= (\d+) \| (\d+) \|$", page_of(node_id), flags=re.MULTILINE)
    assert len(rows) >= 4
    for scales, one_step, run in rows:
        phases = [1 if float(scale) in (0, 1) else 2 for scale in scales.split(" / ")]
        phases = phases if len(phases) == 3 else [*phases, phases[0]]
        assert (int(one_step), int(run)) == (sum(phases), 19 * sum(phases) + phases[-1]), scales


@each_node
def test_tables_have_even_rows(node_id):
    for block in re.findall(r"(?:^\|.*\|\n)+", page_of(node_id), flags=re.MULTILINE):
        assert len({row.count("|") for row in block.splitlines()}) == 1, block


def test_every_page_belongs_to_a_node():
    assert {path.stem for path in (REPO / "web" / "docs").glob("*.md")} == NODES.keys()
