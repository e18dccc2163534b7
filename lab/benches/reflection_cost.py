"""The cost of a reflection run relative to its forward passes, and of a LoRA gap relative to two loaded models.

All runs of a round follow one another in one process, so that other work on the machine slows each alike; a round
gives one ratio. Weights are merged and loaded before a run is timed.
"""

from collections.abc import Callable
from typing import Any

import torch
from runner.stop import say

from ._cost import quartiles, ratio_text, sampler_seconds

STEPS = 10
ROUNDS = 24
BATCHES = (1, 4)
RANK = 8
LIMIT_PASSES, LIMIT_GAP = 1.03, 1.05
PROMPT = "a red circle left of a small blue square on a white background"
SETTINGS = {
    "Z-Sampling 5.5 / 0": ((5.5, 0.0, 5.5), "base"),
    "W2SD 5.5 / 1 / 5.5": ((5.5, 1.0, 5.5), "weak"),
    "W2SD 1 / 1 / 5.5": ((1.0, 1.0, 5.5), "weak"),
}


class Case:
    def __init__(self, batch: int):
        from teefusion_core.comfy_host.demo_model import load_demo
        from teefusion_core.comfy_host.sampling import schedule

        self.base, clip, _ = load_demo("base")
        self.models = {"base": self.base, "weak": load_demo("weak")[0]}
        self.prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")]
        self.noise_BCHW = torch.randn(batch, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        self.sigmas = schedule(self.base, "normal", STEPS, 1.0)

    def reflect(self, scales: tuple[float, float, float], strong: Any, weak: Any) -> tuple[float, float]:
        """Return the seconds of a run and its forward passes, from the first evaluation on."""
        from teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales
        from teefusion_core.comfy_host.reflection.sampler import ReflectionSampler

        guider = ReflectionGuider(strong, weak, scales=Scales(*scales))
        guider.set_conds(*self.prompts)
        return sampler_seconds(guider, ReflectionSampler(), self.noise_BCHW, self.sigmas), guider.passes

    def one_pass(self) -> float:
        """Return the seconds of one pass in a stock run at cfg 1."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self.base)
        guider.set_conds(*self.prompts)
        euler = comfy.samplers.sampler_object("euler")
        return sampler_seconds(guider, euler, self.noise_BCHW, self.sigmas) / STEPS


def _paired(first: Callable[[], float], second: Callable[[], float]) -> dict[str, float]:
    """Return the quartiles of first / second over the rounds, after one round to warm up."""
    first(), second()
    return quartiles([first() / second() for _ in range(ROUNDS)])


def _passes_row(case: Case, name: str, batch: int) -> dict[str, Any]:
    scales, weak = SETTINGS[name]
    _, passes = case.reflect(scales, case.base, case.models[weak])
    ratio = _paired(lambda: case.reflect(scales, case.base, case.models[weak])[0], lambda: passes * case.one_pass())
    return {"case": name, "batch": batch, "passes": passes, "against": "passes x one pass", "limit": LIMIT_PASSES,
            **ratio}  # fmt: skip


def _gap_row(case: Case, batch: int) -> dict[str, Any]:
    """Compare a LoRA and its base on one copy of the weights with two loaded copies."""
    from teefusion_core.comfy_host.demo_model import load_demo

    other, scales = load_demo("base")[0], SETTINGS["W2SD 5.5 / 1 / 5.5"][0]
    strong = with_lora(case.base)
    ratio = _paired(lambda: case.reflect(scales, strong, case.base)[0], lambda: case.reflect(scales, strong, other)[0])
    name, passes = f"LoRA of rank {RANK} on every layer against none", case.reflect(scales, strong, case.base)[1]
    return {"case": name, "batch": batch, "passes": passes, "against": "two loaded models", "limit": LIMIT_GAP,
            **ratio}  # fmt: skip


def with_lora(model: Any) -> Any:
    import comfy.lora

    from teefusion_core.training.adapters import Lora

    lora, generator = Lora(model.model.diffusion_model, RANK), torch.Generator().manual_seed(0)
    for up_OR in lora.up.values():
        up_OR.data.normal_(0, 0.02, generator=generator)
    patched = model.clone()
    patched.add_patches(comfy.lora.load_lora(lora.state(), comfy.lora.model_lora_keys_unet(patched.model, {})), 0.8)
    return patched


@torch.no_grad()
def measure() -> dict[str, Any]:
    rows = []
    for batch in BATCHES:
        case = Case(batch)
        for name in SETTINGS:
            say(f"{name}, batch {batch}")
            rows.append(_passes_row(case, name, batch))
        rows.append(_gap_row(case, batch))
    met = all(row["median"] <= row["limit"] for row in rows)
    return {"settings": {"rounds": ROUNDS, "steps": STEPS}, "rows": rows, "met": met}


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["run", "batch", "passes", "its time over", "ratio", "at most"]]
    for row in result["rows"]:
        cells = [row["case"], str(row["batch"]), f"{row['passes']:g}", row["against"]]
        lines.append([*cells, ratio_text(row), f"{row['limit']:g}"])
    return lines
