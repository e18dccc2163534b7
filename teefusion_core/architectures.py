"""Where the guidance term goes in each family of models.

A family is a row: paths of the embedders inside the diffusion model with the constants of the method.
A new family whose modulation vector is a sum of a time embedding with a pooled-text embedding (Flux:
`time_in`, `vector_in`; SDXL: `time_embed`, `label_emb`) is a new row, without new code.

Shapes: B batch, P pooled width, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedArchitecture
from .fusion import sinusoid

PUBLISHED_GAIN = 1 / 256  # AIDC-AI/TeEFusion, pipelines/sd3_model.py; not in the paper
PUBLISHED_TIMESTEP_SCALE = 1000.0  # AIDC-AI/TeEFusion, pipelines/sd3_teefusion_pipeline.py; not in the paper


@dataclass(frozen=True)
class Architecture:
    """One family: how it is recognised, what its parts are called, which constants it was published with.

    Attributes:
        name: as the user knows the family.
        landmarks: attribute paths that all exist in the family's diffusion model.
        time_mlp: path of G, which eats the sinusoid.
        pooled_embed: path of F; the term is added to its output.
        modulation: part of the paths of the layers that turn G + F into scales with shifts.
        sinusoid_width: width of psi in front of G.
        guidance_timestep_scale: factor on w before psi.
        gain: multiplier of the term when the student names none.
        source: where the constants were read.
    """

    name: str
    landmarks: tuple[str, ...]
    time_mlp: str
    pooled_embed: str
    modulation: str
    sinusoid_width: int
    guidance_timestep_scale: float
    gain: float
    source: str

    def pooled_module(self, model: nn.Module) -> nn.Module:
        """Return F of a diffusion model of this family."""
        return _walk(model, self.pooled_embed)

    def embedders(
        self, model: nn.Module, dtype: torch.dtype
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return (time_embed, pooled_embed) of a model: G(psi(.)) on [B], F on [B,P].

        Args:
            model: diffusion model of this family.
            dtype: what the model computes in; the sinusoid itself stays float32.
        """
        time_mlp, pooled_module = _walk(model, self.time_mlp), self.pooled_module(model)
        width = self.sinusoid_width
        return lambda t_B: time_mlp(sinusoid(t_B, width).to(dtype)), lambda p_BP: pooled_module(p_BP.to(dtype))

    def widths(self, model: nn.Module) -> tuple[int, int]:
        """Return (P, D): the widths that F takes in, gives out."""
        # by attribute, since quantised layers of the host are no torch.nn.Linear
        layers: list[Any] = [layer for layer in self.pooled_module(model).modules() if hasattr(layer, "in_features")]
        return layers[0].in_features, layers[-1].out_features


def _sd3_row(name: str, *landmarks: str) -> Architecture:
    return Architecture(
        name=name,
        landmarks=("joint_blocks.0.context_block.attn.qkv", "t_embedder.mlp", *landmarks),
        time_mlp="t_embedder.mlp",
        pooled_embed="y_embedder",
        modulation="adaLN_modulation",
        sinusoid_width=256,
        guidance_timestep_scale=PUBLISHED_TIMESTEP_SCALE,
        gain=PUBLISHED_GAIN,
        source="AIDC-AI/TeEFusion, pipelines/sd3_model.py",
    )


ARCHITECTURES = (
    # the normalised queries of SD3.5 tell it from SD3, so its row comes first
    _sd3_row("SD3.5", "joint_blocks.0.x_block.attn.ln_q.weight"),
    _sd3_row("SD3"),
)


def architecture_of(model: nn.Module) -> Architecture:
    """Recognise the family of a diffusion model by its parts.

    Args:
        model: the bare diffusion model (transformer or U-Net), weights on any device.
    Returns:
        The first row of ARCHITECTURES that fits.
    Raises:
        UnsupportedArchitecture: no row fits, or the model takes no pooled text.
    """
    for row in ARCHITECTURES:
        if any(_walk(model, path) is None for path in row.landmarks):
            continue
        if row.pooled_module(model) is None:
            raise UnsupportedArchitecture(
                f"this {row.name} model takes no pooled text ({row.pooled_embed} is missing), so there is no place "
                f"for guidance; use a {row.name} model with pooled conditioning"
            )
        return row
    looked_for = "; ".join(f"{row.name}: {', '.join(row.landmarks)}" for row in ARCHITECTURES)
    raise UnsupportedArchitecture(
        f"a {type(model).__name__} model is of another family; looked for {looked_for}; load an SD3 or SD3.5 model"
    )


def _walk(module, path: str):
    """Follow a dotted path of attributes; None where it breaks off."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
