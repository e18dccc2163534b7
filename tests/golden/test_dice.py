"""Stored outputs of the DICE network against our text-book twin, then against the pack."""

import json

import literal_dice
import numpy as np
import pytest
import torch
from golden_weights import DATA, fill, relative

from teefusion_core.prompts.sharpener import Sharpener, sharpened

CASES = json.loads((DATA / "dice.json").read_text(encoding="ascii"))
LIMIT = 1e-5
SHORT = 5


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Weights by name, network with these weights, prompt, null, stored residual."""
    c = CASES[request.param]
    weights = {name: 0.05 * fill(name, tuple(shape), c["seed"]) for name, shape in c["names"].items()}
    network = Sharpener(c["dim"], c["inner"], c["heads"])
    network.load_state_dict(weights)
    shape = (c["batch"], c["tokens"], c["dim"])
    with np.load(DATA / "dice.npz") as archive:
        stored = torch.from_numpy(archive[f"{request.param}/residual"])
    return (
        weights, network.requires_grad_(False), fill("cond", shape, c["seed"]), fill("null", shape, c["seed"]), stored,
    )  # fmt: skip


def test_the_network(case, record_property):
    _, network, prompt, null, stored = case
    gap = relative(network(prompt, null)[:, : stored.shape[1]], stored)
    record_property("gap", gap)
    assert gap < LIMIT


def test_the_literal_network(case):
    weights, _, prompt, null, stored = case
    slow = torch.stack([literal_dice.residual(weights, c[:SHORT], n) for c, n in zip(prompt, null, strict=True)])
    assert relative(slow, stored[:, :SHORT]) < LIMIT


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.7, 0.4)])
def test_the_whole_formula(case, alpha, beta):
    weights, network, prompt, null, _ = case
    prompt, null = prompt[:1, :SHORT], null[:1, :SHORT]
    negative = fill("negative", null.shape, 0)
    fast = sharpened(network, prompt, negative, alpha=alpha, beta=beta, null_BLW=null)
    assert relative(fast[0], literal_dice.sharpened(weights, prompt[0], negative[0], null[0], alpha, beta)) < LIMIT


def test_texts_of_different_lengths(case):
    weights, network, prompt, null, _ = case
    fast = network(prompt[:1, :SHORT], null[:1, :3])
    assert relative(fast[0], literal_dice.residual(weights, prompt[0, :SHORT], null[0, :3])) < LIMIT
