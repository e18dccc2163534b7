"""Updates of a frozen network: applied, disabled, stored, read back."""

import pytest
import torch
from torch import nn

from teefusion_core.errors import CheckpointMismatch, InvalidConfig
from teefusion_core.guidance.architectures import Architecture
from teefusion_core.training.adapters import TRAINABLE, Lora, linear_layers
from teefusion_core.training.update import exchanged

PREFIX = "diffusion_model."
ROW = Architecture(
    name="toy", landmarks=(), time_mlp="time", pooled_embed="text", modulation="scale", guidance_embedding_scale=1.0,
    gain=1.0, source="here",
)  # fmt: skip


class Network(nn.Module):
    """Two embedders, a modulated body with a norm; one layer is narrower than the rank in use here."""

    def __init__(self, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.time, self.text = nn.Sequential(nn.Linear(6, 6), nn.SiLU()), nn.Linear(6, 6)
        self.scale, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 2))

    def forward(self, x):
        return self.body(self.norm(x) * self.scale(self.time(x) + self.text(x)))


X = torch.linspace(-2, 2, 24).reshape(4, 6)
EVERY_KIND = pytest.mark.parametrize("kind", TRAINABLE)


@pytest.fixture
def network():
    return Network().requires_grad_(False)


def update_of(kind, network, rank=4, seed=0):
    return TRAINABLE[kind](network, ROW, rank, seed)


