"""The shipped workflows: what a user needs to download, compare and choose them."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

REPO = Path(__file__).resolve().parent.parent.parent
FILES = {path.stem: path for path in sorted((REPO / "workflows").glob("*.json"))}
WEIGHTS = re.compile(r"[\w.-]+\.safetensors")
OWN_FILE = re.compile(r"your_\w+\.safetensors")  # stands for one that the user chooses, so nothing offers it
URL = re.compile(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+\.safetensors")
LARGEST_THUMBNAIL = 100_000  # bytes
DEFINED = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
each_workflow = pytest.mark.parametrize("name", FILES)


def nodes_of(name):
    return json.loads(FILES[name].read_bytes().decode("ascii"))["nodes"]


@each_workflow
def test_titles_name_one_node_each(name):
    titles = [node["title"].strip() for node in nodes_of(name)]
    assert all(titles) and len(set(titles)) == len(titles)


@each_workflow
def test_every_weight_file_has_a_download(name):
    nodes = nodes_of(name)
    notes = "\n".join(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    for node in nodes:
        offered = {model["name"]: model["url"] for model in node["properties"].get("models", [])}
        for value in node["widgets_values"]:
            if isinstance(value, str) and WEIGHTS.fullmatch(value):
                in_a_note = OWN_FILE.fullmatch(value) and value in notes
                included = (REPO / "models" / value).is_file()
                assert included or in_a_note or URL.fullmatch(offered.get(value, "")), (node["title"], value)


@each_workflow
def test_our_nodes_have_the_outputs_that_they_have(name):
    for node in nodes_of(name):
        if node["type"] in DEFINED:
            assert len(node["outputs"]) == len(DEFINED[node["type"]]["outputs"]), node["title"]


def test_teacher_and_student_differ_in_guidance_only():
    nodes = {node["title"]: node for node in nodes_of("01 Student beside teacher")}
    teacher, student = (nodes[f"{who} sampler"]["widgets_values"] for who in ("CFG", "Student"))
    cfg = 3
    assert [i for i in range(7) if teacher[i] != student[i]] == [cfg] and student[cfg] == 1
    assert nodes["TeEFusion Conditioning"]["widgets_values"][0] == teacher[cfg] - 1


def test_each_has_a_thumbnail():
    pictured = {path.stem: path for path in (REPO / "workflows").glob("*.jpg")}
    assert pictured.keys() == FILES.keys()
    for path in pictured.values():
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and picture.width == picture.height >= 400, path
        assert path.stat().st_size < LARGEST_THUMBNAIL, path
