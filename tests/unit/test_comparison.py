"""A grid of pictures: everything stands where its prompt, its method say."""

import numpy as np
import pytest
from PIL import Image

from teefusion_core.errors import InvalidConfig
from teefusion_core.evaluation.comparison import compared
from teefusion_core.evaluation.grid import Cell, Row, _Grid
from teefusion_core.evaluation.labels import Labels
from teefusion_core.evaluation.plot import PAPER

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (90, 0, 0), (0, 90, 0)]


def flat(*colours, size=(16, 16)):
    return [Image.new("RGB", size, colour) for colour in colours]


def box_of(image, colour):
    """left, top, right, bottom of the pixels of a colour."""
    y, x = np.nonzero((np.asarray(image) == colour).all(2))
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def draw(batches, prompts="", methods="", costs="", side=32):
    return compared(batches, prompts=prompts, methods=methods, costs=costs, side=side)


def ink_between(image, top, bottom):
    return (np.asarray(image)[top:bottom] != PAPER).any()


class TestPlaces:
    def test_prompts_are_rows_methods_are_columns(self):
        image = draw([flat(*COLOURS[:4]), flat(*COLOURS[4:])], "one\ntwo", "a\nb")
        boxes = [box_of(image, colour) for colour in COLOURS]
        assert all((x1 - x0, y1 - y0) == (32, 32) for x0, y0, x1, y1 in boxes)
        rows = [[boxes[i] for i in numbers] for numbers in ((0, 1, 4, 5), (2, 3, 6, 7))]
        for row in rows:
            assert len({box[1] for box in row}) == 1 and [box[0] for box in row] == sorted(box[0] for box in row)
        assert rows[0][0][1] < rows[1][0][1] and [b[0] for b in rows[0]] == [b[0] for b in rows[1]]

    def test_titles_stand_above_notes_below(self):
        image = draw([flat(COLOURS[0])], "a prompt", "a method", "40 passes")
        _, top, _, bottom = box_of(image, COLOURS[0])
        bare = draw([flat(COLOURS[0])])
        assert ink_between(image, 0, top) and ink_between(image, bottom, image.height)
        _, top, _, bottom = box_of(bare, COLOURS[0])
        assert not ink_between(bare, 0, top) and not ink_between(bare, bottom, bare.height)

    def test_costs_per_cell_differ_from_costs_per_method(self):
        batches = [flat(*COLOURS[:2]), flat(*COLOURS[2:4])]
        both = draw(batches, "one\ntwo", costs="10\n20")
        each = draw(batches, "one\ntwo", costs="10\n20\n10\n20")
        other = draw(batches, "one\ntwo", costs="10\n20\n30\n40")
        assert both.tobytes() == draw(batches, "one\ntwo", costs="10 ; 20").tobytes()
        assert both.tobytes() == each.tobytes() != other.tobytes()


class TestTitles:
    """In a grid that is 214 pixels wide inside of its margins."""

    @pytest.fixture
    def lines_of(self):
        rows = [Row("", [Cell(flat(*COLOURS[:6]))])]
        labels = Labels(Image.new("RGB", (1, 1)))
        grid = _Grid(rows, 29)
        assert grid.inner == 214

        def lines(title):
            found = grid.lines_of(labels, title)
            assert all(labels.width(line, grid.title) <= grid.inner for line in found)
            return found

        return lines

    def test_lines_end_between_words(self, lines_of):
        assert lines_of("a red circle left of a  blue square") == ["a red circle left of a blue", "square"]
        assert lines_of(" ") == [] and lines_of("one") == ["one"]

    @pytest.mark.parametrize("start", ["", "a red ", "supercalifragilistic "])
    def test_a_word_longer_than_a_line_is_broken_between_letters(self, lines_of, start):
        """As is any sentence in Chinese or Japanese."""
        word = "\u4e2d\u56fd\u732b\u3042\u30a2" * 5
        first, second = lines_of(start + word)
        assert first.startswith(start.strip()) and len(first) > max(9, len(start))
        assert (first + second).rstrip(".").replace(" ", "") in (start + word).replace(" ", "")
        third = lines_of(3 * word)
        assert len(third) == 2 and third[1].endswith("...") and len(third[0]) > len(third[1]) / 2


class TestPictures:
    def test_other_shapes_keep_their_own(self):
        image = draw([flat(COLOURS[0], size=(20, 10)) + flat(COLOURS[1], size=(10, 20))], side=40)
        wide, tall = box_of(image, COLOURS[0]), box_of(image, COLOURS[1])
        assert (wide[2] - wide[0], wide[3] - wide[1]) == (40, 20)
        assert (tall[2] - tall[0], tall[3] - tall[1]) == (20, 40)

    def test_enlarged_pixels_are_those_that_were_made(self):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
        image = np.asarray(draw([[noise]], side=24))
        assert np.array_equal(image[25:49:3, 25:49:3], np.asarray(noise))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("prompts", "one\ntwo\nthree", "2.*3"), ("methods", "one", "1.*2"), ("costs", "1\n2\n3", "3")],
)
def test_numbers_that_do_not_fit(name, text, value):
    with pytest.raises(InvalidConfig, match=value):
        draw([flat(*COLOURS[:2]), flat(*COLOURS[2:4])], **{name: text})
    with pytest.raises(InvalidConfig, match="images_b"):
        draw([flat(COLOURS[0]), []])
