"""A sharpener as what is trained: it begins as nothing, leaves the network alone, fits its file at every width."""

import pytest
import torch
from torch import nn

from teefusion_core.errors import CheckpointMismatch
from teefusion_core.files.sharpener_file import SharpenerInfo, read_sharpener
from teefusion_core.files.tensor_file import write_tensors
from teefusion_core.prompts.sharpener import sharpened
from teefusion_core.training.students.sharpened import ALPHA, ALPHA_MAX, ALPHA_MIN, Sharpening

WIDTHS = {"SD1.5": 768, "SDXL": 2048, "SD3": 4096}
WIDTH = 16


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NETWORK = nn.Linear(3, 3)


def made(width=WIDTH, seed=0):
    return Sharpening(NETWORK, width, seed)


def shaken(update):
    with torch.no_grad():
        for number, parameter in enumerate(update.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=number)
    return update


def info(width):
    return SharpenerInfo(
        method="dice", width=width, hidden=512, heads=8, alpha=ALPHA, alpha_min=ALPHA_MIN, alpha_max=ALPHA_MAX,
        teacher="CFG, w 2", base="", step=3, pack_version="0.1.0",
    )  # fmt: skip


def test_it_begins_as_its_base():
    context = randn(2, 5, WIDTH)
    assert torch.equal(made().sharpened(context, randn(1, 3, WIDTH, seed=2)), context)


def test_the_network_is_no_part_of_it():
    update = made()
    x, network = randn(4, 3), update.network
    before = network(x)
    with shaken(update).in_training():
        assert torch.equal(network(x), before)
        with update.disabled():
            assert torch.equal(network(x), before)
    assert not any(parameter is weight for parameter in update.parameters() for weight in network.parameters())
    assert list(update.changed()) == []
    assert all(torch.equal(update.merged()[name], weight) for name, weight in network.state_dict().items())


@pytest.mark.parametrize("name", WIDTHS)
def test_made_saved_loaded_applied_at_the_width_of_each_family(name, tmp_path):
    width, path = WIDTHS[name], tmp_path / "sharp.safetensors"
    update = shaken(made(width))
    write_tensors(path, update.state(), info(width).metadata())
    network, found = read_sharpener(path)
    context, null = randn(2, 77, width), randn(1, 77, width, seed=2)
    for alpha in (0.5, found.alpha):
        applied = sharpened(network, context, null, alpha=alpha)
        assert torch.equal(applied, update.sharpened(context, null, alpha))
        assert torch.equal(applied[:, 0], context[:, 0]) and not torch.equal(applied[:, 1:], context[:, 1:])


def test_state_is_taken_over():
    one, other = shaken(made()), made(seed=5)
    other.load(one.state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(CheckpointMismatch):
        made(WIDTH * 2).load(one.state())
