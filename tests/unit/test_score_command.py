"""The command `score` around its judges: what it opens and when, and what is left if the disk fails."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from teefusion_core.errors import InvalidConfig, NotWritten
from teefusion_core.evaluation.judges import JUDGES
from teefusion_core.evaluation.score_command import score
from teefusion_core.evaluation.score_table import ScoreTable


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (4, 4)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a circle")
    return folder


def run(images, judged, out=None):
    chosen = dict.fromkeys(JUDGES) | {"hps": "mine"}
    arguments = Namespace(folder=images, prompts=None, subfolders=False, out=out, **chosen)
    score(arguments, lambda judge, name: Path(name), judged)


def table(pictures, prompts, files, names):
    return ScoreTable(names, prompts, {"HPSv2.1": [1.0, 2.0, 3.0]})


def test_images_are_left_to_the_judges_to_open(images):
    """All of them together may not fit in memory."""

    def judged(pictures, prompts, files, names):
        assert pictures == [images / name for name in names]
        return table(pictures, prompts, files, names)

    run(images, judged)


def test_a_damaged_image_is_refused_before_the_first_score(images):
    (images / "2.png").write_bytes(b"no image")
    with pytest.raises(InvalidConfig, match="2.png"):
        run(images, lambda *_: pytest.fail("scored"))


def test_scores_are_printed_even_if_they_cannot_be_written(images, tmp_path, capsys):
    out = tmp_path / "scores.json"

    def judged(*given):
        out.mkdir()  # in the meantime
        return table(*given)

    with pytest.raises(NotWritten, match="scores.json"):
        run(images, judged, out)
    assert "| 2.png | a circle | 3.0000 |" in capsys.readouterr().out


def test_scores_are_written_even_if_they_cannot_be_printed(images, tmp_path, monkeypatch):
    out, (reader, writer) = tmp_path / "scores.json", os.pipe()
    os.close(reader)
    with open(writer, "w", closefd=False) as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        with pytest.raises(BrokenPipeError):
            run(images, table, out)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # takes the rest
    assert json.loads(out.read_text())["scores"] == {"HPSv2.1": [1, 2, 3]}
