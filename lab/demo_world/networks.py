"""The two networks that are pre-trained, the host's own, with their initialisation and their loss.

Shapes: B batch, C=16 latent channels, H W latent size (8), L tokens, D text width, P pooled width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

DEPTH = 4
GRID = 16
LOGIT_MEAN, LOGIT_STD = 0.7, 1.2
"""Mean of the noise level's logit; high noise decides how many objects there are, and where."""
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""(network, latent [B,C,H,W], context [B,L,D], pooled [B,P], generator) -> loss."""


@dataclass(frozen=True)
class Trained:
    """A network that can be pre-trained.

    Attributes:
        build: (text width, pooled width) -> network.
        loss: its loss.
        blocks: parts of the names of its matrices inside blocks, which Muon trains.
        muon_from: step from which it does; before, AdamW trains everything. In a paired trial on SD3, from step 2,000
            on, Muon was 300 steps ahead after 200.
        folder: name of the folder of its run; "" for runs/ itself.
    """

    build: Callable[[int, int], nn.Module]
    loss: Loss
    blocks: tuple[str, ...]
    muon_from: int
    folder: str


def sd3(text_width: int, pooled_width: int) -> nn.Module:
    """Return the host's MMDiT in demo size with a DiT initialisation: adaLN gates and output start at zero."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT, get_2d_sincos_pos_embed_torch

    width = 64 * DEPTH
    embedder = {"in_features": text_width, "out_features": width}
    network = MMDiT(
        input_size=None, patch_size=2, in_channels=16, depth=DEPTH, adm_in_channels=pooled_width,
        context_embedder_config={"target": "torch.nn.Linear", "params": embedder}, pos_embed_max_size=GRID,
        num_patches=GRID * GRID, qk_norm="rms", dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    network.pos_embed.copy_(get_2d_sincos_pos_embed_torch(width, GRID, GRID)[None])
    for name, parameter in network.named_parameters():
        if name.startswith("final_layer.linear") or "adaLN_modulation" in name or parameter.ndim == 1:
            nn.init.constant_(parameter, 1.0 if ".ln_" in name else 0.0)
        elif name.startswith(("t_embedder", "y_embedder")):
            nn.init.normal_(parameter, std=0.05)
        else:
            nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))
    return network


def sd15(text_width: int, pooled_width: int) -> nn.Module:
    """Return the host's UNet in demo size; every residual branch and the output start at zero."""
    from teefusion_core.comfy_host.demo_sd15 import build_model

    network = build_model(torch.float32, None, torch.device("cpu")).diffusion_model
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            is_norm = "norm" in name or name.endswith(("in_layers.0.weight", "out_layers.0.weight", "out.0.weight"))
            nn.init.constant_(parameter, 1.0 if is_norm and name.endswith("weight") else 0.0)
        elif name.endswith(("out_layers.3.weight", "proj_out.weight")) or name == "out.2.weight":
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_uniform_(parameter, a=5**0.5)
    return network.requires_grad_(True)


def velocity_loss(network: nn.Module, latent_BCHW: Tensor, context_BLD: Tensor, pooled_BP: Tensor, generator) -> Tensor:
    """Flow matching: the network predicts noise - latent at x = (1 - sigma) latent + sigma noise."""
    device = latent_BCHW.device
    sigma_B = torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.randn(len(latent_BCHW), generator=generator)).to(device)
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator).to(device)
    s = sigma_B.view(-1, 1, 1, 1)
    # 40 tokens: plain attention is faster than a fused kernel, most of all backward
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        velocity = network(torch.lerp(latent_BCHW, noise_BCHW, s), sigma_B * 1000, pooled_BP, context_BLD)
    return (velocity.float() - (noise_BCHW - latent_BCHW)).square().mean()


def noise_loss(network: nn.Module, latent_BCHW: Tensor, context_BLD: Tensor, pooled_BP: Tensor, generator) -> Tensor:
    """Noise prediction at x = (latent + sigma noise) / sqrt(1 + sigma^2).

    Noise levels and weights are those of `velocity_loss`, at the nearest of the thousand steps: with the same
    prediction of the image, both losses are the same number.
    """
    from comfy.model_sampling import ModelSamplingDiscrete

    device = latent_BCHW.device
    levels = ModelSamplingDiscrete().to(device)
    drawn_B = torch.exp(LOGIT_MEAN + LOGIT_STD * torch.randn(len(latent_BCHW), generator=generator)).to(device)
    timestep_B = levels.timestep(drawn_B)
    s = levels.sigmas[timestep_B].view(-1, 1, 1, 1)
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator).to(device)
    x_BCHW = (latent_BCHW + s * noise_BCHW) / (1 + s.square()).sqrt()
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        predicted = network(x_BCHW, timestep_B.float(), context_BLD)
    return ((predicted.float() - noise_BCHW) * (1 + s)).square().mean()


NETWORKS = {
    "sd3": Trained(sd3, velocity_loss, (".attn.", ".mlp."), 2000, ""),
    "sd15": Trained(
        sd15, noise_loss, ("transformer_blocks", "in_layers", "out_layers", ".proj_", ".op.", ".conv."), 200, "sd15"
    ),
}
