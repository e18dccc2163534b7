"""Families are recognised by their parts."""

import pytest
import torch
from torch import nn

from teefusion_core.errors import UnsupportedArchitecture
from teefusion_core.guidance.architectures import Architecture, architecture_of
from teefusion_core.guidance.fusion import sinusoid


def tree(**parts):
    """Build a module out of named parts."""
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def mlp(wide_in, d=6):
    return tree(mlp=nn.Sequential(nn.Linear(wide_in, d), nn.SiLU(), nn.Linear(d, d)))


class Embedder(nn.Module):
    """Stands for the host's text embedder."""

    def __init__(self, wide_in, d=6):
        super().__init__()
        self.mlp = mlp(wide_in, d).mlp

    def forward(self, x):
        return self.mlp(x)


def sd3(norm=None, y_embedder=True):
    attention = tree(qkv=nn.Linear(6, 18), ln_q=norm or nn.Identity())
    block = tree(context_block=tree(attn=attention), x_block=tree(attn=attention))
    return tree(
        joint_blocks=nn.ModuleList([block]), t_embedder=mlp(256), y_embedder=Embedder(10) if y_embedder else None
    )


def test_sd3_differs_from_sd35_by_its_normalised_queries():
    assert architecture_of(sd3()).name == "SD3"
    assert architecture_of(sd3(nn.RMSNorm(6))).name == "SD3.5"


def test_embedders_with_widths_of_a_model():
    model = sd3()
    row = architecture_of(model)
    assert row.widths(model) == (10, 6)
    time_embed, pooled_embed = row.embedders(model, torch.float32)
    t_B, p_BP = torch.tensor([4992.0, 8000.0]), torch.randn(2, 10)
    assert torch.equal(time_embed(t_B), model.t_embedder.mlp(sinusoid(t_B)))
    assert torch.equal(pooled_embed(p_BP), model.y_embedder(p_BP))


def test_a_model_without_pooled_text_is_refused():
    with pytest.raises(UnsupportedArchitecture):
        architecture_of(sd3(y_embedder=False))


def test_a_family_with_other_names_is_only_a_row():
    model = tree(time_in=nn.Linear(8, 6), vector_in=nn.Sequential(nn.Linear(10, 6)), double_blocks=nn.ModuleList())
    row = Architecture(
        name="like Flux", landmarks=("double_blocks",), time_mlp="time_in", pooled_embed="vector_in", modulation="mod",
        guidance_embedding_scale=1000.0, gain=0.1, source="test",
    )  # fmt: skip
    time_embed, pooled_embed = row.embedders(model, torch.float32)
    assert row.widths(model) == (10, 6)
    assert time_embed(torch.ones(2)).shape == pooled_embed(torch.ones(2, 10)).shape == (2, 6)
