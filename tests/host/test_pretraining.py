"""Pre-training of the demo models: both losses measure the same, and a resumed run equals one that was not stopped."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lab.demo_world import pretrain
from lab.demo_world.networks import NETWORKS, noise_loss, velocity_loss

from .reflection_parts import randn

GUESS = randn(0, 1, 16, 8, 8)


class FlowGuess(nn.Module):
    """Predicts the velocity that leads to one image, whatever it sees."""

    def forward(self, x, timestep_B, pooled, context):
        return (x - GUESS) / (timestep_B / 1000).view(-1, 1, 1, 1)


class NoiseGuess(nn.Module):
    """The same as a prediction of the noise."""

    def __init__(self, sigmas):
        super().__init__()
        self.sigmas = sigmas

    def forward(self, x, timestep_B, context):
        s = self.sigmas[timestep_B.long()].view(-1, 1, 1, 1)
        return (x * (1 + s.square()).sqrt() - GUESS) / s


def test_both_losses_are_one_number_for_the_same_prediction(host):
    latent, text = randn(1, 64, 16, 8, 8), (randn(2, 64, 24, 128), randn(3, 64, 128))
    sigmas = host.comfy.model_sampling.ModelSamplingDiscrete().sigmas
    losses = [
        loss(network, latent, *text, torch.Generator().manual_seed(4))
        for loss, network in ((velocity_loss, FlowGuess()), (noise_loss, NoiseGuess(sigmas)))
    ]
    # the noise levels of SD1.5 are a thousand steps, and the smallest flow levels lie below them
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_resumed_run_equals_one_that_was_not_stopped(host, name, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "RUNS", tmp_path)
    kind = replace(NETWORKS[name], muon_from=1, folder="")
    latent, text = randn(1, 4, 16, 8, 8), (randn(2, 4, 24, 128), randn(3, 4, 128))

    def fresh():
        torch.manual_seed(0)
        return pretrain.Run(kind.build(128, 128), kind, 1e-3)

    def train(run, steps):
        for _ in range(steps):
            loss = kind.loss(run.network, latent, *text, torch.Generator().manual_seed(run.step))
            run.update(loss, 1e-3, 0.9)
        return run

    whole = train(fresh(), 4)
    train(fresh(), 2).save()
    resumed = fresh()
    resumed.resume()
    train(resumed, 2)
    for tensors in ("average", "network"):
        one, other = (getattr(run, tensors) for run in (whole, resumed))
        one, other = (part if isinstance(part, dict) else part.state_dict() for part in (one, other))
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), key
