"""The workflows for real weights, on files of the published layouts with networks of depth 2."""

import subprocess
import sys

import numpy as np
import pytest
from runner.client import pictures, run_prompt
from runner.places import ROOT
from runner.stop import Stop

from lab.real_size import graphs
from lab.real_size.files import without_update

PIXELS, STEPS = 128, 2


@pytest.fixture(scope="module")
def info(server):
    """Put the files into the server's folder of models until the end; return the description of its nodes."""
    models = server.log.parent / "base" / "models"
    before = set(models.rglob("*"))
    command = [sys.executable, "-m", "lab.real_size", models, "--depth", "2", "--encoders", "clip_l"]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)
    yield server.get("/object_info")
    for file in set(models.rglob("*.safetensors")) - before:
        file.unlink()  # the other workflows would run on them, at their real size


def quick(name, info):
    return graphs.with_one_encoder(graphs.quick(name, info, pixels=PIXELS, steps=STEPS))


def picture(server, prompt):
    image_BHW3 = pictures(server, run_prompt(server, prompt), graphs.node_of(prompt, "SaveImage"))
    assert image_BHW3.shape == (1, PIXELS, PIXELS, 3) and image_BHW3.std() > 10, "black or gray: NaN"
    return image_BHW3


def test_the_published_student_in_the_files_of_diffusers(server, info):
    first, other = (quick(graphs.PUBLISHED, info) for _ in range(2))
    fusion = graphs.node_of(first, "TeEFusionConditioning")
    other[fusion]["inputs"]["guidance"] = 14.0
    run = run_prompt(server, first)
    assert [text for _, node, text in run.texts if node == fusion and "w from 2 to 14" in text]
    assert not np.array_equal(picture(server, first), picture(server, other)), "it does not listen to w"


def test_one_lora_at_two_strengths(server, info):
    gap, none = (quick(graphs.GAP, info) for _ in range(2))
    for node in none.values():
        if node["class_type"] == "LoraLoaderModelOnly":
            node["inputs"]["strength_model"] = 0.0
    assert not np.array_equal(picture(server, gap), picture(server, none))


def test_a_student_of_sd35_medium(server, info):
    """It is trained, loaded and sampled; its base without an update is a stock run; another base is refused."""
    distill = quick(graphs.DISTILL, info)
    trainer = graphs.node_of(distill, "DistillTrainer")
    run = run_prompt(server, distill)
    assert [node for _, node, _ in run.texts if node == trainer]
    size = {"pixels": PIXELS, "steps": STEPS}
    file = f"{graphs.TRAINED['name']}.safetensors"
    (trained,) = (server.log.parent / "base" / "output").rglob(file)
    zero = without_update(trained, "zero").name

    def image(w, file=file):
        return picture(server, graphs.trained_student(distill, file, w, **size))

    assert not np.array_equal(image(1.0), image(8.0)), "it does not listen to w"
    assert np.array_equal(image(None, zero), image(None, ""))
    assert not np.array_equal(image(None), image(None, "")), "an update that does nothing shows nothing"
    wrong = graphs.trained_student(distill, file, 2.0, **size)
    published = quick(graphs.PUBLISHED, info)
    loader = graphs.node_of(published, "UNETLoader")
    wrong["other base"] = published[loader]
    wrong["student"]["inputs"]["model"] = ["other base", 0]
    with pytest.raises(Stop, match="base"):
        run_prompt(server, wrong)
