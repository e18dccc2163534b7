"""Texts as editors of several systems write them."""

import pytest

from teefusion_core.errors import InvalidConfig
from teefusion_core.files.text_file import read_text
from teefusion_core.prompts.prompt_list import lines_of

TEXT = "the painter\u2019s red circle\ncaf\u00e9 \u6771\u4eac\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_utf_8_is_read_with_or_without_a_mark(tmp_path, mark, end):
    path = tmp_path / "a.txt"
    path.write_bytes((mark + TEXT.replace("\n", end)).encode())
    assert read_text(path) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("red circle".encode(encoding))
    with pytest.raises(InvalidConfig, match=r"a\.txt, line 1.*UTF-16"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(("encoding", "line"), [("cp1252", 1), ("latin-1", 3), ("cp437", 2)])
def test_another_encoding_is_named_with_the_line(tmp_path, encoding, line):
    text = "\n" * (line - 1) + ("\u2019" if encoding == "cp1252" else "\u00e9") + " red"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(InvalidConfig, match=rf"a\.txt, line {line}:.*UTF-8"):
        read_text(tmp_path / "a.txt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match="gone"):
        read_text(tmp_path / "gone.txt")


def test_only_line_ends_end_a_prompt():
    assert lines_of("a\u2028b\n\n c\x0bd \r\ne\rf") == ["a\u2028b", "c\x0bd", "e", "f"]
