"""Readers of published prompt sets, writers for their graders, by small files of the same form."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teefusion_core.errors import InvalidConfig
from teefusion_core.evaluation.grader_layouts import write_dpg, write_geneval
from teefusion_core.prompts.prompt_sets import READERS, BenchmarkPrompt, read_prompts

REPO = Path(__file__).resolve().parent.parent.parent
BENCH = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
TWO = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a cup left of a dog",
}


def made(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def read(prompts):
    return [(prompt.name, prompt.text, prompt.group) for prompt in prompts]


class TestReaders:
    def test_hpsv2_as_it_is_published(self, tmp_path):
        made(tmp_path, "anime.json", json.dumps(["a girl", "a fox "]))
        made(tmp_path, "photo.json", json.dumps(["a bus"]))
        whole = [("00000", "a girl", "anime"), ("00001", "a fox", "anime"), ("00000", "a bus", "photo")]
        assert read(read_prompts("hpsv2", tmp_path)) == whole
        assert read(read_prompts("hpsv2", tmp_path / "photo.json")) == whole[2:]
        both = made(tmp_path, "both.json", json.dumps({"anime": ["a girl", "a fox"], "photo": ["a bus"]}))
        assert read(read_prompts("hpsv2", both)) == whole

    def test_dpg(self, tmp_path):
        made(tmp_path, "partiprompts12.txt", "A long prompt\nof two lines.\n")
        made(tmp_path, "COCOval2014.txt", "Another.")
        made(tmp_path, "readme.md", "no prompt")
        expected = [("COCOval2014", "Another.", ""), ("partiprompts12", "A long prompt of two lines.", "")]
        assert read(read_prompts("dpg", tmp_path)) == expected

    def test_geneval(self, tmp_path):
        path = made(tmp_path, "evaluation_metadata.jsonl", f"{json.dumps(BENCH)}\n{json.dumps(TWO)}\n\n")
        found = read_prompts("geneval", path)
        assert read(found) == [
            ("00000", BENCH["prompt"], "single_object"), ("00001", TWO["prompt"], "position")
        ]  # fmt: skip
        assert [prompt.record for prompt in found] == [BENCH, TWO]

    def test_parti_leaves_quotation_marks(self, tmp_path):
        text = 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tmany\n"Fly" on a wall\tArts\tComplex\t\n'
        found = read_prompts("parti", made(tmp_path, "PartiPrompts.tsv", text))
        assert read(found) == [("00000", "bond", "Abstract"), ("00001", '"Fly" on a wall', "Arts")]

    def test_drawbench(self, tmp_path):
        text = '\ufeffPrompts,Category\nA red car.,Colors\n"A cat, a dog.",Counting\n\n'
        found = read_prompts("drawbench", made(tmp_path, "drawbench.csv", text))
        assert read(found) == [("00000", "A red car.", "Colors"), ("00001", "A cat, a dog.", "Counting")]


class TestMalformed:
    @pytest.mark.parametrize(
        ("kind", "text", "place"),
        [
            ("hpsv2", "[1]", "entry 1"), ("hpsv2", '{"anime": "a girl"}', "anime"), ("hpsv2", '["a girl"', "set.txt"),
            ("hpsv2", "[]", "set.txt"), ("geneval", '{"prompt": "a bench"}', "line 1"),
            ("geneval", json.dumps(BENCH) + "\n{", "line 2"), ("geneval", json.dumps(BENCH | {"prompt": ""}), "line 1"),
            ("parti", "Prompts\tCategory\nbond\tAbstract", "Prompt"), ("parti", "Prompt\tCategory\nbond", "row 2"),
            ("parti", b"\xff\xfe\x00", "set.txt"), ("drawbench", "Prompts,Category\n,Colors", "row 2"),
            ("drawbench", "", "Prompts"), ("dpg", "a prompt", "set.txt"), ("coco", "a prompt", "coco"),
        ],
    )  # fmt: skip
    def test_the_place_is_named(self, tmp_path, kind, text, place):
        (tmp_path / "set.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InvalidConfig, match=place):
            read_prompts(kind, tmp_path / "set.txt")

    @pytest.mark.parametrize("kind", READERS)
    def test_nothing_there(self, tmp_path, kind):
        with pytest.raises(InvalidConfig, match="gone"):
            read_prompts(kind, tmp_path / "gone")


def flat(*values, size=(8, 8)):
    return [Image.new("RGB", size, (value, 0, 0)) for value in values]


def shown(path):
    with Image.open(path) as file:
        return file.copy()


class TestGraders:
    def test_dpg_finds_each_quarter(self, tmp_path):
        """As the grader cuts: left to right, then the row below."""
        write_dpg(tmp_path / "out", BenchmarkPrompt("stanford3", "x"), flat(10, 20, 30, 40))
        whole = shown(tmp_path / "out" / "stanford3.png")
        cuts = [(0, 0, 8, 8), (8, 0, 16, 8), (0, 8, 8, 16), (8, 8, 16, 16)]
        assert whole.size == (16, 16)
        assert [int(np.asarray(whole.crop(cut))[..., 0].mean()) for cut in cuts] == [10, 20, 30, 40]

    def test_what_dpg_does_not_take(self, tmp_path):
        for pictures in (flat(1, 2), flat(1, size=(8, 4)), flat(1, 2, 3) + flat(4, size=(4, 4))):
            with pytest.raises(InvalidConfig):
                write_dpg(tmp_path, BenchmarkPrompt("a", "x"), pictures)
        assert not list(tmp_path.iterdir())

    def test_geneval_reads_it_as_its_grader_does(self, tmp_path):
        write_geneval(tmp_path, BenchmarkPrompt("00007", TWO["prompt"], "position", TWO), flat(1, 2, 3, 4))
        [folder] = [path for path in tmp_path.iterdir() if path.is_dir() and path.name.isdigit()]
        with open(folder / "metadata.jsonl", encoding="utf-8") as file:
            assert json.load(file) == TWO
        samples = sorted(path.name for path in (folder / "samples").iterdir())
        assert len(samples) == 4 and all(re.match(r"\d+\.png", name) for name in samples)
        assert shown(folder / "samples" / samples[2]).getpixel((0, 0)) == (3, 0, 0)

    def test_geneval_needs_its_metadata(self, tmp_path):
        with pytest.raises(InvalidConfig, match="00000"):
            write_geneval(tmp_path, BenchmarkPrompt("00000", "x"), flat(1))


class TestCommands:
    def run(self, *arguments, **environment):
        command = [sys.executable, "-m", "teefusion_core", *map(str, arguments)]
        env = {**os.environ, **environment}
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, env=env)

    def test_a_console_that_lacks_a_letter_shows_another(self, tmp_path):
        path = made(tmp_path, "drawbench.csv", "Prompts,Category\na caf\u00e9 \u2192 \u6771\u4eac,Text\nplain,Text\n")
        done = self.run("prompts", "drawbench", path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert (done.returncode, done.stdout) == (0, "a caf? ? ??\nplain\n"), done.stderr

    def test_prompts_of_a_group(self, tmp_path):
        path = made(tmp_path, "drawbench.csv", "Prompts,Category\nA red car.,Colors\nTwo cats.,Counting\n")
        assert self.run("prompts", "drawbench", path, "--group", "Counting").stdout == "Two cats.\n"
        wrong = self.run("prompts", "drawbench", path, "--group", "Text")
        assert wrong.returncode == 1 and "Colors, Counting" in wrong.stderr

    def test_pictures_are_arranged(self, tmp_path):
        path, folder = made(tmp_path, "set.jsonl", f"{json.dumps(BENCH)}\n{json.dumps(TWO)}"), tmp_path / "pictures"
        folder.mkdir()
        for number, picture in enumerate(flat(1, 2, 3, 4)):
            picture.save(folder / f"{number}.png")
        done = self.run("arrange", "geneval", path, folder, tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert shown(tmp_path / "out" / "00001" / "samples" / "00000.png").getpixel((0, 0)) == (3, 0, 0)
        assert "out exists" in self.run("arrange", "geneval", path, folder, tmp_path / "out").stderr
        (folder / "4.png").write_bytes(b"no picture")
        assert re.search("5.*2", self.run("arrange", "geneval", path, folder, tmp_path / "other").stderr)
        (folder / "3.png").unlink()
        assert "4.png" in self.run("arrange", "geneval", path, folder, tmp_path / "other").stderr
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "pictures", "set.jsonl"]
