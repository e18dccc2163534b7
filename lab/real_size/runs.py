"""Runs of one network of a published size with random prompts: the methods that are compared, step by step.

Shapes: B rows, C H W latent, L tokens, E width of a token, P pooled width, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.benches._cost import sampler_seconds

from .files import lora_layout, random_pool, random_weight
from .layouts import CHANNELS, CONTEXT_WIDTH, POOLED_WIDTH, network_layout

TOKENS = 154
"""Tokens of a short prompt: 77 of both CLIPs and 77 of T5."""
DIFFERENCE = 0.2
"""How far the empty prompt is from the prompt, from 0 for equal to 1 for unrelated."""
CFG, W, Z_CFG, Z_WEAK = 5.5, 4.5, 5.5, 0.0
STEP = (0.9, 0.8)
"""Noise levels of the step that is timed; it is not the last one, so reflection samplers reflect in it."""
STUDENT, STOCK, TEACHER, W2SD, Z = "student", "stock", "CFG", "W2SD 1 / 1 / 5.5", "Z-Sampling 5.5 / 0"
PASSES = {STUDENT: 1, STOCK: 1, TEACHER: 2, W2SD: 4, Z: 5}


def load(path: Path, dtype: torch.dtype) -> Any:
    """Return a MODEL that stores its weights in a dtype and computes in it as well."""
    import comfy.sd

    options = {"dtype": dtype}
    if path.parent.name == "checkpoints":  # all in one
        only = {"output_vae": False, "output_clip": False, "model_options": options}
        model = comfy.sd.load_checkpoint_guess_config(str(path), **only)[0]
    else:
        model = comfy.sd.load_diffusion_model(str(path), model_options=options)
    model.model.manual_cast_dtype = None  # on a CPU the host would compute in float32
    return model


def prompt(seed: int, like: list | None = None) -> list:
    """Return CONDITIONING with random tokens and a random pooled vector, or one that is not far from another."""
    generator = torch.Generator().manual_seed(seed)
    context_1LE = torch.randn(1, TOKENS, CONTEXT_WIDTH, generator=generator)
    pooled_1P = torch.randn(1, POOLED_WIDTH, generator=generator)
    if like is not None:
        [[context, extras]] = like
        context_1LE = context.lerp(context_1LE, DIFFERENCE)
        pooled_1P = extras["pooled_output"].lerp(pooled_1P, DIFFERENCE)
    return [[context_1LE, {"pooled_output": pooled_1P}]]


class Runs:
    """One model, its LoRA clone and the prompts of a comparison."""

    def __init__(self, model: Any, lora: dict[str, Tensor], *, pixels: int, batch: int = 1, seed: int = 0):
        """Prepare the clones; nothing is loaded.

        Args:
            model: MODEL.
            lora: LoRA file of the weak model, applied at strength -1.5.
        """
        from teefusion_core.comfy_host.guidance.patch import apply_fusion

        self.model, self.positive, self.null = model, prompt(1), prompt(2, like=prompt(1))
        self.lora = lora
        self.student = apply_fusion(model, self.positive, self.null, W)
        generator = torch.Generator().manual_seed(seed)
        self.noise_BCHW = torch.randn(batch, CHANNELS, pixels // 8, pixels // 8, generator=generator)
        self.sigmas = torch.tensor(STEP)

    def clone(self, strength: float) -> Any:
        """Return a clone of the model with the LoRA at a strength."""
        return self.other(self.model, strength)

    def other(self, model: Any, strength: float) -> Any:
        """Return a clone of any model with the LoRA at a strength."""
        import comfy.sd

        return comfy.sd.load_lora_for_models(model, None, self.lora, strength, 0)[0]

    def step_seconds(self, method: str) -> float:
        """Return the seconds of one step, without loading and encoding."""
        return sampler_seconds(*self.guided(method), self.noise_BCHW, self.sigmas)

    def guided(self, method: str) -> tuple[Any, Any]:
        """Return GUIDER and SAMPLER of a method."""
        if method == W2SD:
            return self.reflecting((1.0, 1.0, CFG), self.model, self.clone(-1.5))
        if method == Z:
            return self.reflecting((Z_CFG, Z_WEAK, Z_CFG), self.model, self.model)
        model, positive = self.student if method == STUDENT else (self.model, self.positive)
        return self.cfg(model, CFG if method == TEACHER else 1.0, positive)

    def cfg(self, model: Any, scale: float, positive: list | None = None) -> tuple[Any, Any]:
        """Return GUIDER and SAMPLER of Euler at a CFG scale."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive or self.positive, self.null)
        guider.set_cfg(scale)
        return guider, comfy.samplers.sampler_object("euler")

    def reflecting(self, scales: tuple[float, float, float], strong: Any, weak: Any) -> tuple[Any, Any]:
        """Return GUIDER and SAMPLER that reflect in every step."""
        from teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales
        from teefusion_core.comfy_host.reflection.sampler import ReflectionSampler

        guider = ReflectionGuider(strong, weak, scales=Scales(*scales))
        guider.set_conds(self.positive, self.null)
        return guider, ReflectionSampler()

    def state_after(self, guided: tuple[Any, Any], sigmas: Tensor, start_BCHW: Tensor | None = None) -> Tensor:
        """Return the state [B,C,H,W] after a run, from noise or from a state."""
        from teefusion_core.comfy_host.recording import record

        empty = torch.zeros_like(self.noise_BCHW)
        return record(*guided, self.noise_BCHW, empty, sigmas, start_BCHW=start_BCHW).states[-1]

    def stock_step(self, strength: float) -> Tensor:
        """Return the state after one stock step with the LoRA."""
        return self.state_after(self.cfg(self.clone(strength), CFG), self.sigmas)

    def gap_step(self, scales: tuple[float, float, float], strong: float, weak: float | Any) -> Tensor:
        """Return the state after one reflected step, given the weak model or the strength of its LoRA."""
        other = self.clone(weak) if isinstance(weak, float) else weak
        return self.state_after(self.reflecting(scales, self.clone(strong), other), self.sigmas)

    def merged_step(self, scales: tuple[float, float, float], strong: float, weak: float) -> Tensor:
        """Return the same by separately merged models.

        They follow one another, so that only one is in memory; each leg is a run of stock Euler on one of them.
        """
        x_BCHW, (high, low) = None, self.sigmas.tolist()
        legs = ((strong, scales[0], (high, low)), (weak, scales[1], (low, high)), (strong, scales[2], (high, low)))
        for strength, scale, levels in legs:
            x_BCHW = self.state_after(self.cfg(self.clone(strength), scale), torch.tensor(levels), x_BCHW)
        assert x_BCHW is not None
        return x_BCHW

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Compile the network with torch.compile inside the block, as the host's node TorchCompileModel does."""
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        model, student = self.model, self.student
        try:
            self.model, self.student = model.clone(), (student[0].clone(), student[1])
            for patcher in (self.model, self.student[0]):
                set_torch_compile_wrapper(model=patcher, backend="inductor")
            yield
        finally:
            self.model, self.student = model, student

    @staticmethod
    def unload() -> None:
        """Have the host release every model."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        with suppress(AttributeError):
            comfy.model_management.cleanup_models_gc()


def random_lora(name: str, depth: int | None = None) -> dict[str, Tensor]:
    """Return a LoRA file for the attention of a network."""
    pool = random_pool()
    layout = lora_layout(network_layout(name, depth))
    return {key: random_weight(key, shape, pool) for key, shape in layout}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def rounds(measured: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Return the seconds of every method in each round, after one round to warm up."""
    for measure in measured.values():
        measure()
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for index in range(count):
        for name in sorted(measured, key=list(measured).index, reverse=bool(index % 2)):
            seconds[name].append(measured[name]())
    return seconds
