"""Where the guidance term goes in each family of models.

A family is a row: paths of the embedders inside the diffusion model with the constants of the method.
A new family whose modulation vector is a sum of a time embedding with a pooled-text embedding is a new row, without
new code. Models that take no pooled text at all have no place for the term.

Shapes: B batch, P pooled width, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitecture
from .fusion import sinusoid

PUBLISHED_GAIN = 1 / 256  # AIDC-AI/TeEFusion, pipelines/sd3_model.py; not in the paper
PUBLISHED_TIMESTEP_SCALE = 1000.0  # AIDC-AI/TeEFusion, pipelines/sd3_teefusion_pipeline.py; not in the paper

INSTEAD = "write guidance into the tokens of the prompt instead, with DICE Sharpen and a sharpener of this model"


@dataclass(frozen=True)
class Architecture:
    """One family: how it is recognised, what its parts are called, which constants it was published with.

    Attributes:
        name: as the user knows the family.
        landmarks: attribute paths that all exist in the family's diffusion model.
        time_mlp: path of G, which eats the sinusoid.
        pooled_embed: path of F; the term is added to its output.
        modulation: part of the paths of the layers that turn G + F into scales with shifts.
        guidance_embedding_scale: factor on w before psi.
        gain: multiplier of the term when the student names none.
        source: where the constants were read.
        beside_text: numbers that F takes in behind the pooled text. They are the same for prompt and null (SDXL:
            sizes), so that the difference has zeros there.
        adds_in_place: does the host's class write over tensors that a backward pass needs?
    """

    name: str
    landmarks: tuple[str, ...]
    time_mlp: str
    pooled_embed: str
    modulation: str
    guidance_embedding_scale: float
    gain: float
    source: str
    beside_text: int = 0
    adds_in_place: bool = False

    def pooled_module(self, model: nn.Module) -> nn.Module:
        """Return F of a diffusion model of this family."""
        return _module_at(model, self.pooled_embed)

    def embedders(
        self, model: nn.Module, dtype: torch.dtype
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return (time_embed, pooled_embed) of a model: G(psi(.)) on [B], F on [B,P].

        Args:
            model: diffusion model of this family.
            dtype: what the model computes in; the sinusoid itself stays float32.
        """
        time_mlp, pooled_module = _module_at(model, self.time_mlp), self.pooled_module(model)
        width, beside = self.sinusoid_width(model), self.beside_text

        def pooled_embed(p_BP: Tensor) -> Tensor:
            return pooled_module(nn.functional.pad(p_BP.to(dtype), (0, beside)))

        return lambda t_B: time_mlp(sinusoid(t_B, width).to(dtype)), pooled_embed

    def widths(self, model: nn.Module) -> tuple[int, int]:
        """Return (P, D): how wide a pooled text is, what F gives out."""
        layers = _matrices(self.pooled_module(model))
        return layers[0].in_features - self.beside_text, layers[-1].out_features

    def sinusoid_width(self, model: nn.Module) -> int:
        """Return the width of psi in front of G."""
        return _matrices(_module_at(model, self.time_mlp))[0].in_features

    def embeds(self, path: str) -> bool:
        """Tell whether a path inside the diffusion model is in one of the two embedders."""
        return any(path == part or path.startswith(f"{part}.") for part in (self.time_mlp, self.pooled_embed))


def _matrices(module: nn.Module) -> list[Any]:
    """The layers that multiply by a matrix; by attribute, since the host's quantised ones are no torch.nn.Linear."""
    return [layer for layer in module.modules() if hasattr(layer, "in_features")]


def _row(name: str, landmarks: tuple[str, ...], time_mlp: str, pooled_embed: str, modulation: str, **more: Any):
    """A family with the constants of the only student that was published, which is one of SD3-medium."""
    return Architecture(
        name=name,
        landmarks=landmarks,
        time_mlp=time_mlp,
        pooled_embed=pooled_embed,
        modulation=modulation,
        guidance_embedding_scale=PUBLISHED_TIMESTEP_SCALE,
        gain=PUBLISHED_GAIN,
        source="AIDC-AI/TeEFusion, pipelines/sd3_model.py",
        **more,
    )


_SD3 = (("joint_blocks.0.context_block.attn.qkv", "t_embedder.mlp"), "t_embedder.mlp", "y_embedder", "adaLN_modulation")
_MMDIT = ("time_in", "vector_in", "mod")
SIZES = 6 * 256  # SDXL: height, width, crop, target size, each as a sinusoid of 256

ARCHITECTURES = (
    # the normalised queries of SD3.5 tell it from SD3, so its row comes first
    _row("SD3.5", (*_SD3[0], "joint_blocks.0.x_block.attn.ln_q.weight"), *_SD3[1:]),
    _row("SD3", *_SD3),
    # the token refiner tells HunyuanVideo from Flux
    _row("HunyuanVideo", ("double_blocks.0", "txt_in.individual_token_refiner", "time_in.in_layer"), *_MMDIT,
         adds_in_place=True),
    _row("Flux", ("double_blocks.0", "txt_in.weight", "time_in.in_layer"), *_MMDIT, adds_in_place=True),
    _row("SDXL", ("input_blocks", "time_embed.0", "label_emb.0.0"), "time_embed", "label_emb", "emb_layers",
         beside_text=SIZES),
)  # fmt: skip


def family_of(model: nn.Module) -> Architecture | None:
    """Return the row whose landmarks a diffusion model has, whether or not it takes pooled text."""
    return next(
        (row for row in ARCHITECTURES if all(_module_at(model, path) is not None for path in row.landmarks)), None
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
    if row := family_of(model):
        if row.pooled_module(model) is None or row.widths(model)[0] < 1:
            raise UnsupportedArchitecture(
                f"this {type(model).__name__} model takes no pooled text at {row.pooled_embed}, so there is "
                f"no place for guidance; use a {row.name} model with pooled conditioning, or {INSTEAD}"
            )
        return row
    families = ", ".join(row.name for row in ARCHITECTURES)
    raise UnsupportedArchitecture(
        f"a {type(model).__name__} model is of another family: it has no embedder of pooled text beside one of time, "
        f"where guidance could enter; load a model of {families}, or {INSTEAD}"
    )


def _module_at(module, path: str):
    """Follow a dotted path of attributes; None where it breaks off."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
