"""One ComfyUI with public node packs beside ours: everything loads, and images stay as they were."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from runner.client import pictures, run_prompt
from runner.comparison import WORKFLOW, fill, methods
from runner.graph import find, to_prompt
from runner.places import PACK, PROBE_NAME
from runner.server import link_folder, make_base, running

SEED = 5
UNLOADABLE = {"ComfyUI-NAG"}
"""Packs that neither tested ComfyUI can import, with or without this pack."""
IMPORT_FAILED = re.compile(r"Cannot import (.+) module for custom nodes")


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def sampled(model, positive):
    wired = {"model": model, "positive": positive, "negative": ["null", 0], "latent_image": ["empty", 0]}
    return {
        "load": node("TinySD3Loader", variant="base"),
        "null": node("CLIPTextEncode", clip=["load", 1], text=""),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=2),
        "sample": node(
            "KSampler", seed=SEED, steps=4, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0, **wired
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="packs"),
    }


def stock():
    text = node("CLIPTextEncode", clip=["load", 1], text="a red circle")
    return sampled(["load", 0], ["text", 0]) | {"text": text}


def student(extra, positive, model="student"):
    load = node("TinySD3Loader", variant="student")
    ours = node("TeEFusionConditioning", model=[model, 0], positive=positive, null=["null", 0], guidance=3.0)
    return sampled(["ours", 0], ["ours", 1]) | {"student": load, "ours": ours} | extra


def lazily_scheduled():
    """The prompt changes at half of the steps, written in the language of prompt-control."""
    text = "[a red circle:a green ring:0.5]"
    return student({"text": node("PCLazyTextEncode", clip=["load", 1], text=text)}, ["text", 0])


def scheduled():
    extra = {}
    for name, words, start, end in (("a", "a red circle", 0.0, 0.5), ("b", "a green ring", 0.5, 1.0)):
        extra[f"{name} text"] = node("CLIPTextEncode", clip=["load", 1], text=words)
        span = {"conditioning": [f"{name} text", 0], "start": start, "end": end}
        extra[name] = node("ConditioningSetTimestepRange", **span)
    extra["both"] = node("ConditioningCombine", conditioning_1=["a", 0], conditioning_2=["b", 0])
    return student(extra, ["both", 0])


def with_preview(override):
    text = {"text": node("CLIPTextEncode", clip=["load", 1], text="a red circle")}
    if not override:
        return student(text, ["text", 0])
    preview = node("ModelPreviewOverrideKJ", model=["student", 0], max_resolution=256, preview_every=1)
    return student(text | {"preview": preview}, ["text", 0], model="preview")


def shown(server, prompt):
    """Run a prompt with the defaults of the inputs that it leaves out; return its images."""
    info = server.get("/object_info")
    for one in prompt.values():
        for name, spec in info[one["class_type"]]["input"].get("required", {}).items():
            if len(spec) > 1 and "default" in spec[1]:
                one["inputs"].setdefault(name, spec[1]["default"])
    return pictures(server, run_prompt(server, prompt), find(prompt, "SaveImage"))


def comparison(server):
    """Template 01 with three steps; the images of its columns."""
    prompt = to_prompt(json.loads(Path(WORKFLOW).read_text(encoding="utf-8")), server.get("/object_info"))
    columns = methods()
    filled = fill(prompt, "a red circle on a white background", 3, [column.sampler for column in columns])
    for column in columns:
        filled[find(filled, column.sampler)]["inputs"]["steps"] = 3
    run = run_prompt(server, filled)
    return [pictures(server, run, find(filled, column.pictures)) for column in columns]


def ours_of(server):
    return sorted(k for k, v in server.get("/object_info").items() if v["python_module"].endswith(PACK))


@pytest.fixture(scope="module")
def runs(comfyui, tmp_path_factory):
    """What two servers give, with the packs and without."""
    folder, packs = tmp_path_factory.mktemp("packs"), Path(os.environ["TEEFUSION_PACKS"])
    names = sorted(path.name for path in packs.iterdir() if (path / "__init__.py").is_file())
    found = {}
    for others in ([], names):
        base = make_base(folder / f"base {len(others)}")
        for name in others:
            link_folder(base / "custom_nodes" / name, packs / name)
        log = folder / f"{len(others)}.log"
        with running(comfyui, base, log, packs=(PACK, PROBE_NAME, *others), packages=packs / ".site") as server:
            got = {"nodes": ours_of(server), "stock": shown(server, stock()), "template 01": comparison(server)}
            got["schedule"], got["preview"] = shown(server, scheduled()), shown(server, with_preview(False))
            if others:
                got["lazy schedule"] = shown(server, lazily_scheduled())
                got["preview override"] = shown(server, with_preview(True))
        found["with" if others else "without"] = got | {"log": log.read_text(encoding="utf-8"), "names": names}
    return found


def test_all_load_and_no_error_is_ours(runs):
    log = runs["with"]["log"]
    assert runs["with"]["nodes"] == runs["without"]["nodes"] != []
    assert {Path(path).name for path in IMPORT_FAILED.findall(log)} == UNLOADABLE & set(runs["with"]["names"])
    frames = [line for line in log.splitlines() if line.lstrip().startswith("File ") and f"/{PACK}/" in line]
    assert frames == [], "a traceback in the log goes through our files"


def test_stock_images_stay_bit_identical(runs):
    with_packs, without = runs["with"], runs["without"]
    assert without["stock"].std() > 1
    assert np.array_equal(with_packs["stock"], without["stock"])


def test_template_01_stays_bit_identical(runs):
    columns = list(zip(runs["with"]["template 01"], runs["without"]["template 01"], strict=True))
    assert len(columns) == 4
    for with_packs, without in columns:
        assert np.array_equal(with_packs, without)


def test_a_prompt_schedule_of_prompt_control_is_that_of_stock_nodes(runs):
    lazy = runs["with"]["lazy schedule"].astype(float)
    assert np.abs(lazy - runs["with"]["schedule"]).max() <= 1
    assert np.abs(lazy - runs["with"]["preview"]).mean() > 1


def test_a_preview_override_changes_no_image(runs):
    assert np.array_equal(runs["with"]["preview override"], runs["with"]["preview"])
