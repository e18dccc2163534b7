"""The included demo model of the SD1.5 class: the host's UNet with noise prediction, in demo size.

It shares text encoder and VAE with the demo SD3, so its latents have 16 channels; text enters by cross-attention alone.
"""

from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch

UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 16,
    "out_channels": 16,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [2, 2],
    "transformer_depth": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "context_dim": 128,
    "legacy": False,
}


class DemoSD15(comfy.supported_models.SD15):
    """SD1.5 as the host knows it, with this network and 16 latent channels."""

    latent_format = comfy.latent_formats.SD3

    def inpaint_model(self) -> bool:
        """Return False: the host takes any UNet with more than four input channels for an inpainting model."""
        return False


def build_model(dtype: torch.dtype, manual_cast: torch.dtype | None, device: torch.device):
    """Return the host's model with new weights that are not initialised.

    Args:
        dtype: of the weights.
        manual_cast: dtype of the computation if it differs, as the host chooses it for a device.
        device: where the weights are.
    """
    config = DemoSD15(UNET_CONFIG)
    config.set_inference_dtype(dtype, manual_cast)
    return config.get_model({}, "", device=device)


def load_sd15(path: Path) -> comfy.model_patcher.ModelPatcher:
    """Return the demo model of the SD1.5 class as a stock MODEL."""
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    management = comfy.model_management
    load, offload = management.get_torch_device(), management.unet_offload_device()
    supported = DemoSD15.supported_inference_dtypes
    dtype = management.unet_dtype(model_params=comfy.utils.calculate_parameters(state), supported_dtypes=supported)
    model = build_model(dtype, management.unet_manual_cast(dtype, load, supported), offload)
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=load, offload_device=offload)
