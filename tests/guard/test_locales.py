"""Chinese texts of the nodes against the English ones.

That the English file is what the schemas say needs ComfyUI: tests/host/test_locales.py.
"""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
DOCS = REPO / "web" / "docs"
CHINESE = re.compile("[\u4e00-\u9fff]")
NUMBER = re.compile(r"(?<![A-Z\d.])-?\d+(?:\.\d+)?")  # not that of a name, such as SD3.5
MEANS_MORE = "{}@|"  # the interface takes these for placeholders, links, plurals
WORDS = {"one": 1, "two": 2, "\u4e00": 1, "\u4e24": 2}
COST_ENGLISH = re.compile(r"\b(one|two)(?= (?:forward|pass|strong|weak|prediction))|(?:else|instead of) (one|two)\b")
COST_CHINESE = re.compile("([\u4e00\u4e24])(?=\u6b21)")


def texts_of(language):
    """Return path -> text of every string that the interface reads, in the order of the file."""
    path = REPO / "locales" / language / "nodeDefs.json"
    return dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))


def _leaves(tree, path=()):
    for key, value in tree.items():
        yield from _leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


ENGLISH, CHINESE_TEXTS = texts_of("en"), texts_of("zh")
NODES = list(dict.fromkeys(path[0] for path in ENGLISH))
each_node = pytest.mark.parametrize("node_id", NODES)


def numbers_of(text):
    """Count the numbers of a text of either language; a million is 100 times \u4e07."""
    return Counter(NUMBER.findall(re.sub(r"(\d+) million", lambda found: f"{found[1]}00", text)))


def costs_of(text, pattern):
    return sorted(WORDS[word] for found in pattern.finditer(text) for word in found.groups() if word)


def sections_of(page):
    """Return [(level, heading, text below it)] of a help page."""
    parts = re.split(r"^(#+) (.+)$", page, flags=re.MULTILINE)
    return list(zip(map(len, parts[1::3]), parts[2::3], parts[3::3], strict=True))


def pages_of(node_id):
    """Return both help pages, where the interface asks for them: no page of the language, then the English one."""
    names = (f"{node_id}.md", f"{node_id}/zh.md")
    return [(DOCS / name).read_text(encoding="utf-8") for name in names]


def both(node_id):
    return [(path, text, CHINESE_TEXTS[path]) for path, text in ENGLISH.items() if path[0] == node_id]


def named(node_id, kind, part):
    return {path[2]: text for path, text in ENGLISH.items() if path[:2] == (node_id, kind) and path[3] == part}


def test_both_languages_have_the_same_texts_in_the_same_order():
    assert list(CHINESE_TEXTS) == list(ENGLISH)


def test_the_english_ids_and_texts_stand_in_the_source():
    """Cheap sign of a forgotten `python3 scripts/locales.py`."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (REPO / "nodes").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    constants = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    ids = {node.value.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "node_id"}
    assert ids == set(NODES)
    told = {node.value.value for node in nodes if _is_text(node)}
    assert set(ENGLISH.values()) <= constants and told <= set(ENGLISH.values())


def _is_text(node):
    named_text = isinstance(node, ast.keyword) and node.arg in ("tooltip", "description", "display_name")
    return named_text and isinstance(node.value, ast.Constant)


@each_node
def test_every_text_is_there(node_id):
    for path, english, chinese in both(node_id):
        for text in (english, chinese):
            assert isinstance(text, str) and text.strip() == text != "", path
            assert not set(text) & set(MEANS_MORE), path
        assert CHINESE.search(chinese) and not CHINESE.search(english), path


@each_node
def test_both_languages_tell_the_same_numbers(node_id):
    for path, english, chinese in both(node_id):
        assert numbers_of(chinese) == numbers_of(english), path
        assert costs_of(chinese, COST_CHINESE) == costs_of(english, COST_ENGLISH), path


def test_a_wrong_number_would_be_seen():
    assert numbers_of("5 of 9 million") == numbers_of("5 / 900 \u4e07") != numbers_of("6 / 900 \u4e07")
    assert costs_of("1 costs one pass, else two.", COST_ENGLISH) == [1, 2]
    assert costs_of("\u4e00\u6b21\uff0c\u5426\u5219\u4e24\u6b21", COST_CHINESE) == [1, 2]


@each_node
def test_options_keep_their_names(node_id):
    """What a menu offers is not translated, so a text must name it as the menu does."""
    for path, english, chinese in both(node_id):
        options = re.findall(r"(?:^|[.] )([a-z][a-z0-9 ]*|[A-Z]{2,}): ", english)
        assert re.findall("(?:^|\u3002)([A-Za-z][A-Za-z0-9 ]*)\uff1a", chinese) == options, path


@each_node
def test_pages_are_built_alike(node_id):
    english, chinese = map(sections_of, pages_of(node_id))
    assert [level for level, _, _ in chinese] == [level for level, _, _ in english]
    assert english[0][1] == ENGLISH[node_id, "display_name"]
    assert chinese[0][1] == CHINESE_TEXTS[node_id, "display_name"]
    for (_, heading, one), (_, _, other) in zip(english, chinese, strict=True):
        assert CHINESE.search(other), heading
        assert _rows(other) == _rows(one), heading


def _rows(text):
    """Return the columns of every table row, the mark of every list item."""
    return [found.count("|") or found for found in re.findall(r"^(?:\|.*|- |\d+\. )", text, re.MULTILINE)]


def test_a_heading_has_one_translation():
    pairs = set()
    for node_id in NODES:
        english, chinese = map(sections_of, pages_of(node_id))
        pairs |= {(a[1].removesuffix("s"), b[1]) for a, b in zip(english[1:], chinese[1:], strict=True)}
    assert len({english for english, _ in pairs}) == len(pairs)
    assert all(CHINESE.search(heading) for _, heading in pairs)


@each_node
def test_pages_tell_the_same_numbers(node_id):
    for one, other in zip(*map(sections_of, pages_of(node_id)), strict=True):
        assert numbers_of(other[2]) == numbers_of(one[2]), one[1]


@each_node
def test_pages_quote_the_same_messages(node_id):
    quotes = [re.findall(r'^\|[^|]*"([^"|]+)"', page, flags=re.MULTILINE) for page in pages_of(node_id)]
    assert quotes[0] == quotes[1]


@each_node
def test_pages_name_sockets_as_the_canvas_does(node_id):
    page = pages_of(node_id)[1]
    for key in named(node_id, "inputs", "name"):
        assert f"**{key}**\uff08{CHINESE_TEXTS[node_id, 'inputs', key, 'name']}\uff09" in page, key
    for key, name in named(node_id, "outputs", "name").items():
        assert f"**{name}**\uff08{CHINESE_TEXTS[node_id, 'outputs', key, 'name']}\uff09" in page, name


def test_every_page_belongs_to_a_node():
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == {
        name for node_id in NODES for name in (f"{node_id}.md", f"{node_id}/zh.md")
    }
