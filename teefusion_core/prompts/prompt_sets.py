"""Readers for the prompt sets of published benchmarks."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidConfig
from ..files.text_file import read_text


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One prompt of a set."""

    name: str
    """Name of its images: a number, or the name of its file."""
    text: str
    group: str = ""
    """Style, category or skill, if the set has any."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The whole entry, for the grader."""


def read_prompts(kind: str, path: Path) -> list[BenchmarkPrompt]:
    """Read a set in its own order.

    Args:
        kind: a key of READERS.
        path: the published file or folder.
    Raises:
        InvalidConfig: an unknown kind, a missing file or a malformed file.
    """
    if kind not in READERS:
        raise InvalidConfig(f"the set is {kind!r}; choose one of {', '.join(READERS)}")
    if not path.exists():
        raise InvalidConfig(f"there is no {path}; give the file or folder of the {kind} prompts")
    prompts = READERS[kind](path)
    if not prompts:
        raise InvalidConfig(f"{path} holds no prompts; give the file or folder of the {kind} prompts")
    return prompts


def _hpsv2(path: Path) -> list[BenchmarkPrompt]:
    """Read lists of prompts per style: a file for one style, a file for all styles, or a folder."""
    if path.is_dir():
        return [prompt for one in sorted(path.glob("*.json")) for prompt in _hpsv2(one)]
    loaded = _parsed(path, read_text(path))
    styles = loaded if isinstance(loaded, dict) else {path.stem: loaded}
    found = []
    for style, entries in styles.items():
        if not isinstance(entries, list):
            raise InvalidConfig(f"{path.name}: {style} is not a list of prompts; give a benchmark file of HPSv2")
        for number, entry in enumerate(entries):
            text = entry.get("prompt") if isinstance(entry, dict) else entry
            found.append(BenchmarkPrompt(f"{number:05}", _whole(text, f"{path.name}, entry {number + 1}"), style))
    return found


def _dpg(path: Path) -> list[BenchmarkPrompt]:
    """Read a folder with one text file per prompt; images have the names of these files."""
    if not path.is_dir():
        raise InvalidConfig(f"{path} is not a folder; give the folder prompts of dpg_bench with its .txt files")
    files = sorted(path.glob("*.txt"))
    return [BenchmarkPrompt(file.stem, _whole(" ".join(read_text(file).split()), file.name)) for file in files]


def _geneval(path: Path) -> list[BenchmarkPrompt]:
    """Read one JSON object per line, with the objects that the image must show."""
    found: list[BenchmarkPrompt] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where, entry = f"{path.name}, line {number}", _parsed(path, line, number)
        if not isinstance(entry, dict) or not {"tag", "include", "prompt"} <= entry.keys():
            raise InvalidConfig(f"{where} lacks tag, include or prompt; give evaluation_metadata.jsonl of GenEval")
        found.append(BenchmarkPrompt(f"{len(found):05}", _whole(entry["prompt"], where), str(entry["tag"]), entry))
    return found


def _parti(path: Path) -> list[BenchmarkPrompt]:
    """Read a tab-separated table without quoting."""
    lines = csv.reader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return _table(lines, path, "Prompt", "PartiPrompts.tsv")


def _drawbench(path: Path) -> list[BenchmarkPrompt]:
    """Read a comma-separated table."""
    return _table(csv.reader(read_text(path).splitlines()), path, "Prompts", "drawbench.csv")


def _table(lines: Iterable[list[str]], path: Path, column: str, wanted: str) -> list[BenchmarkPrompt]:
    """Return the prompts of a column, grouped by Category."""
    rows = list(lines)
    head = [cell.strip().lstrip("\ufeff") for cell in rows[0]] if rows else []
    if column not in head:
        raise InvalidConfig(f"{path.name} has no column {column} in its first line; give {wanted}")
    text, group = head.index(column), head.index("Category") if "Category" in head else None
    found: list[BenchmarkPrompt] = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path.name}, row {number}"
        if len(row) <= text or (group is not None and len(row) <= group):
            raise InvalidConfig(f"{where} has {len(row)} columns, too few; give {wanted} as it was published")
        kind = row[group].strip() if group is not None else ""
        found.append(BenchmarkPrompt(f"{len(found):05}", _whole(row[text], where), kind))
    return found


def _whole(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidConfig(f"{where} has no prompt; give the file as it was published")
    return text.strip()


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = path.name if line is None else f"{path.name}, line {line}"
        raise InvalidConfig(f"{where} is not valid JSON ({error}); give the file as it was published") from error


READERS: dict[str, Callable[[Path], list[BenchmarkPrompt]]] = {
    "hpsv2": _hpsv2,
    "dpg": _dpg,
    "geneval": _geneval,
    "parti": _parti,
    "drawbench": _drawbench,
}
"""Name of a set -> its reader."""
