"""Help pages that open beside a node."""

import ast
import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
DOCS = REPO / "web" / "docs"
NODES = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
QUOTED = re.compile(r'"([^"]+)"')
LANGUAGES = ("{}.md", "{}/zh.md")
PICTURE = re.compile(r"!\[(.*)\]\((.+)\)")
each_node = pytest.mark.parametrize("node_id", NODES)


@each_node
def test_the_page_explains_every_input(node_id):
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    assert not [name for name in NODES[node_id]["inputs"] if f"**{name}**" not in page]


def pictures(page):
    """Return (alt text, file) of each picture; the interface resolves its path from DOCS, in every language."""
    return [(text, DOCS / target) for text, target in PICTURE.findall(page.read_text(encoding="utf-8"))]


@each_node
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_shows_pictures_and_says_what_is_on_them(node_id, language):
    shown = pictures(DOCS / language.format(node_id))
    assert shown and not [target for text, target in shown if not text.strip() or not target.is_file()]


@each_node
def test_both_languages_show_the_same_pictures(node_id):
    english, chinese = ([target for _, target in pictures(DOCS / name.format(node_id))] for name in LANGUAGES)
    assert english == chinese


def test_every_picture_is_on_a_page_and_they_are_small():
    files = set((DOCS / "images").iterdir())
    assert files == {target for page in DOCS.rglob("*.md") for _, target in pictures(page)}
    assert sum(path.stat().st_size for path in files) < 700_000


def test_every_page_belongs_to_a_node():
    pages = {name for node_id in NODES for name in (language.format(node_id) for language in LANGUAGES)}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == pages


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_tables_have_even_rows(path):
    for block in re.findall(r"(?:^\|.*\|\n)+", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert len({row.count("|") for row in block.splitlines()}) == 1, block


def messages():
    """Return all texts in the code of the pack, with a NUL for each inserted value."""
    found = []
    for path in (path for folder in ("teefusion_core", "nodes") for path in (REPO / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0"
                                     for part in node.values))  # fmt: skip
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_quoted_messages_are_those_of_the_code():
    """A user searches the page for the error; "..." stands for what the message inserts."""
    code = messages()
    for page in DOCS.rglob("*.md"):
        seen = [line.split("|")[1] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        for quoted in (text for cell in seen for text in QUOTED.findall(cell)):
            parts = re.compile(".*".join(map(re.escape, map(str.strip, quoted.split("...")))), re.DOTALL)
            assert any(parts.search(text) for text in code), f"{page.relative_to(DOCS)}: {quoted}"
