"""The command `score` around its judges: what it opens and when, and what is left if the disk fails."""

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


def test_images_are_left_to_the_judges_to_open(images):
    """All of them together may not fit in memory."""

    def judged(pictures, prompts, files, names):
        assert pictures == [images / name for name in names]
        return ScoreTable(names, prompts, {"HPSv2.1": [1.0, 2.0, 3.0]})

    run(images, judged)


def test_a_damaged_image_is_refused_before_the_first_score(images):
    (images / "2.png").write_bytes(b"no image")
    with pytest.raises(InvalidConfig, match="2.png"):
        run(images, lambda *_: pytest.fail("scored"))


def test_scores_are_printed_even_if_they_cannot_be_written(images, tmp_path, capsys):
    out = tmp_path / "scores.json"

    def judged(pictures, prompts, files, names):
        out.mkdir()  # in the meantime
        return ScoreTable(names, prompts, {"HPSv2.1": [1.0, 2.0, 3.0]})

    with pytest.raises(NotWritten, match="scores.json"):
        run(images, judged, out)
    assert "| 2.png | a circle | 3.0000 |" in capsys.readouterr().out
