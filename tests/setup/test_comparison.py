"""What the demo makes of what the server gave."""

import json

import numpy as np
import pytest
from PIL import Image
from runner import comparison, demo_table
from runner.comparison import INNER, SHOWN, Method, Row
from runner.places import ROOT
from runner.stop import Stop

PROMPT = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "old"}, "_meta": {"title": "Prompt"}},
    "2": {"class_type": "TeEFusionConditioning", "inputs": {"guidance": ["3", 0]}, "_meta": {"title": "Fuse"}},
    "3": {"class_type": "PrimitiveFloat", "inputs": {"value": 3.5}, "_meta": {"title": "w"}},
    "4": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["2", 0]}, "_meta": {"title": "LoRA"}},
    "5": {"class_type": "KSampler", "inputs": {"model": ["4", 0], "seed": 1, "cfg": 1}, "_meta": {"title": "Student"}},
    "6": {"class_type": "KSampler", "inputs": {"model": ["9", 0], "seed": 2, "cfg": 4.5}, "_meta": {"title": "CFG"}},
    "9": {"class_type": "Loader", "inputs": {}, "_meta": {"title": "Base"}},
}


def test_guidance_is_read_from_the_graph():
    assert comparison.guidance_of(PROMPT, "5") == ("w 3.5 (as cfg 4.5)", 4.5)
    assert comparison.guidance_of(PROMPT, "6") == ("cfg 4.5", 4.5)


def test_both_methods_get_the_same_noise_on_a_copy():
    filled = comparison.fill(PROMPT, "new", 77, ["Student", "CFG"])
    assert filled["1"]["inputs"]["text"] == "new"
    assert filled["5"]["inputs"]["seed"] == filled["6"]["inputs"]["seed"] == 77
    assert PROMPT["1"]["inputs"]["text"] == "old" and PROMPT["5"]["inputs"]["seed"] == 1


def test_the_table_tells_passes_times_and_scores():
    student = Method("Student", "", "", "w 2 (as cfg 3)", 3.0, 20, [1.0, 3.0, 1.5], [1.0, 1.0])
    cfg = Method("CFG", "", "", "cfg 3", 3.0, 20, [9.6, 4.8, 2.4], [2.0, 2.0])
    other = Method("CFG", "", "", "cfg 7", 7.0, 20, [2.0, 6.0, 3.0], [2.0, 2.0])
    lines = demo_table.table((cfg, other, student)).splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[2:5]]
    assert [row[:4] for row in cells] == [
        ["CFG", "cfg 3", "40", "1.6 x"], ["CFG", "cfg 7", "40", "2.0 x"], ["Student", "w 2 (as cfg 3)", "20", "1.0 x"],
    ]  # fmt: skip
    scores = json.loads((ROOT / "lab" / "results" / "alignment.json").read_text(encoding="utf-8"))["rows"]
    (share,) = [row["overall"] for row in scores if row["method"] == "CFG" and row["cfg"] == 3.0]
    assert cells[0][4].startswith(f"{share:.2f} (0.") and cells[1][4] == "not scored"
    assert student.label() == "Student: 1 pass per step"


def test_the_sheet_shows_each_method_with_its_verdict(tmp_path):
    white = np.full((64, 64, 3), 255, np.uint8)
    rows = [Row(f"prompt {i} " + "long " * i * 20, [[(white, True)] * 4, [(white, False)] * 4]) for i in range(5)]
    path = comparison.draw_sheet(rows, ["one", "two"], tmp_path / "deep" / "sheet.png")
    pixels = np.asarray(Image.open(path)).reshape(-1, 3)
    frame = (INNER + 8) ** 2 - INNER**2
    for color in ((46, 160, 67), (214, 57, 57)):
        assert (pixels == color).all(1).sum() == 5 * SHOWN * frame


def test_a_missing_part_of_the_demo_model_is_one_sentence(tmp_path):
    for part in ("base", "weak", "text", "vae"):
        (tmp_path / f"demo_sd3_{part}.safetensors").touch()
    with pytest.raises(Stop, match="demo_sd3_student.safetensors"):
        comparison.check_models(tmp_path)
    (tmp_path / "demo_sd3_student.safetensors").touch()
    comparison.check_models(tmp_path)
