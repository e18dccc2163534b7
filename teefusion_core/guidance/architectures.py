"""Table of the model families that can use the guidance term.

Each row holds the paths of the embedders in the diffusion model and the constants of the method. A family whose
modulation vector is a time embedding plus a pooled-text embedding needs a new row and no new code. Models without
pooled text cannot use the term.

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
PUBLISHED_GUIDANCE = (2.0, 14.0)
"""Range of w that the published student was trained for, as the paper gives it."""
PUBLISHED_TIMESTEP_SCALE = 1000.0  # AIDC-AI/TeEFusion, pipelines/sd3_teefusion_pipeline.py; not in the paper

CASTING = ("comfy_cast_weights", "weight_function", "bias_function")
"""Attributes of the host's layers; one that is set makes a layer cast its weights to the dtype of its input."""

INSTEAD = "train with method guidance lora, which works without it, or use DICE Sharpen with a sharpener for this model"


@dataclass(frozen=True)
class Architecture:
    """One model family.

    Attributes:
        name: of the family, for messages.
        landmarks: attribute paths that identify the family: all of them exist in its diffusion model.
        time_mlp: path of G, the MLP behind the sinusoidal embedding.
        pooled_embed: path of F; the term is added to its output.
        modulation: substring of the paths of the layers that turn G + F into scales and shifts.
        guidance_embedding_scale: factor on w before psi.
        gain: multiplier of the term if the student file sets none.
        source: of the constants.
        context_embed: end of the path of the layer that token embeddings enter first; empty if it is unknown.
        beside_text: number of inputs of F after the pooled text. They are equal for prompt and null (SDXL: sizes), so
            they are zero in the difference.
        adds_in_place: whether the host's class overwrites tensors that the backward pass needs.
    """

    name: str
    landmarks: tuple[str, ...]
    time_mlp: str
    pooled_embed: str
    modulation: str
    guidance_embedding_scale: float
    gain: float
    source: str
    context_embed: str = ""
    beside_text: int = 0
    adds_in_place: bool = False

    def pooled_module(self, model: nn.Module) -> nn.Module:
        """Return F of a diffusion model of this family, or None if it has none."""
        return _module_at(model, self.pooled_embed)

    def embedders(
        self, model: nn.Module, dtype: torch.dtype
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return (time_embed, pooled_embed): G(psi(.)), [B] -> [B,D], and F, [B,P] -> [B,D].

        Args:
            model: diffusion model of this family, weights in any dtype.
            dtype: dtype to compute in. Plain weights compute in float32 instead of float16, whose range F(c - null) can
                leave: it is up to a hundred times as large as F(c). The sinusoid itself is computed in float32.
        """
        time_mlp, pooled_module = _module_at(model, self.time_mlp), self.pooled_module(model)
        width, beside = self.sinusoid_width(model), self.beside_text

        def pooled_embed(p_BP: Tensor) -> Tensor:
            return _computed(pooled_module, nn.functional.pad(p_BP, (0, beside)), dtype)

        return lambda t_B: _computed(time_mlp, sinusoid(t_B, width), dtype), pooled_embed

    def widths(self, model: nn.Module) -> tuple[int, int]:
        """Return (P, D): the widths of the pooled text and of the output of F."""
        layers = _matrices(self.pooled_module(model))
        return layers[0].in_features - self.beside_text, layers[-1].out_features

    def context_width(self, model: nn.Module) -> int | None:
        """Return the width of token embeddings; None if it is unknown, or if the model embeds none."""
        if not self.context_embed:
            return None
        ends = (f".{self.context_embed}", self.context_embed)
        modules = (module for path, module in model.named_modules() if path == ends[1] or path.endswith(ends[0]))
        return next((layers[0].in_features for module in modules if (layers := _matrices(module))), None)

    def sinusoid_width(self, model: nn.Module) -> int:
        """Return the width of psi, the input of G."""
        return _matrices(_module_at(model, self.time_mlp))[0].in_features

    def embeds(self, path: str) -> bool:
        """Return whether a path in the diffusion model belongs to G or F."""
        return any(path == part or path.startswith(f"{part}.") for part in (self.time_mlp, self.pooled_embed))


def _matrices(module: nn.Module) -> list[Any]:
    """Return the linear layers; found by attribute, because the host's quantised layers are not torch.nn.Linear."""
    return [layer for layer in module.modules() if hasattr(layer, "in_features")]


def _computed(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the output of G or F, see `Architecture.embedders`; differentiable in the parameters."""
    if any(type(weight) is not nn.Parameter for weight in module.parameters()):
        return module(x.to(dtype))  # a class of another loader, which knows what to do with its input
    x = x.to(torch.float32 if dtype == torch.float16 else dtype)
    cast = {
        f"{path}.{name}".lstrip("."): weight.to(x.dtype)
        for path, layer in module.named_modules()
        if not any(getattr(layer, mark, None) for mark in CASTING)
        for name, weight in layer.named_parameters(recurse=False)
        if weight.is_floating_point() and weight.dtype != x.dtype
    }
    return torch.func.functional_call(module, cast, (x,)) if cast else module(x)


def _row(
    name: str, landmarks: tuple[str, ...], time_mlp: str, pooled_embed: str, context_embed: str, modulation: str,
    **more: Any,
):  # fmt: skip
    """Return a row with the constants of the only published student, which is for SD3-medium."""
    return Architecture(
        name=name, landmarks=landmarks, time_mlp=time_mlp, pooled_embed=pooled_embed,
        context_embed=context_embed, modulation=modulation,
        guidance_embedding_scale=PUBLISHED_TIMESTEP_SCALE, gain=PUBLISHED_GAIN,
        source="AIDC-AI/TeEFusion, pipelines/sd3_model.py", **more,
    )  # fmt: skip


_SD3 = (
    ("joint_blocks.0.context_block.attn.qkv", "t_embedder.mlp"),
    "t_embedder.mlp",
    "y_embedder",
    "context_embedder",
    "adaLN_modulation",
)
_MMDIT = ("time_in", "vector_in", "txt_in", "mod")
SIZES = 6 * 256  # SDXL: height, width, crop, target size, each as a sinusoid of 256

ARCHITECTURES = (
    # before SD3: only the query norm distinguishes them
    _row("SD3.5", (*_SD3[0], "joint_blocks.0.x_block.attn.ln_q.weight"), *_SD3[1:]),
    _row("SD3", *_SD3),
    # before Flux: only the token refiner distinguishes them
    _row("HunyuanVideo", ("double_blocks.0", "txt_in.individual_token_refiner", "time_in.in_layer"), *_MMDIT,
         adds_in_place=True),
    _row("Flux", ("double_blocks.0", "txt_in.weight", "time_in.in_layer"), *_MMDIT, adds_in_place=True),
    _row("SDXL", ("input_blocks", "time_embed.0", "label_emb.0.0"), "time_embed", "label_emb", "attn2.to_k",
         "emb_layers", beside_text=SIZES),
)  # fmt: skip


def family_of(model: nn.Module) -> Architecture | None:
    """Return the first row whose landmarks a diffusion model has, or None; it may still have no pooled text."""
    return next(
        (row for row in ARCHITECTURES if all(_module_at(model, path) is not None for path in row.landmarks)), None
    )


def architecture_of(model: nn.Module) -> Architecture:
    """Return the family of a diffusion model that can use the guidance term.

    Args:
        model: the diffusion model (transformer or U-Net), weights on any device.
    Returns:
        The first row of ARCHITECTURES that matches.
    Raises:
        UnsupportedArchitecture: no row matches, or the model takes no pooled text.
    """
    if row := family_of(model):
        if row.pooled_module(model) is None or row.widths(model)[0] < 1:
            raise UnsupportedArchitecture(
                f"this {type(model).__name__} model takes no pooled text at {row.pooled_embed}, which guidance needs; "
                f"load a {row.name} model with pooled text, or {INSTEAD}"
            )
        return row
    families = ", ".join(row.name for row in ARCHITECTURES)
    raise UnsupportedArchitecture(
        f"a {type(model).__name__} model is of another family: it has no embedder of pooled text next to one of time, "
        f"which guidance needs; load a model of {families}, or {INSTEAD}"
    )


def _module_at(module, path: str):
    """Return the attribute at a dotted path, or None if there is none."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
