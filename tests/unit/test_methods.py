"""Ways in which guidance enters a student."""

from dataclasses import replace

import pytest
import torch

from teefusion_core.guidance.fusion import sinusoid
from teefusion_core.guidance.methods import (
    DISTILL_CFG,
    GUIDANCE_ONLY,
    METHODS,
    SPLIT,
    TEEFUSION,
    GuidanceEmbedder,
    Ingredients,
)

WIDTH, SINUSOID, POOLED = 6, 8, 4
TIME, TEXT = torch.randn(WIDTH, SINUSOID), torch.randn(WIDTH, POOLED)


def ingredients(rows=3, gain=0.5, embedder=None):
    generator = torch.Generator().manual_seed(1)
    return Ingredients(
        pooled_BP=torch.randn(rows, POOLED, generator=generator), null_BP=torch.randn(1, POOLED, generator=generator),
        timestep_B=1000.0 * (1 + torch.arange(rows)), time_embed=lambda t_B: sinusoid(t_B, SINUSOID) @ TIME.T,
        pooled_embed=lambda p_BP: p_BP @ TEXT.T, gain=gain, embedder=embedder,
    )  # fmt: skip


@pytest.fixture
def embedder():
    made = GuidanceEmbedder(SINUSOID, WIDTH, seed=3)
    with torch.no_grad():
        made.mlp[2].weight.normal_(generator=torch.Generator().manual_seed(4))
    return made


def test_terms_with_the_layers_of_the_base():
    """TeEFusion embeds the difference of the texts, split each text; guidance only leaves the text out."""
    i = replace(ingredients(), pooled_embed=lambda p_BP: (p_BP @ TEXT.T).sin())
    G = torch.stack([0.5 * (TIME @ sinusoid(t[None], SINUSOID)[0]) for t in i.timestep_B])
    difference = torch.stack([(TEXT @ (p - i.null_BP[0])).sin() for p in i.pooled_BP])
    apart = torch.stack([(TEXT @ p).sin() - (TEXT @ i.null_BP[0]).sin() for p in i.pooled_BP])
    for method, expected in ((TEEFUSION, G * difference), (SPLIT, G * apart), (GUIDANCE_ONLY, G)):
        torch.testing.assert_close(METHODS[method].term(i), expected)


def test_distillcfg_has_layers_of_its_own(embedder):
    i = ingredients(embedder=embedder)
    first, last = embedder.mlp[0], embedder.mlp[2]
    for t, row in zip(i.timestep_B, METHODS[DISTILL_CFG].term(i), strict=True):
        hidden = torch.nn.functional.silu(first.weight @ sinusoid(t[None], SINUSOID)[0] + first.bias)
        torch.testing.assert_close(row, 0.5 * (last.weight @ hidden + last.bias))


def test_before_training_distillcfg_is_its_base():
    assert not METHODS[DISTILL_CFG].term(ingredients(embedder=GuidanceEmbedder(SINUSOID, WIDTH))).any()


def test_layers_read_back_are_the_same(embedder):
    again = GuidanceEmbedder.of(embedder.state_dict())
    assert torch.equal(again(torch.tensor([5.0])), embedder(torch.tensor([5.0])))
    assert not any(weight.requires_grad for weight in again.parameters())
