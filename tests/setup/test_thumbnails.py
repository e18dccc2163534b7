"""Thumbnails: squares that show what a run painted."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from runner import stop, thumbnails
from runner.thumbnails import HEAD, SIDE

RED, GREEN, BLUE = (200, 0, 0), (0, 160, 0), (0, 0, 220)


def plain(color, num=4, size=(64, 64)):
    return np.broadcast_to(np.array(color, np.uint8), (num, *size, 3)).copy()


def test_nodes_stand_beside_one_another_under_their_names():
    square = thumbnails.draw_columns({"CFG": plain(RED), "W2SD": plain(GREEN)})
    assert square.size == (SIDE, SIDE)
    for row in (0, 1):
        middle = HEAD + (row + 0.5) * (SIDE - HEAD) / 2
        assert square.getpixel((SIDE // 4, int(middle))) == RED
        assert square.getpixel((3 * SIDE // 4, int(middle))) == GREEN
    assert np.asarray(square)[:HEAD, : SIDE // 2].min() < 100, "no label"


def test_a_lone_node_fills_the_square():
    images_BHW3 = np.concatenate([plain(color, 1) for color in (RED, GREEN, BLUE, RED)])
    square = np.asarray(thumbnails.draw_columns({"Pictures": images_BHW3}))
    quarters = [square[y, x] for y in (SIDE // 4, 3 * SIDE // 4) for x in (SIDE // 4, 3 * SIDE // 4)]
    assert [tuple(color) for color in quarters] == [RED, GREEN, BLUE, RED]
    assert np.asarray(thumbnails.draw_columns({"Report": plain(BLUE, 1)}))[6:-6, 6:-6, 2].min() == 220


def test_a_wide_picture_keeps_its_proportions():
    square = np.asarray(thumbnails.draw_columns({"Report": plain(BLUE, 1, (50, 100))}))
    blue = (square == BLUE).all(-1)
    assert blue.any(0).sum() == 2 * blue.any(1).sum()


def test_a_training_shows_the_right_square_of_its_preview():
    preview = Image.new("RGB", (300, 100), RED)
    preview.paste(GREEN, (200, 0, 300, 100))
    file = io.BytesIO()
    preview.save(file, "PNG")
    square = thumbnails.student_pictures(SimpleNamespace(preview=file.getvalue()))
    assert square.size == (SIDE, SIDE) and square.getcolors() == [(SIDE * SIDE, GREEN)]


def test_nothing_shown_is_one_sentence():
    with pytest.raises(stop.Stop, match="showed no picture"):
        thumbnails.student_pictures(SimpleNamespace(preview=None))


@pytest.mark.parametrize("name", ["no_such", "02 TeEFusion SD3-medium"])
def test_a_name_that_cannot_be_run_is_one_sentence(name, tmp_path):
    with pytest.raises(stop.Stop, match=f"{name}"):
        thumbnails.make_thumbnails(tmp_path, [name])
