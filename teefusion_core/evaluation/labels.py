"""Labels on images, in any script that a font of this machine has.

Pillow's own font draws ASCII, the font of this pack Latin, Greek and Cyrillic. Everything else, such as Chinese and
Japanese, comes from the fonts of the system.
"""

import logging
import os
import re
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

OWN = Path(__file__).parent / "fonts" / "DejaVuSans-subset.ttf"
FAMILIES = (
    "notosanscjk-regular", "notosanscjksc-regular", "notosanscjkjp-regular", "notosanssc-regular", "notosansjp-regular",
    "notosanskr-regular", "notosanscjk-vf", "notosanssc-vf", "notosansjp-vf", "sourcehansans-regular",
    "sourcehansanssc-regular", "sourcehansanscn-regular", "sourcehansansjp-regular", "sourcehansans",  # Noto, Adobe
    "msyh", "meiryo", "yugothm", "yugothr", "malgun", "simsun", "simhei", "msgothic", "segoeui", "arial", "tahoma",
    "leelawui", "nirmala",  # Windows
    "pingfang", "hiragino sans gb", "stheiti light", "stheiti medium", "applesdgothicneo", "arial unicode",  # macOS
    "wqy-microhei", "wqy-zenhei", "droidsansfallbackfull", "droidsansfallback", "ipag", "ipaexg", "takaogothic",
    "takaopgothic", "vl-gothic-regular", "uming", "ukai", "nanumgothic", "unifont", "notosans-regular", "freesans",
    "dejavusans",
)  # fmt: skip
"""File names of well-known fonts, without their suffix and in lower case; earlier ones are preferred."""
OTHERS = re.compile("notosans[a-z]*-regular")
"""Names of the fonts of single scripts, which are tried after all of FAMILIES."""
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
INSTEAD = "?"
NO_LETTER = "\U0010ffff"
"""Never a letter, so that every font draws its sign for a missing one."""
BLANK = re.compile(r"[\s\x00-\x1f\x7f]")
SHAPELESS = ("Cc", "Cf", "Mn", "Me")
"""Unicode categories of joiners, variation selectors and the like, which are left out if no font has them."""
ADVICE = "install the font Noto Sans CJK, or the Noto Sans of that script, for all users of this machine and restart"

log = logging.getLogger(__name__)


class Labels:
    """Draws texts on an image; a letter that no font has becomes a question mark.

    Attributes:
        missing: the letters that no font has, in the order in which they were met.
    """

    def __init__(self, image: Image.Image):
        """Draw on this image."""
        self.draw, self.missing = ImageDraw.Draw(image), dict[str, None]()

    def text(self, xy: tuple[float, float], text: str, colour, size: int, anchor: str = "la") -> None:
        """Draw a line of text, as `ImageDraw.text` does."""
        pieces = self._pieces(text, size)
        x = xy[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * self.width(text, size)
        if len(pieces) > 1:  # fonts differ in height, so they stand on the line of the first
            above, below = pieces[0][0].getmetrics()
            xy, anchor = (x, xy[1] + {"a": above, "m": (above - below) / 2}[anchor[1]]), "ls"
        for font, piece in pieces:
            self.draw.text(xy, piece, colour, font, anchor)
            xy = (xy[0] + self.draw.textlength(piece, font), xy[1])

    def width(self, text: str, size: int) -> float:
        """Return the width of a text in pixels."""
        return sum(self.draw.textlength(piece, font) for font, piece in self._pieces(text, size))

    def fitted(self, text: str, width: float, size: int) -> str:
        """Shorten a text to a width; its end is replaced by dots."""
        if self.width(text, size) <= width:
            return text
        return text[: self.fitting(text, width, size, "...")].rstrip() + "..."

    def fitting(self, text: str, width: float, size: int, end: str = "") -> int:
        """Return how many letters of a text fit into a width, with `end` after them."""
        numbers = range(len(text) + 1)
        return max(0, bisect_right(numbers, width, key=lambda number: self.width(text[:number] + end, size)) - 1)

    def report(self) -> None:
        """Log the letters that no font has, in one line."""
        if self.missing:
            log.warning("TeEFusion: no font has the letters %s, drawn as ?; %s.", " ".join(self.missing), ADVICE)

    def _pieces(self, text: str, size: int) -> list[tuple[Any, str]]:
        """Split a text into pieces of one font."""
        text = BLANK.sub(" ", unicodedata.normalize("NFC", text))
        if text.isascii():
            return [(_font(None, size), text)]
        letters = []
        for letter in text:
            path = _path_of(letter)
            if path is None and unicodedata.category(letter) in SHAPELESS:
                continue
            if path is None:
                self.missing[letter] = None
            letters.append((path or str(OWN), letter if path else INSTEAD))
        return [
            (_font(path, size), "".join(shown for _, shown in run))
            for path, run in groupby(letters, key=lambda pair: pair[0])
        ]


def font_folders(system: str, environment: Mapping[str, str], home: Path) -> list[Path]:
    """Return the folders in which a system keeps its fonts.

    Args:
        system: as `sys.platform` has it.
        environment: variables of the process.
        home: folder of the user.
    """
    if system == "win32":
        local = environment.get("LOCALAPPDATA")
        folders = [Path(environment.get("WINDIR", r"C:\Windows")) / "Fonts"]
        return [*folders, Path(local) / "Microsoft" / "Windows" / "Fonts"] if local else folders
    if system == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = environment.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = environment.get("XDG_DATA_HOME") or home / ".local" / "share"
    return [*(Path(folder) / "fonts" for folder in (own, *shared.split(":")) if folder), home / ".fonts"]


@cache
def system_fonts() -> tuple[Path, ...]:
    """Return the fonts of FAMILIES that this machine has, in that order, then OTHERS."""
    found: dict[str, Path] = {}
    for folder in font_folders(sys.platform, os.environ, Path.home()):
        for path, _, names in os.walk(folder):
            for name in names:
                stem, suffix = os.path.splitext(name.lower())
                if suffix in SUFFIXES and (stem in FAMILIES or OTHERS.fullmatch(stem)):
                    found.setdefault(stem, Path(path) / name)
    others = sorted(found.keys() - set(FAMILIES))
    return tuple(found[stem] for stem in (*FAMILIES, *others) if stem in found)


@cache
def _path_of(letter: str) -> str | None:
    """Return the first font that has a letter, or None."""
    for path in (str(OWN), *map(str, system_fonts())):
        with suppress(OSError):  # an unreadable font of the system
            font = _font(path, 16)
            if letter == " " or _drawn(font, letter) not in (_drawn(font, NO_LETTER), None):
                return path
    return None


@cache
def _font(path: str | None, size: int) -> Any:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def _drawn(font: Any, letter: str) -> tuple[tuple[int, int], bytes] | None:
    mask = font.getmask(letter)
    return (mask.size, bytes(mask)) if any(bytes(mask)) else None
