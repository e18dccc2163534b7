"""One arm of the tables at one strength: its pictures, what they show, what they cost.

Shapes: B prompts of a batch, H W picture size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ._arms import Arm
from ._passes import Passes
from ._study import STEPS, Study, first_rows, mean_guidance
from ._timing import now

SIGN = {True: "1", False: "0", None: "-"}
"""What stands in JSON for right, wrong, not claimed by the prompt; one sign per prompt."""


@dataclass(frozen=True)
class Painted:
    """What an arm painted.

    Attributes:
        row: its figures, as JSON has them.
        images_BHW3: uint8 pictures of the first noise.
        others_BHW3: of the second noise, the first prompts alone; None where it was not asked for.
    """

    row: dict[str, Any]
    images_BHW3: np.ndarray
    others_BHW3: np.ndarray | None


def painted(study: Study, arm: Arm, strength: float, *, sampler: str = "euler", other_BCHW=None) -> Painted:
    """Paint every prompt.

    Args:
        other_BCHW: a second noise for the first prompts; then effective guidance is measured as well.
    """
    parts, seconds, sampled = [], 0.0, None
    with Passes(study.base) as counter:
        for positive, noise_BCHW in _batches(study):
            start = now()
            guider, states, images = _sampled(study, arm, positive, strength, sampler, noise_BCHW)
            seconds += now() - start
            parts.append(images)
            sampled = sampled or [x[: study.few] for x in states]
    shown = np.concatenate(parts)
    # a reflection runs a second network, so it counts for itself
    passes = getattr(guider, "passes", counter.rows / len(shown)) / STEPS
    row = {**arm.named, "sampler": sampler, "strength": strength, "passes": round(passes, 3)}
    row |= {"milliseconds": round(1000 * seconds / len(shown), 1), "right": judged(study, shown), **told(shown)}
    if other_BCHW is None:
        return Painted(row, shown, None)
    row["effective"] = _effective(study, sampled or [])
    few = first_rows(study.bench.conditionings[0], len(other_BCHW))
    others = _sampled(study, arm, few, strength, sampler, other_BCHW)[2]
    return Painted(row | {"diversity": apart(shown[: len(others)], others)}, shown, others)


def _batches(study: Study) -> list[tuple[list, torch.Tensor]]:
    from lab.demo_world.measure import BATCH

    return list(zip(study.bench.conditionings, study.bench.noise_NCHW.split(BATCH), strict=True))


def _sampled(study: Study, arm: Arm, positive: list, strength: float, sampler: str, noise_BCHW) -> tuple:
    from lab.demo_world.measure import pictures

    teacher, prompt, cfg = arm.prepare(study, positive, strength, sampler)
    states, _ = teacher.sample(prompt, study.bench.null, noise_BCHW, study.sigmas, cfg)
    return teacher.guider, states, pictures(study.vae, study.base.model.process_latent_out(states[-1]))


def _effective(study: Study, states: list[torch.Tensor]) -> float:
    """Effective guidance along the arm's own path."""
    where, moves = study.moves(states)
    return round(mean_guidance(moves, *study.branches(where)), 3)


def judged(study: Study, images_BHW3: np.ndarray) -> dict[str, str]:
    """What is right, prompt by prompt: category -> signs."""
    from lab.demo_world.verifier import CATEGORIES, judge

    verdicts = [judge(image, claim) for image, claim in zip(images_BHW3, study.bench.claims, strict=True)]
    signs = {name: "".join(SIGN[verdict.categories[name]] for verdict in verdicts) for name in CATEGORIES}
    return {**signs, "overall": "".join(SIGN[verdict.overall] for verdict in verdicts)}


def told(images_BHW3: np.ndarray) -> dict[str, float]:
    """Saturation, contrast, clipping: means over pictures."""
    from teefusion_core.evaluation.image_metrics import clipping, contrast, saturation

    x = torch.from_numpy(images_BHW3 / 255)
    return {
        "saturation": round(float(saturation(x).mean()), 4),
        "contrast": round(float(contrast(x).mean()), 4),
        "clipped": round(float(clipping(x).mean()), 5),
    }


def likeness(images_BHW3: np.ndarray, others_BHW3: np.ndarray) -> dict[str, float]:
    """PSNR with SSIM, means over pictures; equal pictures count as 60 dB."""
    from teefusion_core.evaluation.image_metrics import psnr, ssim

    a, b = (torch.from_numpy(images / 255) for images in (images_BHW3, others_BHW3))
    return {"psnr": round(float(psnr(a, b).clamp(max=60).mean()), 2), "ssim": round(float(ssim(a, b).mean()), 4)}


def apart(images_BHW3: np.ndarray, others_BHW3: np.ndarray) -> float:
    """Diversity over two noises, mean over prompts."""
    from teefusion_core.evaluation.image_metrics import diversity

    return round(float(diversity(torch.from_numpy(np.stack((images_BHW3, others_BHW3)) / 255)).mean()), 4)
