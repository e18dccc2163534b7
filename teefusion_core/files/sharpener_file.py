"""The file of a trained DICE sharpener: weights with metadata that the loader enforces."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointMismatch, InvalidConfig
from ..guidance.methods import DICE
from ..prompts.sharpener import Sharpener
from .student_file import described, parsed
from .tensor_file import check_finite, first_shape_mismatch, read_tensors, write_tensors

FORMAT = "teefusion-sharpener/1"
FORMULA = "c + alpha r(c, n) - beta (n - null), first token kept"


@dataclass(frozen=True)
class SharpenerInfo:
    """The metadata of a sharpener file.

    Attributes:
        method: how guidance enters ("dice").
        width: width of the text embedding that it changes.
        hidden, heads: hidden width and number of attention heads of its network.
        alpha: strength that it was trained at.
        alpha_min, alpha_max: range of strengths that it may be used at.
        teacher: description of the teacher.
        base: fingerprint of the base model; "" if it works with several.
        step: number of optimizer steps trained.
        pack_version: version of this pack that wrote the file.
    """

    method: str
    width: int
    hidden: int
    heads: int
    alpha: float
    alpha_min: float
    alpha_max: float
    teacher: str
    base: str
    step: int
    pack_version: str

    def metadata(self) -> dict[str, str]:
        """Return safetensors metadata, all strings."""
        return {"format": FORMAT, "formula": FORMULA, **described(self, self.teacher)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> "SharpenerInfo":
        """Read metadata back.

        Raises:
            CheckpointMismatch: it is not a sharpener's, it is incomplete, or it contradicts itself.
        """
        if metadata.get("format") != FORMAT or metadata.get("method") != DICE:
            raise CheckpointMismatch(
                f"{path.name} has format {metadata.get('format')!r} and method {metadata.get('method')!r}, but a "
                f"sharpener file has {FORMAT!r} and {DICE!r}; choose a sharpener that this pack wrote. LoRA files "
                "and student files have their own loaders"
            )
        info = parsed(cls, metadata, path)
        if not info.alpha_min <= info.alpha <= info.alpha_max:
            raise CheckpointMismatch(
                f"{path.name} was trained at alpha {info.alpha:g}, outside of its own range {info.alpha_min:g} to "
                f"{info.alpha_max:g}, so it was edited; use the original file"
            )
        return info

    def check_alpha(self, alpha: float) -> None:
        """Refuse a strength that the file does not allow.

        Raises:
            InvalidConfig: alpha is outside of the range of the file.
        """
        if not self.alpha_min <= alpha <= self.alpha_max:
            raise InvalidConfig(
                f"alpha is {alpha:g}, but this sharpener allows {self.alpha_min:g} to {self.alpha_max:g}; "
                f"choose an alpha in this range (it was trained at {self.alpha:g})"
            )


def write_sharpener(path: Path, sharpener: Sharpener, info: SharpenerInfo) -> None:
    """Write a sharpener file atomically."""
    assert (info.width, info.hidden, info.heads) == (sharpener.width, sharpener.hidden, sharpener.heads)
    tensors = {name: weight.detach().contiguous() for name, weight in sharpener.state_dict().items()}
    write_tensors(path, tensors, info.metadata())


def read_sharpener(path: Path) -> tuple[Sharpener, SharpenerInfo]:
    """Read a sharpener file.

    Args:
        path: a .safetensors file.
    Returns:
        (frozen network in float32 on the CPU, metadata of the file).
    Raises:
        CheckpointMismatch: the file is missing, truncated, a pickle (never opened) or of another kind, or its weights
            do not fit its metadata.
    """
    tensors, metadata = read_tensors(path)
    info = SharpenerInfo.from_metadata(metadata, path)
    try:
        with torch.device("meta"):  # shapes only, before memory of the size that the file claims is allocated
            sharpener = Sharpener(info.width, info.hidden, info.heads)
    except InvalidConfig as error:
        raise CheckpointMismatch(f"{path.name} was edited ({error}); use the original file") from error
    if different := first_shape_mismatch(sharpener.state_dict(), tensors):
        name, wanted, found = different
        raise CheckpointMismatch(
            f"{path.name} does not contain the sharpener of its metadata (width {info.width}, hidden {info.hidden}): "
            f"{name} is {found or 'missing'}, but it should be {wanted or 'absent'}; "
            "the file was cut or edited, so use the original"
        )
    check_finite(tensors, path)
    # copies, because Windows cannot replace a mapped file, as a training under the same name does
    copies = {name: weight.to(torch.float32, copy=True) for name, weight in tensors.items()}
    sharpener.load_state_dict(copies, assign=True)
    return sharpener.requires_grad_(False), info
