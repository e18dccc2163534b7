"""How guidance enters a student: one vector beside its text embedding, made in one of several ways.

Shapes: B batch, P pooled width, D model width.
Sources: TeEFusion, arXiv 2507.18192, eq. 7 with the ablation of Table 3; DistillCFG, arXiv 2210.03142; DICE, arXiv
2502.03726.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fusion import guidance_term, sinusoid

TEEFUSION, GUIDANCE_ONLY, DISTILL_CFG, SPLIT, DICE = (
    "teefusion",
    "guidance only",
    "distillcfg",
    "teefusion split",
    "dice",
)


class GuidanceEmbedder(nn.Module):
    """Weights of DistillCFG: guidance embedded by layers of its own, which give nothing before training."""

    def __init__(self, sinusoid_width: int, model_width: int, seed: int = 0):
        """Make layers whose last one is zero, so that the student begins as its base."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Linear(sinusoid_width, model_width), nn.Linear(model_width, model_width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp, self.sinusoid_width = nn.Sequential(first, nn.SiLU(), last), sinusoid_width

    def forward(self, timestep_B: Tensor) -> Tensor:
        """Embed scaled guidance [B] as [B,D]."""
        return self.mlp(sinusoid(timestep_B, self.sinusoid_width))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> GuidanceEmbedder:
        """Make one from what `state_dict` gave.

        Raises:
            KeyError, RuntimeError: weights of something else.
        """
        width, sinusoid_width = weights["mlp.0.weight"].shape
        embedder = cls(sinusoid_width, width)
        embedder.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return embedder.requires_grad_(False)


@dataclass(frozen=True)
class Ingredients:
    """What a term can be made of.

    Attributes:
        pooled_BP, null_BP: pooled text of the prompt, of the empty one; [B,P] or [1,P].
        timestep_B: scaled guidance, [B] or [1].
        time_embed, pooled_embed: G(psi(.)), F of the network.
        gain: multiplier.
        embedder: layers of the student's own, where its method has them.
    """

    pooled_BP: Tensor
    null_BP: Tensor
    timestep_B: Tensor
    time_embed: Callable[[Tensor], Tensor]
    pooled_embed: Callable[[Tensor], Tensor]
    gain: float
    embedder: nn.Module | None


def _teefusion(i: Ingredients) -> Tensor:
    return guidance_term(
        i.pooled_BP, i.null_BP, i.timestep_B, time_embed=i.time_embed, pooled_embed=i.pooled_embed, gain=i.gain
    )


def _split(i: Ingredients) -> Tensor:
    return i.gain * i.time_embed(i.timestep_B) * (i.pooled_embed(i.pooled_BP) - i.pooled_embed(i.null_BP))


def _distill_cfg(i: Ingredients) -> Tensor:
    assert i.embedder is not None
    return i.gain * i.embedder(i.timestep_B)


@dataclass(frozen=True)
class Method:
    """A way to make the term.

    Attributes:
        term: what is added to the text embedding, [B,D] or [1,D].
        embeds: whether it brings layers of its own.
    """

    term: Callable[[Ingredients], Tensor]
    embeds: bool = False


METHODS: dict[str, Method] = {
    TEEFUSION: Method(_teefusion),
    GUIDANCE_ONLY: Method(lambda i: i.gain * i.time_embed(i.timestep_B)),
    DISTILL_CFG: Method(_distill_cfg, embeds=True),
    SPLIT: Method(_split),
}
"""By name, as student files have it.

teefusion: gain * G(psi(w)) * F(c - null). guidance only: gain * G(psi(w)), the ablation of the paper without the
text. distillcfg: MLP(psi(w)), new layers. Neither of these two knows a negative prompt. teefusion split is
ours: gain * G(psi(w)) * (F(c) - F(null)), where F meets nothing but texts, as it did when it was trained.
"""
TAUGHT = (*METHODS, DICE)
"""What a trainer can teach: the terms, or a sharpener of the prompt, which has one strength and needs no term."""
EMBEDDER = "guidance_embedder."
"""In front of the names of such layers in a student file."""
