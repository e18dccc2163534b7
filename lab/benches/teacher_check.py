"""The trial that refuses teachers with a memory, in half precision and at large sizes.

An element that is rounded the other way moves a step in half precision by several percent, and the more elements a
latent has, the surer there is one. Each cell counts the noises for which the trial answers right. Beside it stands the
trial as it was before, which restarted from the state divided by its noise level.

Up to 256 pixels the network is the demo base; its position embedding ends there. Above, it is a random network of the
same class.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from runner.stop import say
from torch import Tensor

from lab.demo_world.host import computing_in, network_like

from .reflection_cost import PROMPT, with_lora

SEEDS = 10
SIZES = (64, 256, 512, 1024)
LARGEST_OF_DEMO = 256
CELL, TOKENS = 8, 16
"""Pixels per latent cell; tokens of the networks along an axis."""
WIDTH, BLOCKS = 64, 8
PROMPT_LAYERS, PROMPT_SHARE = ("context_embedder.", "y_embedder.mlp.2."), 0.1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALES = (9.0, 2.0)
ACCEPTED, REFUSED = ("euler", "heun", "Z-Sampling", "W2SD"), ("dpmpp_2m", "euler_ancestral", "uni_pc")
BEFORE = "euler, trial before"
TOLERANCE_BEFORE = 1e-3


class Case:
    """A network in one precision at one size."""

    def __init__(self, size: int, dtype: torch.dtype):
        self.cells, self.base = size // CELL, _demo(dtype) if size <= LARGEST_OF_DEMO else _random(size, dtype)
        self.lora = with_lora(self.base)
        self.prompts = _prompts()

    def teacher(self, name: str) -> Any:
        from comfy.samplers import CFGGuider, sampler_object

        from teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales
        from teefusion_core.comfy_host.reflection.sampler import ReflectionSampler

        if name == "Z-Sampling":
            return _teacher()(ReflectionGuider(self.base, scales=Scales(1.0, 0.0, 1.0)), ReflectionSampler())
        if name == "W2SD":
            guider = ReflectionGuider(self.lora, self.base, scales=Scales(1.0, 1.0, 1.0))
            return _teacher()(guider, ReflectionSampler())
        return _teacher()(CFGGuider(self.base), sampler_object(name))

    def accepts(self, name: str, seed: int, cfg: float) -> tuple[bool, bool | None]:
        """Return whether the trial accepts a teacher, and for Euler whether the one before did."""
        from teefusion_core.errors import InvalidConfig

        teacher = self.teacher(name)
        noise_1CHW = torch.randn(1, 16, self.cells, self.cells, generator=torch.Generator().manual_seed(seed))
        given = *self.prompts, noise_1CHW, cfg
        try:
            teacher.check(*given)
            now = True
        except InvalidConfig:
            now = False
        return now, _accepted_before(teacher, *given) if name == "euler" else None


@cache
def _teacher() -> Callable:
    from teefusion_core.comfy_host.training.teacher import Teacher

    class Sampled(Teacher):
        """A teacher that samples its four steps once for both trials."""

        whole: Any = None

        def sample(self, positive: Any, negative: Any, noise_BCHW: Tensor, sigmas_S: Tensor, cfg: float, **more: Any):
            if more:
                return super().sample(positive, negative, noise_BCHW, sigmas_S, cfg, **more)
            self.whole = self.whole or super().sample(positive, negative, noise_BCHW, sigmas_S, cfg)
            return self.whole

    return Sampled


def _accepted_before(teacher: Any, positive: Any, negative: Any, noise_BCHW: Tensor, cfg: float) -> bool:
    """Return the answer of the trial as it was: literal, but for the errors."""
    import comfy.samplers

    from teefusion_core.comfy_host.training.teacher import PROBE_STEPS

    sampling = teacher.model.get_model_object("model_sampling")
    sigmas_S = comfy.samplers.calculate_sigmas(sampling, "simple", PROBE_STEPS)
    states, _ = teacher.sample(positive, negative, noise_BCHW, sigmas_S, cfg)
    third = sigmas_S[2:4]
    noise = states[2] / third[0].to(states[2])
    alone, again = (teacher.sample(positive, negative, noise, third, cfg, seed=seed)[0][-1] for seed in (1, 2))
    moved = float((alone - states[2]).norm())
    return all(float((alone - other).norm()) <= TOLERANCE_BEFORE * moved for other in (again, states[3]))


@cache
def _prompts() -> list[Any]:
    from teefusion_core.comfy_host.demo_model import load_demo

    clip = load_demo("base")[1]
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")]


def _demo(dtype: torch.dtype) -> Any:
    from teefusion_core.comfy_host.demo_model import load_demo

    return computing_in(load_demo("base")[0], dtype)


def _random(size: int, dtype: torch.dtype) -> Any:
    """Return a random network of the demo's class, narrow and deep, with 256 tokens for a picture of this size.

    Its prompts are as weak beside the latent as those of a trained network, for guidance amplifies rounding then.
    """
    demo = _demo(dtype)
    text = demo.model.model_config.unet_config["context_embedder_config"]["params"]["in_features"]
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": text, "out_features": WIDTH}}
    model = network_like(
        demo, dtype, depth=1, num_blocks=BLOCKS, patch_size=size // CELL // TOKENS, context_embedder_config=embedder
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.model.diffusion_model.state_dict().items():
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            values *= (PROMPT_SHARE if name.startswith(PROMPT_LAYERS) else 1) / weight[0].numel() ** 0.5
        else:
            values = 0.1 * values + name.endswith("weight")  # of a norm
        weight.copy_(values)
    return model


def _row(case: Case, size: int, dtype: str, cfg: float) -> dict[str, Any]:
    right: dict[str, int] = {}
    for name in (*ACCEPTED, *REFUSED):
        answers = [case.accepts(name, seed, cfg) for seed in range(SEEDS)]
        right[name] = sum(now is (name in ACCEPTED) for now, _ in answers)
        if name == "euler":
            right[BEFORE] = sum(bool(before) for _, before in answers)
    return {"pixels": size, "dtype": dtype, "cfg": cfg, "right": right}


@torch.inference_mode()
def measure() -> dict[str, Any]:
    rows = []
    for size in SIZES:
        for name, dtype in DTYPES.items():
            case = Case(size, dtype)
            for cfg in SCALES:
                say(f"{size} px, {name}, CFG {cfg:g}")
                rows.append(_row(case, size, name, cfg))
    met = all(row["right"][name] == SEEDS for row in rows for name in (*ACCEPTED, *REFUSED))
    return {"settings": {"seeds": SEEDS}, "rows": rows, "met": met}


def table(result: dict[str, Any]) -> list[list[str]]:
    columns = (*ACCEPTED, *REFUSED, BEFORE)
    lines = [["pixels", "precision", "CFG", *columns]]
    for row in result["rows"]:
        lines.append([str(row["pixels"]), row["dtype"], f"{row['cfg']:g}", *(str(row["right"][n]) for n in columns)])
    return lines
