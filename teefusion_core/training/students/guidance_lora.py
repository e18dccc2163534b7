"""A student whose guidance is the strength of its LoRA.

Each output of the LoRA is multiplied by w / w_ref, so that the student is its base at w = 0, and its file is an
ordinary LoRA. Nothing enters beside the pooled text, so it needs none.

Shapes: B batch.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import Tensor, nn

from ... import __version__
from ...files.student_file import StudentInfo
from ...guidance.architectures import family_of
from ...guidance.fusion import EXACT
from ...guidance.methods import ALPHA_PER_RANK
from ...reflection.low_rank import LowRank
from ..adapters import LORA_LAYERS, Lora
from ..gradient_checkpointing import also_recomputed
from ..settings import DistillSettings
from .student import MixedRows, Prompts, Student, StudentFile


class GuidanceLoraStudent(Student):
    """The base with a LoRA of the strength w / w_ref, which changes nothing at the start."""

    update: GuidanceLora
    no_whole_model = "a guidance lora that is merged into the model has a single guidance"

    def __init__(self, network: nn.Module, positives: Prompts, nulls: Prompts, settings: DistillSettings, **_: object):
        """Make the LoRA; the arguments are those of `FusedStudent`, but the network may be of any family.

        Raises:
            InvalidConfig: the modulation layers of this network are unknown, but are to be trained.
        """
        self.positives, self.settings = positives, settings
        layers = LORA_LAYERS[settings.trainable](network, family_of(network))
        self.update = GuidanceLora(network, settings.rank, layers=layers, seed=settings.run_seed)
        self.reference = settings.guidance_shown[1]
        """The middle of the range: strength 1 in any LoRA loader is a sensible guidance."""

    def conditioned(
        self, prompts: Sequence[int], nulls: Sequence[int], w_B: Tensor
    ) -> tuple[list, AbstractContextManager[None]]:
        """Return the prompts unchanged and a context with the strength of each row."""
        strength_B = w_B.float() / self.reference
        same = bool((strength_B == strength_B[0]).all())
        strength = partial(self.update.at_strength, strength_B[0] if same else strength_B)
        return self.positives.batch(prompts), also_recomputed(strength)

    def file(
        self, *, teacher: str, base: str, step: int, whole_model: bool = False, calibration: str = ""
    ) -> StudentFile:
        """Return the LoRA."""
        lora, settings = self.update.state(), self.settings
        info = StudentInfo(
            method=settings.method, mode=self.update.mode, guidance_min=settings.guidance_min,
            guidance_max=settings.guidance_max, gain=0.0, guidance_embedding_scale=settings.guidance_embedding_scale,
            guidance_precision=EXACT, teacher=teacher, base=base, step=step, pack_version=__version__,
            calibration=calibration, reference_guidance=self.reference, **settings.schedule_learned,
        )  # fmt: skip
        return StudentFile(lora, info, lora)


class GuidanceLora(Lora):
    """A LoRA with a strength for each row of a batch."""

    strength: Tensor | None = None
    """One for all rows [], or one for each [B]; None is strength 0."""

    @contextmanager
    def at_strength(self, strength: Tensor) -> Iterator[None]:
        """Set the strength [] or [B] inside the block."""
        before, self.strength = self.strength, strength
        try:
            yield
        finally:
            self.strength = before

    def _added(self, path: str, layer: nn.Module, inputs: tuple, out: Tensor) -> Tensor:
        x, strength = inputs[0], self.strength
        if strength is None:
            return out
        if strength.ndim and len(x) != len(strength):
            raise MixedRows(f"{path} has {len(x)} rows for a batch of {len(strength)}")
        return LowRank(layer, *self.factors(path)).added(out, x, strength)

    def state(self) -> dict[str, Tensor]:
        """Return the factors as `Lora` does, with an alpha that shows the kind of student."""
        return {name: tensor * _scale_in_file(name) for name, tensor in super().state().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that `state` returned."""
        super().load({name: tensor / _scale_in_file(name) for name, tensor in tensors.items()})


def _scale_in_file(name: str) -> float:
    """Return the factor on a tensor of the file; those of alpha and up cancel each other."""
    scales = {".alpha": ALPHA_PER_RANK, ".lora_up.weight": 1 / ALPHA_PER_RANK}
    return next((scale for end, scale in scales.items() if name.endswith(end)), 1.0)
