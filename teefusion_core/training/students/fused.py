"""A student whose network gets a guidance term beside its pooled text.

Shapes: B batch, P pooled width, D model width.
Source: TeEFusion, arXiv 2507.18192, eq. 7; the other terms of `METHODS` enter at the same place.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ... import __version__
from ...files.student_file import FULL, StudentInfo
from ...guidance.add_to_output import add_to_output
from ...guidance.architectures import Architecture, architecture_of
from ...guidance.fusion import EXACT, guidance_timestep
from ...guidance.methods import EMBEDDER, METHODS, TEEFUSION, GuidanceEmbedder, Ingredients
from ..adapters import TRAINABLE
from ..settings import DistillSettings
from .student import Prompts, Student, StudentFile

CALIBRATION_ROWS = 256


class FusedStudent(Student):
    """The base with an update and a guidance term, both zero or weak at the start."""

    def __init__(
        self,
        network: nn.Module,
        positives: Prompts,
        nulls: Prompts,
        settings: DistillSettings,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Make the update; the network itself is not changed.

        Args:
            network: the diffusion model, on its device.
            positives, nulls: encoded prompts; the empty prompt is the first of `nulls`.
            settings: settings of the distillation.
            device, dtype: device and dtype that the network computes with.
        Raises:
            UnsupportedArchitecture: the network has no embedder of pooled text.
        """
        self.positives, self.nulls, self.settings, self.device, self.dtype = positives, nulls, settings, device, dtype
        architecture = architecture_of(network)
        self.update = TRAINABLE[settings.trainable](network, architecture, settings.rank, settings.run_seed)
        gain = architecture.gain
        if METHODS[settings.method].embeds:
            waves, (_, width) = architecture.sinusoid_width(network), architecture.widths(network)
            self.update.embedder, gain = GuidanceEmbedder(waves, width, settings.run_seed).to(device), 1.0
        elif settings.initial_gain_ratio:
            gain = self._calibrated_gain(network, architecture)
        scale, precision = settings.guidance_embedding_scale, settings.guidance_precision
        self.term = GuidanceTerm(network, architecture, gain, scale, precision, settings.method, self.update.embedder)

    def _calibrated_gain(self, network: nn.Module, architecture: Architecture) -> float:
        settings, rows = self.settings, min(CALIBRATION_ROWS, len(self.positives))
        evenly = torch.linspace(0, 1, rows, device=self.device)
        w_B = settings.guidance_min + (settings.guidance_max - settings.guidance_min) * evenly
        pooled_BP, null_1P = self._pooled(self.positives, range(rows)), self._pooled(self.nulls, [0])
        return calibrated_gain(
            network, architecture, pooled_BP, null_1P, w_B, evenly.flip(0), share=settings.initial_gain_ratio,
            method=settings.method,
        )  # fmt: skip

    def _pooled(self, prompts: Prompts, numbers: Sequence[int]) -> Tensor:
        return prompts.pooled(numbers).to(self.device, torch.float32)

    def conditioned(
        self, prompts: Sequence[int], nulls: Sequence[int], w_B: Tensor
    ) -> tuple[list, AbstractContextManager[None]]:
        """Return the prompts unchanged and a context that adds the guidance term."""
        pooled_BP, null_BP = self._pooled(self.positives, prompts), self._pooled(self.nulls, nulls)
        return self.positives.batch(prompts), self.term.added(self.term(pooled_BP, null_BP, w_B, self.dtype))

    def file(
        self, *, teacher: str, base: str, step: int, whole_model: bool = False, calibration: str = ""
    ) -> StudentFile:
        """Return the update or all weights, and the additional layers of the method."""
        lora = self.update.state()
        weights = {} if self.update.embedder is None else self.update.embedder.state_dict()
        layers = {f"{EMBEDDER}{name}": weight.detach().float().cpu().clone() for name, weight in weights.items()}
        info = StudentInfo(
            method=self.settings.method, mode=FULL if whole_model else self.update.mode,
            guidance_min=self.settings.guidance_min, guidance_max=self.settings.guidance_max, gain=self.term.gain,
            guidance_embedding_scale=self.term.scale, guidance_precision=self.term.precision, teacher=teacher,
            base=base, step=step, pack_version=__version__, calibration=calibration, **self.settings.schedule_learned,
        )  # fmt: skip
        return StudentFile((self.update.merged() if whole_model else lora) | layers, info, lora)


@dataclass(frozen=True)
class GuidanceTerm:
    """The guidance term, computed with the current weights of the network.

    Attributes:
        network: the diffusion model.
        architecture: its family.
        gain, scale, precision: constants of the term, as in `fusion`.
        method: a name in METHODS.
        embedder: additional layers, if the method has them.
    """

    network: nn.Module
    architecture: Architecture
    gain: float
    scale: float
    precision: str
    method: str = TEEFUSION
    embedder: nn.Module | None = None

    def __call__(self, pooled_BP: Tensor, null_BP: Tensor, w_B: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the guidance term [B,D], differentiable.

        Args:
            dtype: dtype that the network computes in.
        """
        time_embed, pooled_embed = self.architecture.embedders(self.network, dtype)
        timestep_B = guidance_timestep(w_B, precision=self.precision, scale=self.scale)
        return METHODS[self.method].term(
            Ingredients(pooled_BP, null_BP, timestep_B, time_embed, pooled_embed, self.gain, self.embedder)
        )

    def added(self, term_BD: Tensor) -> AbstractContextManager[None]:
        """Add a term to the embedded pooled text inside the block."""
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

    With the published 1/256 the term of a small base is too weak to have an effect in training.

    Args:
        pooled_BP, null_BP: pooled text of typical prompts and of the empty prompt.
        w_B, sigma_B: typical guidance and noise levels.
        share: target of rms(term) / rms(G(psi(t)) + F(c)), e.g. 0.25.
        method: a name in METHODS, of a method without additional layers.
    """
    dtype = pooled_BP.dtype
    time_embed, pooled_embed = architecture.embedders(network, dtype)
    vec_BD = time_embed(sigma_B * 1000) + pooled_embed(pooled_BP)
    term = GuidanceTerm(network, architecture, 1.0, architecture.guidance_embedding_scale, EXACT, method)
    term_BD = term(pooled_BP, null_BP, w_B, dtype)
    return share * float(vec_BD.square().mean().sqrt() / term_BD.square().mean().sqrt())
