"""Labels in any script: letters are drawn as themselves, and a letter without a font is named."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teefusion_core.evaluation import labels
from teefusion_core.evaluation.comparison import compared
from teefusion_core.evaluation.labels import NO_LETTER, OWN, Labels, font_folders, system_fonts

FLAT = Image.new("RGB", (64, 64), (1, 2, 3))
CJK = "\u4e2d\u56fd\u732b\u3042\u30a2"
NOBODYS = "\U00013000"
"""A hieroglyph."""


def forget():
    labels.system_fonts.cache_clear()
    labels._path_of.cache_clear()


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(labels, "font_folders", lambda *_: [])


def pixels(text, size=20):
    image = Image.new("L", (900, 40), 255)
    drawn = Labels(image)
    drawn.text((4, 4), text, 0, size)
    return np.asarray(image), list(drawn.missing)


def looks(texts):
    return {pixels(text)[0].tobytes() for text in texts}


@pytest.mark.usefixtures("no_fonts")
@pytest.mark.parametrize(
    "letters",
    ["\u00e9\u00f1\u00df\u00f8\u0142\u0151\u017e", "\u0416\u044f\u0431\u0451\u0457", "\u03b1\u03a9", "\u2014\u2192"],
    ids=["Latin", "Cyrillic", "Greek", "signs"],
)
def test_letters_need_no_font_of_the_system(letters):
    assert len(looks([*letters, "?", " "])) == len(letters) + 2
    assert not pixels(letters)[1]


def test_letters_are_drawn_or_named(monkeypatch):
    """On a machine with a font for Chinese and Japanese, and on one without."""
    known = [letter for letter in CJK if not pixels(letter)[1]]
    assert len(looks([*known, "?", " "])) == len(known) + 2
    monkeypatch.setattr(labels, "font_folders", lambda *_: [])
    forget()
    assert pixels(CJK)[1] == list(CJK) and len(looks(CJK)) == 1


def test_no_letter_is_the_box_of_a_font_without_it():
    for font in (str(OWN), *map(str, system_fonts())):
        box = labels._drawn(labels._font(font, 16), NO_LETTER)
        for letter in "\u00e9\u0416" + CJK:
            path = labels._path_of(letter)
            assert path != font or labels._drawn(labels._font(path, 16), letter) != box


def test_accents_of_two_characters_are_one_letter():
    assert np.array_equal(pixels("e\u0301t\u00e9")[0], pixels("\u00e9t\u00e9")[0])
    assert np.array_equal(pixels("\u00e9\tb")[0], pixels("\u00e9 b")[0])


def test_ascii_looks_as_before():
    from PIL import ImageDraw, ImageFont

    image = Image.new("L", (900, 40), 255)
    ImageDraw.Draw(image).text((4, 4), "a red circle", 0, ImageFont.load_default(20))
    assert np.array_equal(np.asarray(image), pixels("a red circle")[0])


@pytest.mark.parametrize("text", ["a red circle " * 9, "\u044f" * 99, "iiii", "W"])
@pytest.mark.parametrize("width", [1, 30, 111])
def test_a_text_is_cut_where_its_letters_end_to_fit(text, width):
    drawn, literal = Labels(FLAT.copy()), text
    while literal and drawn.width(literal + "...", 14) > width:
        literal = literal[:-1]
    wanted = text if drawn.width(text, 14) <= width else literal.rstrip() + "..."
    assert drawn.fitted(text, width, 14) == wanted


def test_a_long_text_is_measured_a_few_times_only(monkeypatch):
    measured, width = [], Labels.width
    monkeypatch.setattr(Labels, "width", lambda self, *given: measured.append(given) or width(self, *given))
    Labels(FLAT.copy()).fitted("\u4e2d" * 4000, 100, 14)
    assert len(measured) < 20


@pytest.mark.parametrize("where", ["prompts", "methods", "costs"])
def test_a_grid_names_letters_without_a_font_in_one_line(where, caplog):
    text = {"prompts": "", "methods": "", "costs": ""} | {where: f"a {NOBODYS} b {NOBODYS}"}
    with caplog.at_level(logging.WARNING):
        marked = compared([[FLAT]], side=64, **text)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and NOBODYS in lines[0] and "font" in lines[0] and "install" in lines[0]
    plain = compared([[FLAT]], side=64, **{key: value.replace(NOBODYS, "\u00e9") for key, value in text.items()})
    assert marked.tobytes() != plain.tobytes()


def test_titles_of_one_length_in_two_scripts_differ():
    titles = [
        "\u043a\u0440\u0430\u0441\u043d\u044b\u0439",
        "\u0441\u0438\u043d\u0438\u0439",
        "\u00e9t\u00e9",
        "\u00fcb\u00e9",
    ]
    assert len({compared([[FLAT]], side=64, prompts=one, methods="", costs="").tobytes() for one in titles}) == 4


def test_fonts_are_found_by_their_family(tmp_path, monkeypatch):
    below = tmp_path / "fonts" / "opentype" / "noto"
    below.mkdir(parents=True)
    script = "NotoSansDevanagari-Regular.ttf"
    for name in ("NotoSansCJK-Regular.TTC", "Unknown.ttf", "msyh.txt", script, "NotoSansThai-Bold.ttf", "tahoma.ttf"):
        shutil.copy(OWN, below / name)
    (below / "simsun.ttc").write_bytes(b"no font")
    folders = font_folders("linux", {"XDG_DATA_DIRS": str(tmp_path)}, tmp_path)
    monkeypatch.setattr(labels, "font_folders", lambda *_: folders)
    assert [path.name for path in system_fonts()] == ["NotoSansCJK-Regular.TTC", "simsun.ttc", "tahoma.ttf", script]
    assert pixels(NOBODYS)[1] == [NOBODYS]  # simsun.ttc is damaged, which is passed over


def test_folders_of_the_systems():
    home = Path("home")
    windows = font_folders("win32", {"WINDIR": "W", "LOCALAPPDATA": "L"}, home)
    assert windows == [Path("W") / "Fonts", Path("L") / "Microsoft" / "Windows" / "Fonts"]
    assert home / "Library" / "Fonts" in font_folders("darwin", {}, home)
    assert Path("/usr/share/fonts") in font_folders("linux", {}, home)
