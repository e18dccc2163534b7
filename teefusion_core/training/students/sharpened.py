"""A student that changes its prompts with a DICE sharpener and keeps the network of its base.

Shapes: B batch, L tokens of the prompt, M tokens of the prompt that guidance leads away from, W width of a token.
Source: DICE, arXiv 2502.03726; the initialisation is ours.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ... import __version__
from ...files.sharpener_file import SharpenerInfo
from ...guidance.methods import DICE
from ...prompts.sharpener import HEADS, HIDDEN, Sharpener, sharpened
from ..settings import DistillSettings
from ..update import Update, copy_into
from .student import Prompts, Student, StudentFile

ALPHA, ALPHA_MIN, ALPHA_MAX = 1.0, 0.0, 2.0
"""Strength in training, and the range that the file allows; alpha is w / (w in training)."""


class SharpenedStudent(Student):
    """The base with a sharpener of its prompts, which changes nothing at the start."""

    update: "Sharpening"
    changes_model = False
    has_range = False
    one_w_per_batch = True
    no_whole_model = "a sharpener (method dice) does not change the model"

    def __init__(self, network: nn.Module, positives: Prompts, nulls: Prompts, settings: DistillSettings, **_: object):
        """Make the sharpener; the arguments are those of `FusedStudent`."""
        self.positives, self.nulls, self.settings = positives, nulls, settings
        self.update = Sharpening(network, positives.batch([0])[0][0].shape[-1], settings.run_seed)

    @property
    def w(self) -> float:
        """The guidance of the teacher, which alpha 1 stands for."""
        return self.settings.guidance_max

    def conditioned(
        self, prompts: Sequence[int], nulls: Sequence[int], w_B: Tensor
    ) -> tuple[list, AbstractContextManager[None]]:
        """Return sharpened prompts; the network is not changed."""
        [(context_BLW, extras)], [(null_BMW, _)] = self.positives.batch(prompts), self.nulls.batch(nulls)
        alpha = ALPHA * float(w_B[0] / self.w)
        return [[self.update.sharpened(context_BLW, null_BMW, alpha), extras]], nullcontext()

    def kind(self, prompt: int, null: int) -> Hashable:
        """Return the kinds of both prompts, because the sharpener reads both."""
        return self.positives.kind(prompt), self.nulls.kind(null)

    def strengths_to_preview(self) -> list[tuple[str, float]]:
        """Return no, half and full strength."""
        return [(f"alpha {alpha:g}", self.w * alpha / ALPHA) for alpha in (ALPHA_MIN, ALPHA / 2, ALPHA)]

    def file(
        self, *, teacher: str, base: str, step: int, whole_model: bool = False, calibration: str = ""
    ) -> StudentFile:
        """Return the sharpener; there is nothing for a LoRA loader."""
        sharpener = self.update.sharpener
        info = SharpenerInfo(
            method=DICE, width=sharpener.width, hidden=sharpener.hidden, heads=sharpener.heads, alpha=ALPHA,
            alpha_min=ALPHA_MIN, alpha_max=ALPHA_MAX, teacher=f"{teacher}, w {self.w:g}", base=base,
            step=step, pack_version=__version__,
        )  # fmt: skip
        return StudentFile(self.update.state(), info, {})


class Sharpening(Update):
    """An update of the prompts instead of the network, zero at the start."""

    mode = "sharpener"

    def __init__(self, network: nn.Module, width: int, seed: int = 0):
        """Make a sharpener, float32 on the device of the network; for narrow tokens it is narrower than in the paper.

        Args:
            network: the network that reads the prompts; it is not changed.
            width: token width W of these prompts.
            seed: seed of the initial weights.
        Raises:
            InvalidConfig: width is below 1.
        """
        super().__init__(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # at most twice as wide as a token, in a multiple of the heads
            self.sharpener = Sharpener(width, min(HIDDEN, HEADS * max(1, 2 * width // HEADS)))
            _initialise(self.sharpener)
        self.sharpener.to(next(network.parameters()).device)

    def applied(self) -> AbstractContextManager[None]:
        """Leave the network unchanged."""
        return nullcontext()

    def sharpened(self, context_BLW: Tensor, against_BMW: Tensor, alpha: float = ALPHA) -> Tensor:
        """Return prompts [B,L,W] with guidance in them, differentiable, on the device of the sharpener."""
        device = self.sharpener.fc1.weight.device
        return sharpened(self.sharpener, context_BLW.to(device), against_BMW.to(device), alpha=alpha)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a sharpener file, float32 on the CPU."""
        # cloned, because the moving average replaces these weights only temporarily
        return {name: weight.detach().float().cpu().clone() for name, weight in self.sharpener.state_dict().items()}

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Return nothing, as the network is not changed."""
        return iter(())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that `state` returned."""
        copy_into(dict(self.sharpener.named_parameters()), tensors)


def _initialise(sharpener: Sharpener) -> None:
    """Initialise attention so that it selects tokens from the start, and the last layer with zeros.

    The student then starts as its base. With torch's default initialisation attention is uniform over all tokens of
    the empty prompt: on the demo model the input of the last layer then differs between prompts by a third of a
    percent, and the sharpener learns almost nothing in a hundred steps.
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
