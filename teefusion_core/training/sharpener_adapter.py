"""A DICE sharpener while it is trained: the student is the prompt, the network stays its base.

Shapes: B batch, L tokens of the prompt, M tokens of what it is pushed away from, W width of a token.
Source: DICE, arXiv 2502.03726; how the layers begin is ours.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..prompts.sharpener import Sharpener, sharpened
from .adapters import Update, take_over

ALPHA, ALPHA_MIN, ALPHA_MAX = 1.0, 0.0, 2.0
"""Strength in training, with the range that its file allows; in this method it plays the part of guidance."""


class Sharpening(Update):
    """An update of the prompt instead of the network, which says nothing at the start."""

    mode = "sharpener"

    def __init__(self, network: nn.Module, width: int, seed: int = 0):
        """Make a sharpener, float32 where the network is.

        Args:
            network: whose prompts are sharpened; it takes no part.
            width: W of these prompts.
            seed: of its layers; see `_begin`.
        Raises:
            InvalidConfig: a width below 1.
        """
        super().__init__(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sharpener = Sharpener(width)
            _begin(self.sharpener)
        self.sharpener.to(next(network.parameters()).device)

    def applied(self) -> AbstractContextManager[None]:
        """Change nothing of the network."""
        return nullcontext()

    def sharpened(self, context_BLW: Tensor, against_BMW: Tensor, alpha: float = ALPHA) -> Tensor:
        """Prompts [B,L,W] with guidance in them, differentiable, where the sharpener is."""
        device = self.sharpener.fc1.weight.device
        return sharpened(self.sharpener, context_BLW.to(device), against_BMW.to(device), alpha=alpha)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a sharpener file, float32 on the CPU."""
        # cloned: a moving average may stand in their place for a moment only
        return {name: weight.detach().float().cpu().clone() for name, weight in self.sharpener.state_dict().items()}

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Go through nothing, since the network stays as it is."""
        return iter(())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        take_over(dict(self.sharpener.named_parameters()), tensors)


def _begin(sharpener: Sharpener) -> None:
    """Fill the layers so that attention chooses among tokens from the start, the last one with zeros.

    The student then begins as its base, yet what it is made of differs from prompt to prompt. With torch's own start,
    which shrinks what passes, attention is even over all tokens of the empty prompt: on the demo model what enters the
    last layer differs between prompts by a part in three hundred, a hundred steps teach it next to nothing.
    """
    attention = sharpener.attention
    out = attention.to_out[0]
    assert isinstance(out, nn.Linear)
    for layer in (sharpener.fc1, attention.to_q, attention.to_k):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    for layer in (attention.to_v, out):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    nn.init.zeros_(sharpener.fc2.weight)
    for layer in (sharpener.fc1, out, sharpener.fc2):
        nn.init.zeros_(layer.bias)
