"""One method of the tables at one strength: its images, their scores and their cost.

Shapes: B prompts of a batch, H W picture size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.demo_world.verifier import CATEGORIES, judge
from teefusion_core.evaluation.image_metrics import clipping, saturation

from ._cost import forward_passes, now
from ._image_metrics import contrast, diversity, psnr, ssim
from ._methods import Arm
from ._study import Study, first_rows

SIGN = {True: "1", False: "0", None: "-"}
"""Characters in JSON for right, wrong and not claimed by the prompt; one per prompt."""


@dataclass(frozen=True)
class Sampled:
    """Samples of a method: figures for JSON, and uint8 images."""

    row: dict[str, Any]
    images_BHW3: np.ndarray


def sampled(study: Study, arm: Arm, strength: float, *, sampler: str = "euler",
            other_BCHW: Tensor | None = None) -> Sampled:  # fmt: skip
    """Sample every prompt; a second noise for the first ones also gives diversity and effective guidance."""
    parts, seconds, first = [], 0.0, []
    with forward_passes(study.base) as counter:
        for positive, noise_BCHW in study.batches():
            start = now()
            guider, states, images = _run(study, arm, positive, strength, sampler, noise_BCHW)
            seconds += now() - start
            parts.append(images)
            first = first or [x[: study.few] for x in states]
    shown = np.concatenate(parts)
    passes = study.passes_per_step(guider, counter.rows, len(shown))
    row = {**arm.named, "sampler": sampler, "strength": strength, "passes": round(passes, 3)}
    row |= {"milliseconds": round(1000 * seconds / len(shown), 1), "right": _judged(study, shown)}
    row |= _described(shown)
    if other_BCHW is not None:
        row["effective"] = round(study.guidance_along(first, study.sigmas), 3)
        few = first_rows(study.bench.conditionings[0], len(other_BCHW))
        others = _run(study, arm, few, strength, sampler, other_BCHW)[2]
        pairs = torch.from_numpy(np.stack((shown[: len(others)], others)) / 255)
        row["diversity"] = round(float(diversity(pairs).mean()), 4)
    return Sampled(row, shown)


def _run(study: Study, arm: Arm, positive: list, strength: float, sampler: str, noise_BCHW: Tensor) -> tuple:
    teacher, prompt, cfg = arm.prepare(study, positive, strength, sampler)
    states, _ = teacher.sample(prompt, study.bench.null, noise_BCHW, study.sigmas, cfg)
    return teacher.guider, states, study.decoded(states[-1])


def _judged(study: Study, images_BHW3: np.ndarray) -> dict[str, str]:
    """Return what is right for each prompt: category -> characters."""
    verdicts = [judge(image, claim) for image, claim in zip(images_BHW3, study.bench.claims, strict=True)]
    signs = {name: "".join(SIGN[verdict.categories[name]] for verdict in verdicts) for name in CATEGORIES}
    return {**signs, "overall": "".join(SIGN[verdict.overall] for verdict in verdicts)}


def _described(images_BHW3: np.ndarray) -> dict[str, float]:
    bright = contrast(torch.from_numpy(images_BHW3 / 255)).mean()
    return {
        "saturation": round(saturation(images_BHW3), 4), "contrast": round(float(bright), 4),
        "clipped": round(clipping(images_BHW3), 5),
    }  # fmt: skip


def likeness(images_BHW3: np.ndarray, others_BHW3: np.ndarray) -> dict[str, float]:
    """Return PSNR and SSIM as means over images; equal images count as 60 dB."""
    a, b = (torch.from_numpy(images / 255) for images in (images_BHW3, others_BHW3))
    return {"psnr": round(float(psnr(a, b).clamp(max=60).mean()), 2), "ssim": round(float(ssim(a, b).mean()), 4)}
