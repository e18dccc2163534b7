"""A real ComfyUI: it starts, knows our nodes, runs a saved workflow."""

import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from runner.client import pictures, run_prompt
from runner.comparison import WORKFLOW, fill, guidance_of, methods, passes_per_step, with_pictures
from runner.graph import find, to_prompt
from runner.places import WORKFLOWS
from runner.server import make_base, running
from runner.stop import Stop
from runner.thumbnails import runs_here
from safetensors.torch import load

FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(WORKFLOWS.glob("*.json"))}


def green():
    """Return a workflow of stock nodes as the browser saves it: a green picture, then a save node."""
    image = {"name": "IMAGE", "type": "IMAGE", "links": [7]}
    make = {"id": 1, "type": "EmptyImage", "outputs": [image], "widgets_values": [16, 24, 2, 0x00FF00]}
    save = {"id": 2, "type": "SaveImage", "title": "Pictures", "outputs": [], "widgets_values": ["green"]}
    save["inputs"] = [{"name": "images", "type": "IMAGE", "link": 7}]
    return {"nodes": [make | {"mode": 0, "inputs": []}, save | {"mode": 0}], "links": [[7, 1, 0, 2, 0, "IMAGE"]]}


def test_a_saved_workflow_becomes_pictures(server):
    prompt = to_prompt(green(), server.get("/object_info"))
    run = run_prompt(server, prompt)
    images = pictures(server, run, find(prompt, "Pictures"))
    assert images.shape == (2, 24, 16, 3)
    assert np.array_equal(images[1, 3, 4], [0, 255, 0])


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_workflow_is_accepted(server, name):
    """Of one that needs downloads the server misses these files alone; the others run in tests/browser."""
    info = server.get("/object_info")
    prompt = to_prompt(FILES[name], info)
    for node in prompt.values():
        required = info[node["class_type"]]["input"].get("required", {})
        assert not required.keys() - node["inputs"].keys(), node["_meta"]["title"]
    if not runs_here(FILES[name]):
        missing = post(server, prompt)["node_errors"]
        assert missing, "nothing was missing, so it runs"
        for key, found in missing.items():
            assert "Loader" in prompt[key]["class_type"], prompt[key]["_meta"]["title"]
            assert {error["type"] for error in found["errors"]} == {"value_not_in_list"}, found


def post(server, prompt):
    """Queue a prompt; return the answer, be it a refusal."""
    data = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server.url}/prompt", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refusal:
        return json.load(refusal)


def test_a_refused_workflow_names_the_node(server):
    workflow = green()
    workflow["nodes"][0]["widgets_values"][0] = -5
    with pytest.raises(Stop, match="Empty ?Image.*width"):
        run_prompt(server, to_prompt(workflow, server.get("/object_info")))


def test_a_failing_node_is_named(server):
    workflow = green()
    workflow["nodes"][1]["widgets_values"][0] = "../../outside"
    with pytest.raises(Stop, match="Pictures"):
        run_prompt(server, to_prompt(workflow, server.get("/object_info")))


def test_a_taken_port_is_named(comfyui, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Stop, match=str(port)), running(comfyui, tmp_path, tmp_path / "log", port=port):
            pass


def test_a_server_that_dies_at_work_points_at_its_log(comfyui, tmp_path):
    base, log = make_base(tmp_path / "base"), tmp_path / "comfyui.log"
    with running(comfyui, base, log) as server:
        prompt = to_prompt(green(), server.get("/object_info"))
        server.process.kill()
        with pytest.raises(Stop, match=re.escape(str(log))):
            run_prompt(server, prompt)


def test_the_shipped_comparison_runs_with_counted_passes(server):
    shipped = to_prompt(json.loads(Path(WORKFLOW).read_text(encoding="utf-8")), server.get("/object_info"))
    prompt, columns = with_pictures(shipped), methods()
    samplers = [column.sampler for column in columns]
    filled = fill(prompt, "a red circle on a white background", 3, samplers)
    for title in samplers:
        filled[find(filled, title)]["inputs"]["steps"] = 3
    run = run_prompt(server, filled)
    two_reflected_steps_and_one_plain = 2 * 4 + 2
    assert passes_per_step(server, run, filled, columns) == [1.0, 2.0, two_reflected_steps_and_one_plain / 3, 1.0]
    guidance, scales = zip(*(guidance_of(filled, find(filled, title)) for title in samplers), strict=True)
    assert scales == (1, 3, 3, 3)
    assert guidance == ("cfg 1", "cfg 3", "cfg 1 / 1 / 3", "w 2 (as cfg 3)")
    for column in columns:
        assert pictures(server, run, find(filled, column.pictures)).shape == (3, 64, 64, 3)


