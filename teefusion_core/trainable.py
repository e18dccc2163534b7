"""Low-rank updates of a frozen network.

Shapes: O output width, I input width, R rank.
Source: LoRA, arXiv 2106.09685; the keys of `state` are those that ComfyUI's LoRA loaders read.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .errors import InvalidConfig


class Lora(nn.Module):
    """A trainable update scale * up @ down for every matrix it is given, zero at the start."""

    def __init__(self, weights: Mapping[str, Tensor], rank: int, *, alpha: float | None = None, seed: int = 0):
        """Make the factors.

        Args:
            weights: matrices [O,I] by parameter name ("a.b.weight"); others are left alone. They stay frozen.
            rank: R, 1 or more; matrices smaller than R use their own width.
            alpha: scale times R; None means scale 1.
            seed: of the random `down` factors.
        Raises:
            InvalidConfig: rank below 1, or no matrix among the weights.
        """
        super().__init__()
        self.base = {name: weight.detach() for name, weight in weights.items() if weight.ndim == 2}
        if rank < 1 or not self.base:
            raise InvalidConfig(f"rank is {rank} for {len(self.base)} matrices; give a rank of 1 or more and a network")
        self.alpha = float(rank if alpha is None else alpha)
        self.rank = rank
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, weight_OI in self.base.items():
            outputs, inputs = weight_OI.shape
            r = min(rank, outputs, inputs)
            down_RI = torch.randn(r, inputs, generator=generator) / inputs**0.5
            self.down[_key(name)] = nn.Parameter(down_RI.to(weight_OI.device))
            self.up[_key(name)] = nn.Parameter(torch.zeros(outputs, r, device=weight_OI.device))

    def merged(self) -> dict[str, Tensor]:
        """Return base + update by parameter name, differentiable in the factors."""
        scale = self.alpha / self.rank
        return {n: w + scale * (self.up[_key(n)] @ self.down[_key(n)]) for n, w in self.base.items()}

    def state(self, prefix: str = "diffusion_model.") -> dict[str, Tensor]:
        """Return the factors under ComfyUI's names, float16 on the CPU."""
        tensors = {}
        for name in self.base:
            path = prefix + name.removesuffix(".weight")
            down, up = self.down[_key(name)], self.up[_key(name)]
            # the loader divides alpha by the rank of the file, which is smaller for a narrow matrix
            tensors[f"{path}.alpha"] = torch.tensor(self.alpha / self.rank * len(down))
            tensors[f"{path}.lora_down.weight"] = down.detach().half().cpu().contiguous()
            tensors[f"{path}.lora_up.weight"] = up.detach().half().cpu().contiguous()
        return tensors

    def load(self, tensors: Mapping[str, Tensor], prefix: str = "diffusion_model.") -> None:
        """Take over the factors of a file that `state` made, of the same rank and network."""
        with torch.no_grad():
            for name in self.base:
                path = prefix + name.removesuffix(".weight")
                self.down[_key(name)].copy_(tensors[f"{path}.lora_down.weight"])
                self.up[_key(name)].copy_(tensors[f"{path}.lora_up.weight"])


def _key(name: str) -> str:
    """A parameter name without dots, which a ParameterDict cannot hold."""
    return name.replace(".", "/")
