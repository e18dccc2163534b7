"""The host's model as a velocity field that can be trained.

Shapes: B rows, C H W latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor, nn

from ...guidance.architectures import family_of
from ...guidance.flow import velocity_of
from ...guidance.methods import DICE
from ...training.gradient_checkpointing import checkpointed
from ...training.out_of_place import out_of_place
from ..weights import compute_dtype

PIXELS = 8
"""Pixels per latent cell along an axis, if the host does not define it."""


class Network:
    """A MODEL, loaded completely on its device, with weights that autograd can use."""

    def __init__(self, model):
        """Load the model."""
        self.model, self.device = model, model.load_device
        self.load()

    @property
    def base(self):
        """The host's model around the diffusion model."""
        return self.model.model

    @property
    def module(self) -> nn.Module:
        """The diffusion model itself."""
        return self.base.diffusion_model

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return compute_dtype(self.base)

    def load(self) -> None:
        """Load the model again, after the host may have moved it."""
        comfy.model_management.load_models_gpu([self.model], force_full_load=True)
        make_differentiable(self.module)

    def velocity(self, x_BCHW: Tensor, sigma_B: Tensor, positive: list) -> Tensor:
        """Predict the velocity at one CONDITIONING entry, without CFG.

        Args:
            x_BCHW: noised latent in the model's own space.
            sigma_B: noise levels.
            positive: CONDITIONING whose rows are those of x.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        conds = comfy.sampler_helpers.convert_cond(positive)
        encode = comfy.samplers.encode_model_conds
        encoded = encode(self.base.extra_conds, conds, x_BCHW, self.device, "positive")[0]["model_conds"]
        given = {
            name: cond.process_cond(batch_size=len(x_BCHW), area=None, device=self.device).cond
            for name, cond in encoded.items()
        }
        options = self.model.model_options.get("transformer_options", {}).copy()
        options |= {"cond_or_uncond": [0], "sigmas": sigma_B}  # which attention patches read
        denoised = self.base.apply_model(x_BCHW, sigma_B, **given, transformer_options=options)
        return velocity_of(denoised, x_BCHW, sigma_B)

    @contextmanager
    def in_training(self, *, gradient_checkpointing: bool) -> Iterator[None]:
        """Make every operation of the network differentiable inside the block."""
        family = family_of(self.module)
        with ExitStack() as stack:
            stack.enter_context(_host_in_training())
            if family is not None and family.adds_in_place:
                stack.enter_context(out_of_place(self.module))
            if gradient_checkpointing:
                stack.enter_context(checkpointed(self.module))
            yield


@contextmanager
def _host_in_training() -> Iterator[None]:
    """Set the training flag of hosts newer than 0.3.75, because some of their fused kernels have no gradient."""
    if not hasattr(comfy.model_management, "in_training"):
        yield
        return
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def make_differentiable(network: nn.Module) -> None:
    """Replace weights that a loader made in inference mode, which autograd cannot save, by equal ones.

    They are replaced one at a time, so that no second copy of the model is ever held.
    """
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_inference():
                setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
            else:
                parameter.requires_grad_(False)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_inference():
                module.register_buffer(name, buffer.clone(), persistent=name not in module._non_persistent_buffers_set)


def prompt_dtype(model, method: str) -> torch.dtype | None:
    """Return the dtype in which the tokens of encoded prompts need half the memory, or None to keep theirs.

    The host rounds them to the dtype in which the model computes, so nothing changes. A sharpener reads them before.
    """
    dtype = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16) and method != DICE else None


def latent_shape(model, width: int, height: int) -> tuple[int, ...]:
    """Return [C,H,W] of the latent of an image, given its size in pixels; [C,1,H,W] for models of videos."""
    latent_format = model.model.latent_format
    ratio = getattr(latent_format, "spacial_downscale_ratio", PIXELS)
    frames = (1,) if latent_format.latent_dimensions == 3 else ()
    return latent_format.latent_channels, *frames, height // ratio, width // ratio
