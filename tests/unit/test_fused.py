"""The guidance term of a student in training, against numbers written out one by one."""

import math

import pytest
import torch
from torch import nn

from teefusion_core.guidance.architectures import Architecture
from teefusion_core.guidance.fusion import EXACT, OFFICIAL_BF16
from teefusion_core.training.students.fused import GuidanceTerm, calibrated_gain

WIDTH, POOLED, WAVES = 6, 5, 8
TINY = Architecture(
    name="tiny", landmarks=("time",), time_mlp="time", pooled_embed="text", modulation="mix",
    guidance_embedding_scale=1000.0, gain=0.1, source="test",
)  # fmt: skip


def waves(value):
    """psi(value), half cosines then half sines, in single precision as the published models have it."""
    half = WAVES // 2
    frequencies = [torch.exp(torch.tensor(-math.log(10000.0)) * k / half) for k in range(half)]
    angles = [torch.tensor(value, dtype=torch.float32) * f for f in frequencies]
    return torch.stack([torch.cos(a) for a in angles] + [torch.sin(a) for a in angles])


class TinyNetwork(nn.Module):
    """G, F with a body that shows their sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.time = nn.Sequential(nn.Linear(WAVES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.text = nn.Sequential(nn.Linear(POOLED, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.double()

    def forward(self, timesteps, y):
        psi = torch.stack([waves(float(t)) for t in timesteps]).double()
        return self.mix(self.time(psi) + self.text(y))


class LiteralNetwork:
    """The same for one row, written with matrices instead of layers."""

    def __init__(self, network):
        self.weights = network.state_dict()

    def layer(self, name, x):
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def mlp(self, name, x):
        hidden = self.layer(f"{name}.0", x)
        return self.layer(f"{name}.2", hidden / (1.0 + torch.exp(-hidden)))

    def embed_number(self, value):
        return self.mlp("time", waves(value).double())

    def embed_text(self, pooled):
        return self.mlp("text", pooled)

    def __call__(self, timestep, pooled, extra):
        return self.layer("mix", self.embed_number(timestep) + self.embed_text(pooled) + extra)


@pytest.fixture
def network():
    return TinyNetwork()


def fusion(network, precision=EXACT):
    return GuidanceTerm(network, TINY, 0.7, 1000.0, precision)


def prompts(rows):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(2, rows, POOLED, generator=generator).double()


W = torch.tensor([0.0, 2.5, 7.0]).double()
TIMESTEPS = torch.tensor([900.0, 500.0, 100.0]).double()


@pytest.mark.parametrize(("precision", "timestep"), [(EXACT, 7300.0), (OFFICIAL_BF16, 7328.0)])
def test_it_is_the_formula(network, precision, timestep):
    (pooled, null), slow = prompts(3), LiteralNetwork(network)
    with_term = fusion(network, precision)
    term = with_term(pooled, null, torch.full((3,), 7.3).double(), torch.float64)
    with with_term.added(term):
        out = network(TIMESTEPS, pooled)
    for i in range(3):
        extra = 0.7 * slow.embed_number(timestep) * slow.embed_text(pooled[i] - null[i])
        torch.testing.assert_close(out[i], slow(float(TIMESTEPS[i]), pooled[i], extra))


class TestCalibratedGain:
    ROWS = 64

    def rms(self, x):
        return float(x.square().mean().sqrt())

    @pytest.mark.parametrize("share", [0.05, 0.25, 1.0])
    def test_the_term_has_the_share_asked_for(self, network, share):
        pooled, null = prompts(self.ROWS)
        w_B, sigma_B = torch.rand(2, self.ROWS, generator=torch.Generator().manual_seed(0)).double()
        gain = calibrated_gain(network, TINY, pooled, null, 4 * w_B, sigma_B, share=share)
        slow = LiteralNetwork(network)
        rows = range(self.ROWS)
        vec = [slow.embed_number(1000 * float(sigma_B[i])) + slow.embed_text(pooled[i]) for i in rows]
        term = [gain * slow.embed_number(4000 * float(w_B[i])) * slow.embed_text(pooled[i] - null[i]) for i in rows]
        assert self.rms(torch.stack(term)) / self.rms(torch.stack(vec)) == pytest.approx(share, rel=1e-3)
