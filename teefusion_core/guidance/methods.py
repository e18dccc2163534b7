"""Table of the methods that compute a guidance term.

Shapes: B batch, P pooled width, D model width.
Sources: TeEFusion, arXiv 2507.18192, eq. 7 and Table 3; DistillCFG, arXiv 2210.03142; DICE, arXiv 2502.03726.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fusion import guidance_term, sinusoid

TEEFUSION, GUIDANCE_ONLY, DISTILL_CFG, SPLIT, GUIDANCE_LORA, DICE = (
    "teefusion",
    "guidance only",
    "distillcfg",
    "teefusion split",
    "guidance lora",
    "dice",
)


USE_NULL = (TEEFUSION, SPLIT)
"""Methods with a term that depends on the empty or negative prompt."""


class GuidanceEmbedder(nn.Module):
    """Guidance embedding of DistillCFG: new layers whose output is zero before training."""

    def __init__(self, sinusoid_width: int, model_width: int, seed: int = 0):
        """Initialise with a zero last layer, so that the untrained student equals its base."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Linear(sinusoid_width, model_width), nn.Linear(model_width, model_width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp, self.sinusoid_width = nn.Sequential(first, nn.SiLU(), last), sinusoid_width

    def forward(self, timestep_B: Tensor) -> Tensor:
        """Return the embedding [B,D] of scaled guidance [B]."""
        return self.mlp(sinusoid(timestep_B, self.sinusoid_width))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> GuidanceEmbedder:
        """Restore an embedder from its `state_dict`.

        Raises:
            KeyError, RuntimeError: the weights are not those of a GuidanceEmbedder.
        """
        width, sinusoid_width = weights["mlp.0.weight"].shape
        embedder = cls(sinusoid_width, width)
        embedder.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return embedder.requires_grad_(False)


@dataclass(frozen=True)
class Ingredients:
    """Inputs of a guidance term.

    Attributes:
        pooled_BP, null_BP: pooled text of the prompt and of the empty prompt, [B,P] or [1,P].
        timestep_B: scaled guidance, [B] or [1].
        time_embed, pooled_embed: G(psi(.)) and F of the network.
        gain: multiplier of the term.
        embedder: layers that the method adds, or None.
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
    """A method to compute the guidance term.

    Attributes:
        term: returns what is added to the text embedding, [B,D] or [1,D].
        embeds: whether the method adds a GuidanceEmbedder to the student.
    """

    term: Callable[[Ingredients], Tensor]
    embeds: bool = False


METHODS: dict[str, Method] = {
    TEEFUSION: Method(_teefusion),
    GUIDANCE_ONLY: Method(lambda i: i.gain * i.time_embed(i.timestep_B)),
    DISTILL_CFG: Method(_distill_cfg, embeds=True),
    SPLIT: Method(_split),
}
"""Name in student files -> method.

teefusion: gain * G(psi(w)) * F(c - null). guidance only: gain * G(psi(w)), the ablation of the paper. distillcfg:
MLP(psi(w)) with new layers. The last two ignore the negative prompt. teefusion split (ours): gain * G(psi(w)) * (F(c) -
F(null)), in which F sees only texts, as in its training, and no differences of texts.
"""
LOADABLE = (*METHODS, GUIDANCE_LORA)
"""Methods of student files: those with a term, and the LoRA whose strength is the guidance."""
TAUGHT = (*METHODS, DICE, GUIDANCE_LORA)
"""Methods that can be trained, in the frozen order of the node: those of student files, and the DICE sharpener."""
ALPHA_PER_RANK = 2.0
"""Alpha over rank in the file of a guidance LoRA. Other students have 1, so that a LoRA loader's patches tell which of
them may be there: a guidance LoRA works in a LoRA loader, other students do not.
"""
EMBEDDER = "guidance_embedder."
"""Prefix of the weights of a GuidanceEmbedder in a student file."""
