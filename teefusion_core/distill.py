"""Distillation of a guided teacher into a student that fuses guidance with its text.

Algorithm 1 of the paper: draw (latent, prompt), t, w, noise; let the teacher move x from sigma to a lower one;
make the student's velocity at x equal the secant of that move.

Shapes: B batch, C H W latent, P pooled width.
Source: TeEFusion, arXiv 2507.18192, algorithm 1; the target is the secant of the teacher's step, which for an
Euler teacher is the guided velocity of the paper, for any other the only target that keeps what its step does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .architectures import Architecture
from .errors import InvalidConfig
from .flow import Denoiser, Step, denoised_of, euler, per_row, secant, shifted
from .fusion import guidance_term, guidance_timestep
from .guidance import cfg_scale_of, guided

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B,C,H,W], sigma [B]) -> velocity [B,C,H,W]."""


@dataclass(frozen=True)
class Draw:
    """Where one batch of training happens: x at sigma_from, the end of the teacher's step, guidance w."""

    x_BCHW: Tensor
    sigma_from_B: Tensor
    sigma_to_B: Tensor
    w_B: Tensor


@dataclass(frozen=True)
class Draws:
    """How batches are drawn.

    Attributes:
        w_min, w_max: guidance is uniform between them (paper: 2 and 14).
        shift: schedule shift of the base (SD3: 3); t is uniform before the shift.
        num_steps: the teacher's step is one of a schedule with this many.
    """

    w_min: float
    w_max: float
    shift: float = 3.0
    num_steps: int = 20

    def __post_init__(self):
        if not (0 <= self.w_min < self.w_max < math.inf and self.num_steps >= 1 and 0 < self.shift < math.inf):
            raise InvalidConfig(
                f"w from {self.w_min} to {self.w_max}, {self.num_steps} steps, shift {self.shift}; "
                "needs 0 <= w_min < w_max, one step or more, a positive shift, none of them infinite"
            )

    def __call__(self, latent_BCHW: Tensor, generator: torch.Generator) -> Draw:
        """Noise a batch of clean latents.

        Args:
            latent_BCHW: clean, model-scaled.
            generator: on the CPU, so that a run is the same on any device.
        """
        rows, device = len(latent_BCHW), latent_BCHW.device
        t_B = torch.rand(rows, generator=generator).to(device).clamp(min=1e-3)
        w_B = torch.rand(rows, generator=generator).to(device) * (self.w_max - self.w_min) + self.w_min
        noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator).to(latent_BCHW)
        sigma_from_B = shifted(t_B, self.shift)
        sigma_to_B = shifted((t_B - 1 / self.num_steps).clamp(min=0), self.shift)
        x_BCHW = torch.lerp(latent_BCHW, noise_BCHW, per_row(sigma_from_B, latent_BCHW).to(latent_BCHW))
        return Draw(x_BCHW, sigma_from_B, sigma_to_B, w_B)


def cfg_teacher(cond: Velocity, uncond: Velocity, w_B: Tensor) -> Step:
    """Make the Euler step of classifier-free guidance at w, two evaluations.

    Args:
        cond: velocity of the base with the prompts.
        uncond: velocity of the base with the null prompt.
        w_B: guidance of the paper per row; the CFG scale is 1 + w.
    """

    def denoiser(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        velocity = guided(cond(x_BCHW, sigma_B), uncond(x_BCHW, sigma_B), cfg_scale_of(w_B))
        return denoised_of(velocity, x_BCHW, sigma_B)

    as_denoiser: Denoiser = denoiser
    return euler(as_denoiser)


def distillation_loss(student: Velocity, teacher: Step, draw: Draw) -> Tensor:
    """Mean squared distance of the student's velocity from the secant of the teacher's step.

    Args:
        student: velocity at the draw's w, differentiable.
        teacher: evaluated without gradient.
        draw: where.
    Returns:
        Scalar loss.
    Source: algorithm 1, last lines.
    """
    with torch.no_grad():
        target = secant(teacher, draw.x_BCHW, draw.sigma_from_B, draw.sigma_to_B)
    return (student(draw.x_BCHW, draw.sigma_from_B) - target).square().mean()


class FusedNetwork(nn.Module):
    """A base network with the guidance term, as one module whose weights can be swapped as a whole."""

    def __init__(self, network: nn.Module, architecture: Architecture, *, gain: float, scale: float, precision: str):
        """Wrap a network that is called as network(x, timestep, context=..., y=pooled)."""
        super().__init__()
        self.network, self.architecture = network, architecture
        self.gain, self.scale, self.precision = gain, scale, precision

    def term(self, pooled_BP: Tensor, null_BP: Tensor, w_B: Tensor) -> Tensor:
        """The guidance term [B,D] with the present weights."""
        time_embed, pooled_embed = self.architecture.embedders(self.network, pooled_BP.dtype)
        timestep_B = guidance_timestep(w_B, precision=self.precision, scale=self.scale)
        return guidance_term(
            pooled_BP, null_BP, timestep_B, time_embed=time_embed, pooled_embed=pooled_embed, gain=self.gain
        )

    def forward(self, x_BCHW, sigma_B, context_BLE, pooled_BP, null_BP=None, w_B=None) -> Tensor:
        """Velocity of the student; of the base where w is None."""
        prompt = {"context": context_BLE, "y": pooled_BP}
        if w_B is None:
            return self.network(x_BCHW, sigma_B * 1000, **prompt)
        term_BD = self.term(pooled_BP, null_BP, w_B)
        seam = self.architecture.pooled_module(self.network)
        handle = seam.register_forward_hook(lambda module, inputs, out_BD: out_BD + term_BD)
        try:
            return self.network(x_BCHW, sigma_B * 1000, **prompt)
        finally:
            handle.remove()


@torch.no_grad()
def calibrated_gain(
    network: nn.Module, architecture: Architecture, pooled_BP, null_BP, w_B, sigma_B, *, share: float
) -> float:
    """Choose the gain at which the term is `share` of the modulation vector, in root mean square.

    With the published 1/256 the term of a small base is too weak to be heard over its training.

    Args:
        pooled_BP, null_BP: pooled text of typical prompts with that of the empty prompt.
        w_B, sigma_B: typical guidance and noise levels.
        share: wanted rms(term) / rms(G(psi(t)) + F(c)), e.g. 0.25.
    """
    fused = FusedNetwork(network, architecture, gain=1.0, scale=architecture.guidance_timestep_scale, precision="exact")
    time_embed, pooled_embed = architecture.embedders(network, pooled_BP.dtype)
    vec_BD = time_embed(sigma_B * 1000) + pooled_embed(pooled_BP)
    term_BD = fused.term(pooled_BP, null_BP, w_B)
    return share * float(vec_BD.square().mean().sqrt() / term_BD.square().mean().sqrt())