def test_the_shipped_report_shows_teacher_and_student(server):
    """The workflow as it is: one plot of both, and a grid that carries what the reports say of the cost."""
    prompt = to_prompt(FILES["08 Guidance report"], server.get("/object_info"))
    run = run_prompt(server, prompt)
    plot = pictures(server, run, find(prompt, "Plot"))
    assert plot.shape == (1, 512, 768, 3) and plot.std() > 1
    grid = pictures(server, run, find(prompt, "Grid"))
    assert grid.shape[2] > 2 * 128 and (grid < 200).any()
    counted = server.get(f"/probe/passes/{run.prompt_id}")
    rows = [counted[find(prompt, f"{who} report")]["rows"] for who in ("Teacher", "Student")]
    assert rows == [3 * (78 + 20 * 2), 3 * (20 + 20 * 2)], "three pictures, 20 steps, 2 passes of each to measure"


def test_the_shipped_arithmetic_shows_the_background_that_was_added(server):
    """The workflow as it is: the sum shows what the whole prompt says, the base alone does not."""
    from lab.demo_world.verifier import read_picture

    prompt = to_prompt(FILES["09 Text arithmetic"], server.get("/object_info"))
    run = run_prompt(server, prompt)
    grounds = {}
    for name in ("Whole", "Base", "Sum"):
        shown = pictures(server, run, find(prompt, f"{name} images"))
        grounds[name] = [read_picture(picture[2::4, 2::4])[0] for picture in shown]  # enlarged by the workflow
    assert grounds["Whole"] == grounds["Sum"] == ["brown"] * 4 != grounds["Base"]
    report = run.outputs[find(prompt, "Cosines of the sum")]["text"][0].splitlines()
    to_base, to_whole, before = (float(line.rpartition("pooled ")[2]) for line in report)
    assert -1 <= to_base < 1 and max(0.5, before) < to_whole < 1


def test_the_shipped_training_makes_a_student_that_samples(server):
    """The workflow as it is but for its length; then a graph with the file that it wrote."""
    prompt = to_prompt(FILES["06 Distill a student"], server.get("/object_info"))
    trainer = find(prompt, "Distill Trainer")
    prompt[trainer]["inputs"].update(steps=4, cache_size=1, teacher_steps=3, preview_every=2)
    curve = pictures(server, run_prompt(server, prompt), find(prompt, "Loss curve"))
    assert curve.ndim == 4 and curve.std() > 1
    output = server.log.parent / "base" / "output"
    student = output / "loras" / "my_first_student.safetensors"
    written = load(student.read_bytes())
    student.unlink()
    run_prompt(server, prompt)  # the server keeps results, but this one's file is gone
    again = load(student.read_bytes())
    assert again.keys() == written.keys() and all(torch.equal(again[name], written[name]) for name in written)
    assert list((output / "teefusion_runs" / "my_first_student").glob("step-00000004/checkpoint.json"))

    def node(kind, title="", **inputs):
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}

    graph = {
        "1": node("TinySD3Loader", variant="base"),
        "2": node("TeEFusionStudentLoader", model=["1", 0], student="my_first_student.safetensors"),
        "3": node("CLIPTextEncode", clip=["1", 1], text="a red circle"),
        "4": node("CLIPTextEncode", clip=["1", 1], text=""),
        "5": node("TeEFusionConditioning", model=["2", 0], positive=["3", 0], null=["4", 0], guidance=3.0),
        "6": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "7": node(
            "KSampler", model=["5", 0], positive=["5", 1], negative=["4", 0], latent_image=["6", 0], seed=1, steps=3,
            cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("SaveImage", "Pictures", images=["8", 0], filename_prefix="student"),
    }  # fmt: skip
    assert pictures(server, run_prompt(server, graph), "9").shape == (1, 64, 64, 3)
