"""The guidance term of a student that is still being trained.

Shapes: B batch, P pooled width, D model width.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..guidance.add_to_output import add_to_output
from ..guidance.architectures import Architecture
from ..guidance.fusion import EXACT, guidance_timestep
from ..guidance.methods import METHODS, TEEFUSION, Ingredients


@dataclass(frozen=True)
class Fusion:
    """The term with what it is made of: the weights that the network has at the time.

    Attributes:
        network: the diffusion model.
        architecture: its family.
        gain, scale, precision: constants of the term, as in `fusion`.
        method: how the term is made, a name in METHODS.
        embedder: layers of its own, where the method has them.
    """

    network: nn.Module
    architecture: Architecture
    gain: float
    scale: float
    precision: str
    method: str = TEEFUSION
    embedder: nn.Module | None = None

    def term(self, pooled_BP: Tensor, null_BP: Tensor, w_B: Tensor, dtype: torch.dtype) -> Tensor:
        """The guidance term [B,D], differentiable.

        Args:
            dtype: what the network computes in.
        """
        time_embed, pooled_embed = self.architecture.embedders(self.network, dtype)
        timestep_B = guidance_timestep(w_B, precision=self.precision, scale=self.scale)
        return METHODS[self.method].term(
            Ingredients(pooled_BP, null_BP, timestep_B, time_embed, pooled_embed, self.gain, self.embedder)
        )

    def added(self, term_BD: Tensor) -> AbstractContextManager[None]:
        """Add a term to the pooled text inside the block."""
        return add_to_output(self.network, self.architecture.pooled_embed, term_BD)


@torch.no_grad()
def calibrated_gain(
    network: nn.Module,
    architecture: Architecture,
    pooled_BP,
    null_BP,
    w_B,
    sigma_B,
    *,
    share: float,
    method: str = TEEFUSION,
) -> float:
    """Choose the gain at which the term is `share` of the modulation vector, in root mean square.

    With the published 1/256 the term of a small base is too weak to be heard over its training.

    Args:
        pooled_BP, null_BP: pooled text of typical prompts with that of the empty prompt.
        w_B, sigma_B: typical guidance and noise levels.
        share: wanted rms(term) / rms(G(psi(t)) + F(c)), e.g. 0.25.
        method: how the term is made, without layers of its own.
    """
    dtype = pooled_BP.dtype
    time_embed, pooled_embed = architecture.embedders(network, dtype)
    vec_BD = time_embed(sigma_B * 1000) + pooled_embed(pooled_BP)
    fusion = Fusion(network, architecture, 1.0, architecture.guidance_embedding_scale, EXACT, method)
    term_BD = fusion.term(pooled_BP, null_BP, w_B, dtype)
    return share * float(vec_BD.square().mean().sqrt() / term_BD.square().mean().sqrt())
