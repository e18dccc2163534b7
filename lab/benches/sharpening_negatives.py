"""Whether a DICE sharpener follows a negative prompt, in the form of the authors' code and in that of the paper.

As in `negatives`: prompts leave their background open, and each background in turn is the negative prompt. One
sharpener learned from empty prompts only, the other from negative prompts in half of its trajectories.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.captions import open_prompts
from lab.demo_world.distill_student import NEGATIVES, distilled, sharpening
from lab.demo_world.measure import encode
from lab.demo_world.scenes import BACKGROUNDS

from ._negative_prompts import PROMPTS, Arm, W, row_of
from ._report import measured_rows
from ._study import Study
from .negatives import table
from .sharpening import INCLUDED

BETAS = (0.0, 0.5, 1.0)
RECIPE = sharpening("sd15", 1500, negative_share=0.5)
__all__ = ["measure", "table"]


def measure() -> dict[str, Any]:
    """Return how often each method shows the unwanted background; the second sharpener is trained first."""
    learned = distilled(RECIPE)
    with torch.inference_mode():
        study, (texts, claims) = Study(PROMPTS, few=1, base="sd15"), open_prompts(PROMPTS)
        positive = encode(study.clip, texts)
        encoded = [encode(study.clip, [text]) for text in NEGATIVES]
        negatives = dict(zip(BACKGROUNDS, encoded, strict=True))

        def measured(arm: Arm) -> dict[str, Any]:
            row = row_of(study, arm, positive, claims, negatives)
            say(f"{row}")
            return row

        settings = {"prompts": PROMPTS, "negatives": len(NEGATIVES), "w": W, "steps": RECIPE.steps}
        jobs = [({"method": arm[0]}, partial(measured, arm)) for arm in _arms(study, learned)]
        return measured_rows("sharpening_negatives", settings, jobs)


def _arms(study: Study, learned: Path) -> Iterator[Arm]:
    from teefusion_core.comfy_host.prompts.conditioning import load_sharpener, sharpen

    yield "no guidance", 1, lambda prompt, _: (study.base, prompt)
    yield "CFG with the negative prompt", 2, lambda prompt, _: (study.base, prompt)
    for kind, path in (("trained without negatives", INCLUDED), ("trained with negatives", learned)):
        sharp = partial(sharpen, sharpener=load_sharpener(path, [1.0]), null=study.bench.null)
        yield f"{kind}: empty prompt", 1, lambda prompt, _, sharp=sharp: (study.base, sharp(prompt))
        for beta in BETAS:
            yield (
                f"{kind}: negative prompt, beta {beta:g}", 1,
                lambda prompt, n, sharp=sharp, beta=beta: (study.base, sharp(prompt, negative=n, beta=beta)),
            )  # fmt: skip
