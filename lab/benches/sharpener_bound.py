"""How much guidance the tokens of a prompt can hold: the limit of what a DICE sharpener can do.

The tokens of each prompt are optimised alone, so that the model predicts what CFG predicts, on trajectories from other
noise than that of the images that are judged. SD3 also reads a pooled vector, which a sharpener leaves alone; its
second row optimises that too.

Shapes: P prompts, K trajectories of each, S steps, C H W latent, L tokens, W token width.
"""

from functools import partial
from typing import Any

import torch
from runner.stop import say
from torch import Tensor

from lab.demo_world.measure import pictures, sample
from lab.demo_world.verifier import judge
from teefusion_core.guidance.cfg import cfg_scale_of

from ._report import measured_rows
from ._scores import gain_text
from ._study import STEPS, Study
from .sharpening import SHOWN

PROMPTS, TRAJECTORIES, UPDATES = 128, 8, 400
W = 2.0
ALPHAS = (0.5, 1.0, 1.5)
RATE = 0.02
"""Learning rate as a share of the standard deviation of what is optimised."""
OPTIMISED = (("sd15", "tokens"), ("base", "tokens"), ("base", "tokens and pooled vector"))


def measure() -> dict[str, Any]:
    """Return a row for each model and each part of the prompt that is optimised."""
    settings = {"prompts": PROMPTS, "trajectories": TRAJECTORIES, "updates": UPDATES, "w": W}
    jobs = [({"model": model, "optimised": what}, partial(_row, model, what)) for model, what in OPTIMISED]
    return measured_rows("sharpener_bound", settings, jobs)


def _row(model: str, what: str) -> dict[str, Any]:
    bound = Bound(model)
    prompt, change, loss = bound.optimised(pooled="pooled" in what)
    row = {"loss": round(loss, 3), "none": bound.right(prompt, 1.0), "cfg": bound.right(prompt, cfg_scale_of(W))}
    row["alpha"] = {str(a): bound.right([p + a * d for p, d in zip(prompt, change, strict=True)], 1.0) for a in ALPHAS}
    say(f"{model}, {what}: {row}")
    return row


class Bound:
    """A model with prompts, the states that CFG passes from them, and what it predicts there."""

    def __init__(self, model: str) -> None:
        from teefusion_core.comfy_host.training.network import Network

        self.study = Study(PROMPTS, PROMPTS, base=model)
        self.network = Network(self.study.base)
        [(context_PLW, extras)], [(null_1LW, null_extras)] = self.study.bench.conditionings[0], self.study.bench.null
        # cloned, because autograd cannot save inference tensors
        self.prompt = [context_PLW.clone(), extras["pooled_output"].clone()]
        null = [null_1LW.clone(), null_extras["pooled_output"].clone()]
        self.null = [part.expand(PROMPTS, *part.shape[1:]) for part in null]
        self.states = self._states()

    def velocity(self, prompt: list[Tensor], x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        from teefusion_core.training.mixed_precision import mixed_precision

        with mixed_precision(self.network.device, self.network.dtype):
            return self.network.velocity(x_BCHW, sigma_B, [[prompt[0], {"pooled_output": prompt[1]}]])

    @torch.no_grad()
    def _states(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return x, sigma, velocity and guidance of CFG for every step of every trajectory, each for all prompts."""
        found, generator = [], torch.Generator().manual_seed(1)
        for _ in range(TRAJECTORIES):
            noise_PCHW = torch.randn(self.study.bench.noise_NCHW.shape, generator=generator)
            sampling = self.study.base.get_model_object("model_sampling")
            x_PCHW = sampling.noise_scaling(self.study.sigmas[0], noise_PCHW, torch.zeros_like(noise_PCHW))
            for here, there in zip(self.study.sigmas[:-1], self.study.sigmas[1:], strict=True):
                sigma_P = here.expand(PROMPTS)
                cond, uncond = (self.velocity(prompt, x_PCHW, sigma_P) for prompt in (self.prompt, self.null))
                guidance = W * (cond - uncond)
                found.append((x_PCHW.half(), sigma_P, (cond + guidance).half(), guidance.half()))
                x_PCHW = x_PCHW + (there - here) * (cond + guidance)
        return found

    def optimised(self, pooled: bool) -> tuple[list[Tensor], list[Tensor], float]:
        """Return the prompts, what is added to them, and the last loss; 1 is the loss without guidance."""
        prompt = self.prompt
        change = [torch.zeros_like(part, requires_grad=True) for part in prompt[: 1 + pooled]]
        groups = [{"params": [d], "lr": RATE * float(p.std())} for d, p in zip(change, prompt, strict=False)]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / UPDATES)))
        generator, losses = torch.Generator().manual_seed(2), []
        kept_1L1 = (torch.arange(prompt[0].shape[1]) > 0).float()[None, :, None]
        with self.network.in_training(gradient_checkpointing=False):
            for _ in range(UPDATES):
                given = [prompt[0] + kept_1L1 * change[0], prompt[1] + change[1] if pooled else prompt[1]]
                loss = self._loss(given, torch.randint(TRAJECTORIES * STEPS, (PROMPTS,), generator=generator))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
        found = [(kept_1L1 * change[0]).detach(), change[1].detach() if pooled else torch.zeros_like(prompt[1])]
        return prompt, found, sum(losses[-50:]) / 50

    def _loss(self, given: list[Tensor], places_P: Tensor) -> Tensor:
        """Return the mean square error relative to the guidance, each prompt at a place of its own."""
        rows = [[part[row] for part in self.states[place]] for row, place in enumerate(places_P.tolist())]
        x, sigma, target, guidance = (torch.stack(part).float() for part in zip(*rows, strict=True))
        error = self.velocity(given, x, sigma) - target
        return (error.square().flatten(1).mean(1) / guidance.square().flatten(1).mean(1).clamp(min=1e-6)).mean()

    @torch.inference_mode()
    def right(self, prompt: list[Tensor], cfg: float) -> str:
        """Return for each prompt whether its image is right, as a digit."""
        bench = self.study.bench
        positive = [[prompt[0], {"pooled_output": prompt[1]}]]
        images = pictures(bench.vae, sample(self.study.base, positive, bench.null, cfg, bench.noise_NCHW, bench.seed))
        return "".join(str(int(judge(*pair).overall)) for pair in zip(images, bench.claims, strict=True))


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return scores, and the share of CFG's gain that the best alpha keeps."""
    lines = [["model", "optimised", "error left", "no guidance", f"CFG {cfg_scale_of(W):g}",
              *(f"alpha {a:g}" for a in ALPHAS), "best, of CFG's gain"]]  # fmt: skip
    for row in result["rows"]:
        none, cfg, *tried = (
            torch.tensor([[float(sign) for sign in text]], dtype=torch.float64)
            for text in (row["none"], row["cfg"], *row["alpha"].values())
        )
        best = max(tried, key=lambda right_1P: float(right_1P.mean()))
        kept = gain_text(best, none, cfg)
        cells = [f"{float(part.mean()):.3f}" for part in (none, cfg, *tried)]
        lines.append([SHOWN[row["model"]], row["optimised"], f"{row['loss']:.2f}", *cells, kept])
    return lines
