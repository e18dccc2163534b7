"""Low-rank updates of frozen matrices."""

import pytest
import torch
from torch import nn

from teefusion_core.errors import InvalidConfig
from teefusion_core.trainable import Lora

PREFIX = "diffusion_model."


def network():
    """Two matrices, one of them narrower than the rank in use here, with biases beside them."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 2))


def lora(rank=4, **options):
    return Lora(dict(network().named_parameters()), rank, **options)


def trained(rank=4, **options):
    """A Lora whose update is not zero."""
    update = lora(rank, **options)
    with torch.no_grad():
        for up in update.up.values():
            up.copy_(torch.randn(up.shape))
    return update


def test_the_update_is_zero_at_the_start():
    weights = dict(network().named_parameters())
    merged = lora().merged()
    assert set(merged) == {"0.weight", "2.weight"}, "biases are left alone"
    for name, weight in merged.items():
        assert torch.equal(weight, weights[name])


def test_gradient_reaches_the_factors_not_the_base():
    base = network()
    update = Lora(dict(base.named_parameters()), 2)
    x = torch.randn(3, 6)
    optimizer = torch.optim.SGD(update.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = (torch.func.functional_call(base, update.merged(), x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in update.parameters())
    assert base[0].weight.grad is None and torch.equal(base[0].weight, network()[0].weight)


def test_only_the_factors_are_parameters():
    update = lora(rank=4)
    sizes = {name: tuple(p.shape) for name, p in update.named_parameters()}
    assert sizes == {"down.0/weight": (4, 6), "up.0/weight": (5, 4), "down.2/weight": (2, 5), "up.2/weight": (2, 2)}


def test_alpha_over_rank_is_the_scale():
    plain, half = trained(rank=4, seed=3), trained(rank=4, seed=3, alpha=2.0)
    half.load_state_dict(plain.state_dict())
    for name, base in plain.base.items():
        torch.testing.assert_close(half.merged()[name] - base, 0.5 * (plain.merged()[name] - base))


def test_the_seed_decides_the_start():
    a, b, c = (lora(seed=seed).down["0/weight"] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_state_has_three_tensors_per_matrix_under_the_names_of_the_host():
    state = trained(rank=4, alpha=2.0).state()
    parts = ("alpha", "lora_down.weight", "lora_up.weight")
    assert set(state) == {f"{PREFIX}{layer}.{part}" for layer in ("0", "2") for part in parts}
    for name, tensor in state.items():
        assert tensor.dtype == (torch.float32 if name.endswith("alpha") else torch.float16)
        assert tensor.is_contiguous() and not tensor.requires_grad


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_loader_makes_the_same_update_from_the_state(alpha):
    """Loaders scale up @ down by alpha over the rank that they find in the file, also for the narrow matrix."""
    update = trained(rank=4, alpha=alpha)
    state = update.state()
    ranks = []
    for name, merged in update.merged().items():
        path = PREFIX + name.removesuffix(".weight")
        down, up = (state[f"{path}.lora_{part}.weight"].float() for part in ("down", "up"))
        ranks.append(len(down))
        loaded = update.base[name] + state[f"{path}.alpha"] / len(down) * (up @ down)
        torch.testing.assert_close(loaded, merged, rtol=2e-3, atol=2e-3)
    assert ranks == [4, 2]


def test_half_precision_bases_are_updated_in_full():
    weights = {"a.weight": torch.randn(3, 4).half()}
    update = Lora(weights, 2)
    with torch.no_grad():
        update.up["a/weight"].fill_(1e-5)
    merged = update.merged()["a.weight"]
    assert merged.dtype == torch.float32 and not torch.equal(merged, weights["a.weight"].float())


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(InvalidConfig, match=f"rank is {rank} for 2 matrices"):
        lora(rank=rank)


def test_weights_without_a_matrix_are_refused():
    with pytest.raises(InvalidConfig, match="rank is 4 for 0 matrices"):
        Lora({"bias": torch.zeros(3)}, 4)