def trained(update, seed=5):
    """The same, changed at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in update.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return update


def output(network, update=None):
    if update is None:
        return network(X)
    with update.applied():
        return network(X)


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def unchanged(network, before):
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for m in network.modules() for p in m._parameters.values())
    return not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@EVERY_KIND
def test_it_changes_nothing_at_the_start(network, kind):
    assert torch.equal(output(network, update_of(kind, network)), output(network))


@EVERY_KIND
def test_an_error_inside_leaves_the_network_clean(network, kind):
    before, update = snapshot(network), trained(update_of(kind, network))
    with pytest.raises(RuntimeError), update.in_training():
        network(X)
        raise RuntimeError
    assert unchanged(network, before)
    with pytest.raises(RuntimeError), update.in_training(), update.disabled():
        raise RuntimeError
    assert unchanged(network, before)


@EVERY_KIND
def test_the_network_holds_its_own_weights_wherever_no_layer_is_at_work(network, kind):
    """Who loads, freezes or saves a model in the middle of a training meets these."""
    own = dict(network.named_parameters())
    update = trained(update_of(kind, network))

    def as_it_was():
        found = dict(network.named_parameters())
        return found.keys() == own.keys() and all(found[name] is own[name] for name in own)

    with update.in_training():
        network(X)
        assert as_it_was()
        with pytest.raises(RuntimeError):
            network(X[:, :3])
        assert as_it_was()


@EVERY_KIND
def test_disabled_it_is_the_base_again(network, kind):
    plain, update = output(network), trained(update_of(kind, network))
    applied = output(network, update)
    assert not torch.allclose(applied, plain, atol=0.01)
    with update.in_training():
        assert torch.equal(network(X), applied)
        with update.disabled():
            assert torch.equal(network(X), plain)
        assert torch.equal(network(X), applied)
    with update.disabled():
        assert torch.equal(network(X), plain), "not attached at all"


@EVERY_KIND
def test_training_lowers_the_loss_without_touching_the_base(network, kind):
    before, update = snapshot(network), update_of(kind, network)
    optimizer, losses = torch.optim.Adam(update.parameters(), lr=0.03), []
    for _ in range(100):
        loss = (output(network, update) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in update.parameters())
    assert all(parameter.grad is None for parameter in network.parameters()) and unchanged(network, before)


@EVERY_KIND
def test_the_state_read_back_is_the_same_update(network, kind):
    update, again = trained(update_of(kind, network)), update_of(kind, network)
    state = update.state()
    again.load(state)
    torch.testing.assert_close(output(network, again), output(network, update), rtol=5e-3, atol=5e-3)
    assert all(name.startswith(PREFIX) and t.is_contiguous() and not t.requires_grad for name, t in state.items())


@EVERY_KIND
def test_a_foreign_state_is_refused_whole(network, kind):
    update = update_of(kind, network)
    state = trained(update_of(kind, network)).state()
    name = next(n for n in state if not n.endswith("alpha") and n.startswith(f"{PREFIX}t"))
    before = [parameter.detach().clone() for parameter in update.parameters()]
    with pytest.raises(CheckpointMismatch):
        update.load({**state, name: torch.zeros(1, 1)})
    assert all(torch.equal(a, b) for a, b in zip(before, update.parameters(), strict=True))


def test_each_kind_trains_what_it_says(network):
    linear = ["time.0", "text", "scale", "body.0", "body.2"]
    assert linear_layers(network) == linear
    assert update_of("lora", network).layers == linear
    assert update_of("lora on modulation", network).layers == ["time.0", "text", "scale"]
    embedders = [f"{layer}.{leaf}" for layer in ("time.0", "text") for leaf in ("weight", "bias")]
    assert update_of("embedders", network).names == embedders
    assert update_of("everything", network).names == [name for name, _ in network.named_parameters()]


@EVERY_KIND
def test_merged_weights_compute_what_the_update_does(network, kind):
    update = trained(update_of(kind, network))
    with update.in_training():
        expected = network(X)
    other = Network(seed=2)
    other.load_state_dict(update.merged())
    torch.testing.assert_close(other(X), expected)


@pytest.mark.parametrize(("base", "stored"), [(torch.float16, torch.float16), (torch.float8_e4m3fn, torch.bfloat16)])
def test_merged_weights_keep_the_dtype_of_the_base_unless_it_has_8_bits(network, base, stored):
    network.body[2].weight.data = network.body[2].weight.data.to(base)
    merged = trained(update_of("lora", network)).merged()
    assert (merged["body.2.weight"].dtype, merged["text.weight"].dtype) == (stored, torch.float32)


class TestLora:
    def test_it_is_the_matrix_product(self, network):
        update = trained(Lora(network, 4, layers=["text"], alpha=2.0))
        up, down = update.up["text"], update.down["text"]
        expected = Network()
        with torch.no_grad():
            expected.text.weight += 0.5 * up @ down
        torch.testing.assert_close(output(network, update), output(expected))

    @pytest.mark.parametrize("alpha", [None, 2.0])
    def test_a_loader_makes_the_same_update_from_the_state(self, network, alpha):
        """Loaders scale up @ down by alpha over the rank that they find in the file, also for the narrow layer."""
        update = trained(Lora(network, 4, alpha=alpha))
        state = update.state()
        loaded = Network()
        with torch.no_grad():
            for path in update.layers:
                down, up = (state[f"{PREFIX}{path}.lora_{part}.weight"].float() for part in ("down", "up"))
                loaded.get_submodule(path).weight += state[f"{PREFIX}{path}.alpha"] / len(down) * (up @ down)
        torch.testing.assert_close(output(loaded), output(network, update), rtol=5e-3, atol=5e-3)

    @pytest.mark.parametrize("rank", [0, -3])
    def test_a_rank_below_one_and_a_network_without_linear_layers_are_refused(self, network, rank):
        with pytest.raises(InvalidConfig, match=f"rank is {rank}"):
            Lora(network, rank)
        with pytest.raises(InvalidConfig, match="0 layers"):
            Lora(nn.LayerNorm(3), 4)


@EVERY_KIND
def test_other_values_last_as_long_as_the_block(network, kind):
    update = trained(update_of(kind, network))
    applied, average = output(network, update), {name: 0.5 * p.detach() for name, p in update.named_parameters()}
    with pytest.raises(RuntimeError), exchanged(update, average):
        assert not torch.equal(output(network, update), applied)
        raise RuntimeError
    assert torch.equal(output(network, update), applied)


@pytest.mark.parametrize("trainable", ["embedders", "everything"])
def test_copies_of_quantised_weights_are_refused(trainable):
    network = Network()
    network.text.weight = nn.Parameter(torch.ones(6, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InvalidConfig, match=r"quantised weights \(text.weight"):
        TRAINABLE[trainable](network, ROW, 4, 0)


def test_layers_of_a_quantised_class_are_named():
    class Coded(nn.Module):
        in_features = out_features = 6

    with pytest.raises(InvalidConfig, match="quantised.*bfloat16"):
        Lora(nn.Sequential(Coded()), rank=2)
    assert linear_layers(nn.Sequential(Coded(), nn.Linear(6, 6))) == ["1"]
