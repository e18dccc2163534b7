"""Whether a student follows a negative prompt, which reaches it through the pooled text only.

Prompts leave their background open, and each background in turn is the negative prompt: it must not show up.
Shapes: R prompts, N negatives, P pooled width, D model width, B C H W latent.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.demo_world.captions import open_prompts
from lab.demo_world.distill_student import NEGATIVES, Recipe, distilled
from lab.demo_world.measure import encode, pictures, sample
from lab.demo_world.scenes import BACKGROUNDS
from lab.demo_world.verifier import judge
from teefusion_core.guidance.architectures import architecture_of
from teefusion_core.guidance.cfg import cfg_scale_of

from ._study import Study, load

W, PROMPTS = 2.0, 64
"""Guidance of the images, and number of prompts."""
RECIPE: dict[str, Any] = {
    "trainable": "everything", "method": "teefusion split", "negative_share": 0.5, "trajectories": 150, "steps": 3500,
    "initial_gain_ratio": 2.0,
}  # fmt: skip
"""This student is trained for longer than others: it must learn what its base cannot do, see `_pooled_share`."""
READOUT_SHARE, RIDGE = 0.75, 1e-2
"""Share of the prompts that a readout is fitted on, and its penalty for inputs of variance 1."""
Arm = tuple[str, int, Callable]
"""Name, passes per step, and (prompt, negative) -> (model, prompt)."""


def measure(study: Study) -> dict[str, Any]:
    """Return how often each method shows what it should avoid, and how much of a negative prompt the term keeps."""
    path = distilled(Recipe(**RECIPE))
    with torch.inference_mode():
        texts, claims = open_prompts(PROMPTS)
        positive = encode(study.clip, texts)
        encoded = [encode(study.clip, [text]) for text in NEGATIVES]
        negatives = dict(zip(BACKGROUNDS, encoded, strict=True))
        arms = _arms(study, load(study.base, path))
        return {
            "settings": {"prompts": PROMPTS, "w": W, **RECIPE},
            "rows": [row_of(study, arm, positive, claims, negatives) for arm in arms],
            "terms": _terms(study, positive, encoded),
            "pooled_share": _pooled_share(study, positive, encoded),
        }


def _arms(study: Study, student: Any) -> list[Arm]:
    from teefusion_core.comfy_host.guidance.attachments import STUDENT_KEY
    from teefusion_core.comfy_host.guidance.patch import apply_fusion

    untrained = study.base.clone()
    untrained.set_attachments(STUDENT_KEY, student.get_attachment(STUDENT_KEY))
    fused = partial(apply_fusion, student, guidance=W)
    return [
        ("base", 1, lambda prompt, _: (study.base, prompt)),
        ("base with the term, untrained", 1, partial(apply_fusion, untrained, guidance=W)),
        ("CFG teacher", 2, lambda prompt, _: (study.base, prompt)),
        ("student, empty prompt", 1, lambda prompt, _: fused(prompt, study.bench.null)),
        ("student", 1, fused),
    ]


def row_of(study: Study, arm: Arm, positive: list, claims: list, negatives: dict[str, list]) -> dict[str, Any]:
    name, passes, prepare = arm
    noise_BCHW = study.bench.noise_NCHW[:PROMPTS]
    cfg = cfg_scale_of(W) if passes == 2 else 1.0
    unwanted, right = [], []
    for ground, negative in negatives.items():
        model, prompt = prepare(positive, negative)
        shown = pictures(study.vae, sample(model, prompt, negative, cfg, noise_BCHW, 0))
        verdicts = [judge(image, claim) for image, claim in zip(shown, claims, strict=True)]
        unwanted += [verdict.background == ground for verdict in verdicts]
        right += [verdict.overall for verdict in verdicts]
    return {"method": name, "passes": passes, "unwanted": float(np.mean(unwanted)), "overall": float(np.mean(right))}


def _terms(study: Study, positive: list, negatives: list[list]) -> list[dict[str, Any]]:
    """Return the size of the text part of the term, and how well a linear readout of it separates the negatives."""
    import comfy.model_management

    # students share this network, and the one that was sampled last would still be applied to it
    comfy.model_management.load_models_gpu([study.base], force_full_load=True)
    network = study.base.model.diffusion_model
    _, pooled_embed = architecture_of(network).embedders(network, torch.float32)
    c_RP, null_1P, *n = (text[0][1]["pooled_output"].float() for text in (positive, study.bench.null, *negatives))
    n_NP = torch.cat(n)
    c_R1P, f_R1D = c_RP[:, None], pooled_embed(c_RP)[:, None]
    text = {
        "F(c)": (f_R1D, False),
        "F(c - null)": (pooled_embed(c_R1P - null_1P), False),
        "F(c - n)": (pooled_embed(c_R1P - n_NP), True),
        "F(c) - F(n)": (f_R1D - pooled_embed(n_NP), True),
    }
    rows, quantiles = [], {"least": 0.0, "median": 0.5, "greatest": 1.0}
    for name, (text_RND, negative) in text.items():
        sizes = {of: float(text_RND.norm(dim=-1).quantile(at)) for of, at in quantiles.items()}
        rows.append({"term": name, **sizes, "told_apart": _readout_accuracy(text_RND) if negative else None})
    return rows


def _readout_accuracy(text_RND: Tensor) -> float:
    """Return the share of unseen prompts whose negative a least-squares readout identifies."""
    rows, negatives, width = text_RND.shape
    inputs = (text_RND - text_RND.mean((0, 1))) / text_RND.std()
    inputs = torch.cat((inputs, torch.ones(rows, negatives, 1)), -1).double()
    seen = int(rows * READOUT_SHARE)
    x, y = inputs[:seen].flatten(0, 1), torch.eye(negatives, dtype=torch.double).repeat(seen, 1)
    penalty = RIDGE * len(x) * torch.eye(width + 1, dtype=torch.double)
    readout = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    named = (inputs[seen:] @ readout).argmax(-1)
    return float((named == torch.arange(negatives)).double().mean())


def _pooled_share(study: Study, positive: list, negatives: list[list]) -> float:
    """Return the effect on the base's first step of a background in the pooled text only, as a share of all."""
    noise_BCHW = study.bench.noise_NCHW[:PROMPTS]
    where = [(noise_BCHW * float(study.sigmas[0]), study.sigmas[0])]
    whole, alone = [], []
    for [(context_BLE, extras)] in negatives:
        pooled = {"pooled_output": extras["pooled_output"].expand(PROMPTS, -1)}
        whole += study.velocities(study.base, [[context_BLE.expand(PROMPTS, -1, -1), pooled]], where)
        alone += study.velocities(study.base, [[positive[0][0], pooled]], where)
    of_whole, of_pooled = (torch.stack(found) - torch.stack(found).mean(0) for found in (whole, alone))
    return float((of_pooled * of_whole).sum() / of_whole.square().sum())


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["method", "passes/step", "unwanted background", "all right"]]
    for row in result["negatives"]["rows"]:
        lines.append([row["method"], str(row["passes"]), f"{100 * row['unwanted']:.1f} %", f"{row['overall']:.3f}"])
    return lines


def cause_table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["text part", "least size", "median", "greatest", "negative named"]]
    for row in result["negatives"]["terms"]:
        named = "" if row["told_apart"] is None else f"{100 * row['told_apart']:.0f} %"
        lines.append([row["term"], *(f"{row[name]:.0f}" for name in ("least", "median", "greatest")), named])
    return lines


def base_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading and the effect of a background on the base's first step, by where the prompt names it."""
    share = result["negatives"]["pooled_share"]
    return [
        ["background given in", "its effect on the base's first step"],
        ["tokens with pooled text", "100 %"],
        ["pooled text alone", f"{100 * share:.1f} %"],
    ]
