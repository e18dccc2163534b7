"""Chinese texts of the nodes against the English ones.

That the English file is what the schemas say needs ComfyUI: tests/host/test_locales.py.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
CHINESE = re.compile("[\u4e00-\u9fff]")
NUMBER = re.compile(r"(?<![A-Z\d.])-?\d+(?:\.\d+)?")  # not that of a name, such as SD3.5
MEANS_MORE = "{}@|"  # the interface takes these for placeholders, links, plurals


def _leaves(tree, path=()):
    for key, value in tree.items():
        yield from _leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


def texts_of(language):
    """Return path -> text of every string that the interface reads, in the order of the file."""
    path = REPO / "locales" / language / "nodeDefs.json"
    return dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))


ENGLISH, TRANSLATED = texts_of("en"), texts_of("zh")
each_node = pytest.mark.parametrize("node_id", dict.fromkeys(path[0] for path in ENGLISH))


def numbers_of(text):
    """Count the numbers of a text of either language; a million is 100 times \u4e07."""
    return Counter(NUMBER.findall(re.sub(r"(\d+) million", lambda found: f"{found[1]}00", text)))


def pages_of(node_id):
    """Return [(level, heading, text below it)] of both help pages."""
    for name in (f"{node_id}.md", f"{node_id}/zh.md"):
        page = (REPO / "web" / "docs" / name).read_text(encoding="utf-8")
        parts = re.split(r"^(#+) (.+)$", page, flags=re.MULTILINE)
        yield list(zip(map(len, parts[1::3]), parts[2::3], parts[3::3], strict=True))


def rows_of(text):
    """Return the columns of every table row, the mark of every list item."""
    return [found.count("|") or found for found in re.findall(r"^(?:\|.*|- |\d+\. )", text, re.MULTILINE)]


def test_both_languages_have_the_same_texts_in_the_same_order():
    assert list(TRANSLATED) == list(ENGLISH)


@each_node
def test_every_text_is_translated_with_its_numbers(node_id):
    for path, english in ENGLISH.items():
        if path[0] == node_id:
            chinese = TRANSLATED[path]
            for text in (english, chinese):
                assert isinstance(text, str) and text.strip() == text != "" and not set(text) & set(MEANS_MORE), path
            assert CHINESE.search(chinese) and not CHINESE.search(english), path
            assert numbers_of(chinese) == numbers_of(english), path


@each_node
def test_help_pages_have_the_same_shape(node_id):
    english, chinese = pages_of(node_id)
    assert [level for level, _, _ in chinese] == [level for level, _, _ in english]
    assert english[0][1] == ENGLISH[node_id, "display_name"]
    assert chinese[0][1] == TRANSLATED[node_id, "display_name"]
    for (_, heading, one), (_, _, other) in zip(english, chinese, strict=True):
        assert CHINESE.search(other) and rows_of(other) == rows_of(one), heading
        assert numbers_of(other) == numbers_of(one), heading
