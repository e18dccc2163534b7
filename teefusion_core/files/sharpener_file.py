"""The file of a trained DICE sharpener: weights with metadata that the loader enforces."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointMismatch, InvalidConfig
from ..prompts.sharpener import Sharpener
from .student_file import described, parsed
from .tensor_file import first_shape_mismatch, read_tensors, write_tensors

FORMAT = "teefusion-sharpener/1"
METHOD = "dice"
FORMULA = "c + alpha r(c, n) - beta (n - null), first token kept"


@dataclass(frozen=True)
class SharpenerInfo:
    """What a sharpener file says of itself.

    Attributes:
        method: how guidance enters ("dice").
        width: of the text embedding that it changes.
        hidden, heads: sizes of the network inside.
        alpha: strength that it was trained at.
        alpha_min, alpha_max: strengths at which it may be used.
        teacher: the teacher in words.
        base: fingerprint of the base model; "" where it goes with several.
        step: optimizer steps trained.
        pack_version: version of this pack that wrote it.
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
        """As safetensors metadata, all strings."""
        return {"format": FORMAT, "formula": FORMULA, **described(self, self.teacher)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> "SharpenerInfo":
        """Read metadata back.

        Raises:
            CheckpointMismatch: it is not a sharpener's, incomplete, or contradicts itself.
        """
        if metadata.get("format") != FORMAT or metadata.get("method") != METHOD:
            raise CheckpointMismatch(
                f"{path.name} says format {metadata.get('format')!r} for method {metadata.get('method')!r}, a "
                f"sharpener file says {FORMAT!r} for {METHOD!r}; choose a sharpener that this pack wrote, LoRA or "
                "student files belong in their own loaders"
            )
        info = parsed(cls, metadata, path)
        if not info.alpha_min <= info.alpha <= info.alpha_max:
            raise CheckpointMismatch(
                f"{path.name} was trained at alpha {info.alpha:g}, outside of its own range {info.alpha_min:g} to "
                f"{info.alpha_max:g}; it was edited, use the original file"
            )
        return info

    def check_alpha(self, alpha: float) -> None:
        """Refuse a strength that the file does not allow.

        Raises:
            InvalidConfig: it lies outside.
        """
        if not self.alpha_min <= alpha <= self.alpha_max:
            raise InvalidConfig(
                f"alpha is {alpha:g}, this sharpener takes {self.alpha_min:g} to {self.alpha_max:g}; "
                f"choose an alpha inside, it was trained at {self.alpha:g}"
            )


def write_sharpener(path: Path, sharpener: Sharpener, info: SharpenerInfo) -> None:
    """Write a sharpener file, whole or not at all."""
    assert (info.width, info.hidden, info.heads) == (sharpener.width, sharpener.hidden, sharpener.heads)
    tensors = {name: weight.detach().contiguous() for name, weight in sharpener.state_dict().items()}
    write_tensors(path, tensors, info.metadata())


def read_sharpener(path: Path) -> tuple[Sharpener, SharpenerInfo]:
    """Read a sharpener file.

    Args:
        path: a .safetensors file.
    Returns:
        (network in float32 on the CPU, frozen; what the file says of itself).
    Raises:
        CheckpointMismatch: missing, truncated, a pickle (never opened), of another kind, or with weights that are not
            those of the network that it describes.
    """
    tensors, metadata = read_tensors(path)
    info = SharpenerInfo.from_metadata(metadata, path)
    try:
        with torch.device("meta"):  # shapes alone, before anything of the size that the file claims is made
            sharpener = Sharpener(info.width, info.hidden, info.heads)
    except InvalidConfig as error:
        raise CheckpointMismatch(f"{path.name} was edited, use the original file: {error}") from error
    if different := first_shape_mismatch(sharpener.state_dict(), tensors):
        name, wanted, found = different
        raise CheckpointMismatch(
            f"{path.name} does not hold the sharpener that it describes ({info.width} wide, {info.hidden} inside): "
            f"{name} is {found or 'missing'}, it should be {wanted or 'absent'}; "
            "it was cut or edited, use the original file"
        )
    sharpener.load_state_dict({name: weight.float() for name, weight in tensors.items()}, assign=True)
    return sharpener.requires_grad_(False), info
