"""Many requests from several clients at once, as docs/serving.md describes them."""

import copy
import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runner.api_prompts import FOLDER, STUDENT, SWEEP, api_prompts, written
from runner.client import pictures, run_prompt
from runner.graph import find

GUIDANCE = (0.8, 1.0, 1.37, 2.0, 2.5, 3.0, 3.5)
SEEDS = (1, 2, 3)
CLIENTS, WARM = 4, 20
GROWTH = 48  # MB that the server may grow by after WARM requests
LOADED = "loaded completely"
"""What the host logs when it copies the weights of a model; a request for weights that are there logs nothing so."""


@pytest.fixture(scope="module")
def student():
    prompt = json.loads((FOLDER / f"{STUDENT}.json").read_text(encoding="utf-8"))
    prompt[find(prompt, "Student sampler")]["inputs"]["steps"] = 2
    return prompt


def asked(prompt, guidance, seed):
    own = copy.deepcopy(prompt)
    own[find(own, "TeEFusion Conditioning")]["inputs"]["guidance"] = guidance
    own[find(own, "Student sampler")]["inputs"]["seed"] = seed
    return own


def image_of(server, prompt):
    (image,) = pictures(server, run_prompt(server, prompt), find(prompt, "Result"))
    return image


def resident(server):
    """Return the resident memory of the server in MB."""
    with open(f"/proc/{server.process.pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def test_api_prompts_are_those_of_the_workflows(server):
    wanted = api_prompts(server.get("/object_info"))
    assert {path.stem for path in FOLDER.glob("*.json")} == wanted.keys()
    for name, prompt in wanted.items():
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == written(prompt), name


@pytest.mark.parametrize("count", (40, pytest.param(200, marks=pytest.mark.extended)))
def test_mixed_guidance_from_four_clients(server, student, count, record_property):
    """Every image is the one made alone, no model is loaded again, and memory does not grow."""
    alone = {(w, seed): image_of(server, asked(student, w, seed)) for w in GUIDANCE for seed in SEEDS}
    assert len({image.tobytes() for image in alone.values()}) == len(alone)
    draw = random.Random(0)
    wanted = [draw.choice(list(alone)) for _ in range(count)]

    def ask(case):
        return np.array_equal(image_of(server, asked(student, *case)), alone[case])

    loaded = server.log.read_text(encoding="utf-8").count(LOADED)
    with ThreadPoolExecutor(CLIENTS) as pool:
        same = list(pool.map(ask, wanted[:WARM]))
        before = resident(server)
        same += list(pool.map(ask, wanted[WARM:]))
    grown = resident(server) - before
    record_property("grown_MB", round(grown, 1))
    assert all(same)
    assert server.log.read_text(encoding="utf-8").count(LOADED) == loaded
    assert grown < GROWTH


def test_one_request_with_a_guidance_per_image(server, student):
    sweep = json.loads((FOLDER / f"{SWEEP}.json").read_text(encoding="utf-8"))
    node = find(sweep, "Guidance Sweep")
    sweep[node]["inputs"] |= {"lowest": 1.0, "highest": 3.0, "count": 3}
    sweep[find(sweep, "Student sampler")]["inputs"] |= {"steps": 2, "seed": 2}
    sweep[find(sweep, "Prompt")]["inputs"]["text"] = student[find(student, "Prompt")]["inputs"]["text"]
    together = pictures(server, run_prompt(server, sweep), find(sweep, "Result"))
    for image, w in zip(together, (1.0, 2.0, 3.0), strict=True):
        apart = image.astype(int) - image_of(server, asked(student, w, 2)).astype(int)
        assert abs(apart).max() <= 1
