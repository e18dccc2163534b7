"""Whether a student hears a negative prompt, which reaches it by its pooled text alone.

Prompts leave their background open, each background in turn is the negative prompt: what has heard it paints another.
Shapes: R prompts, N negatives, P pooled width, D model width, B C H W latent.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._study import Study, load

W, PROMPTS = 2.0, 64
"""Guidance at which pictures are painted; how many prompts."""
TAUGHT: dict[str, Any] = {
    "trainable": "everything", "method": "teefusion split", "negative_share": 0.5, "trajectories": 150, "steps": 3500,
    "initial_gain_ratio": 2.0,
}  # fmt: skip
"""The recipe of the student, taught for longer: it has to learn what its base never did, see `_pooled_share`."""
READ_FROM, RIDGE = 0.75, 1e-2
"""Share of the prompts that a readout is fitted on; its penalty, beside inputs of variance 1."""
Arm = tuple[str, int, Callable]
"""Name, passes per step, (prompt, negative) -> (model, prompt)."""


def measure(study: Study) -> dict[str, Any]:
    """Return how often each way to sample paints what it was told to avoid, then what of a negative the term keeps."""
    from lab.demo_world.distill_student import NEGATIVES, Recipe, distilled
    from lab.demo_world.measure import encode
    from lab.demo_world.scenes import BACKGROUNDS

    path = distilled(Recipe(**TAUGHT))
    with torch.inference_mode():
        texts, claims = _open_prompts()
        positive = encode(study.clip, texts)
        encoded = [encode(study.clip, [text]) for text in NEGATIVES]
        negatives = dict(zip(BACKGROUNDS, encoded, strict=True))
        arms = _arms(study, load(study.base, path))
        return {
            "settings": {"prompts": PROMPTS, "w": W, **TAUGHT},
            "rows": [_painted(study, arm, positive, claims, negatives) for arm in arms],
            "terms": _terms(study, positive, encoded),
            "pooled_share": _pooled_share(study, positive, encoded),
        }


def _arms(study: Study, student: Any) -> list[Arm]:
    """Every way to sample that is compared."""
    from teefusion_core.comfy_host.guidance.patch import STUDENT_KEY, apply_fusion

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


def _painted(study: Study, arm: Arm, positive: list, claims: list, negatives: dict[str, list]) -> dict[str, Any]:
    from lab.demo_world.measure import pictures, sample
    from lab.demo_world.verifier import judge
    from teefusion_core.guidance.cfg import cfg_scale_of

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


def _open_prompts() -> tuple[list[str], list[Any]]:
    """Held-out prompts that say nothing of the background, with their claims."""
    from lab.demo_world.captions import caption
    from lab.demo_world.scenes import sample_picture

    rng = random.Random(7)
    scenes = (sample_picture(rng, held_out=True)[0] for _ in range(PROMPTS))
    claims = [replace(scene, background=None) for scene in scenes]
    return [caption(claim, rng) for claim in claims], claims


def _terms(study: Study, positive: list, negatives: list[list]) -> list[dict[str, Any]]:
    """How large the text part of the term is, how well a linear readout of it tells one negative from another."""
    import comfy.model_management

    from teefusion_core.guidance.architectures import architecture_of

    # students share this network: the one that was sampled last would still be in it
    comfy.model_management.load_models_gpu([study.base], force_full_load=True)
    network = study.base.model.diffusion_model
    _, pooled_embed = architecture_of(network).embedders(network, torch.float32)
    c_RP, null_1P, n_NP = _pooled(positive), _pooled(study.bench.null), torch.cat([_pooled(n) for n in negatives])
    c_R1P, f_R1D = c_RP[:, None], pooled_embed(c_RP)[:, None]
    text = {
        "F(c)": (f_R1D, False),
        "F(c - null)": (pooled_embed(c_R1P - null_1P), False),
        "F(c - n)": (pooled_embed(c_R1P - n_NP), True),
        "F(c) - F(n)": (f_R1D - pooled_embed(n_NP), True),
    }
    return [_term(name, *of) for name, of in text.items()]


def _term(name: str, text_RND: Tensor, negative: bool) -> dict[str, Any]:
    sizes = text_RND.norm(dim=-1)
    quantiles = {"least": 0.0, "median": 0.5, "greatest": 1.0}
    found = {of: float(sizes.quantile(at)) for of, at in quantiles.items()}
    return {"term": name, **found, "told_apart": _told_apart(text_RND) if negative else None}


def _told_apart(text_RND: Tensor) -> float:
    """Share of unseen prompts whose negative a least-squares readout names."""
    rows, negatives, width = text_RND.shape
    inputs = (text_RND - text_RND.mean((0, 1))) / text_RND.std()
    inputs = torch.cat((inputs, torch.ones(rows, negatives, 1)), -1).double()
    seen = int(rows * READ_FROM)
    x, y = inputs[:seen].flatten(0, 1), torch.eye(negatives, dtype=torch.double).repeat(seen, 1)
    penalty = RIDGE * len(x) * torch.eye(width + 1, dtype=torch.double)
    readout = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    named = (inputs[seen:] @ readout).argmax(-1)
    return float((named == torch.arange(negatives)).double().mean())


def _pooled_share(study: Study, positive: list, negatives: list[list]) -> float:
    """What a background in the pooled text alone does to the base's first step, as a share of what whole prompts do."""
    noise_BCHW = study.bench.noise_NCHW[:PROMPTS]
    where = [(noise_BCHW * float(study.sigmas[0]), study.sigmas[0])]
    whole, alone = [], []
    for [(context_BLE, extras)] in negatives:
        pooled = {"pooled_output": extras["pooled_output"].expand(PROMPTS, -1)}
        whole += study.velocities(study.base, [[context_BLE.expand(PROMPTS, -1, -1), pooled]], where)
        alone += study.velocities(study.base, [[positive[0][0], pooled]], where)
    of_whole, of_pooled = (torch.stack(found) - torch.stack(found).mean(0) for found in (whole, alone))
    return float((of_pooled * of_whole).sum() / of_whole.square().sum())


def _pooled(conditioning: list) -> Tensor:
    return conditioning[0][1]["pooled_output"].float()


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per way to sample."""
    lines = [["method", "passes/step", "unwanted background", "all right"]]
    for row in result["negatives"]["rows"]:
        lines.append([row["method"], str(row["passes"]), f"{100 * row['unwanted']:.1f} %", f"{row['overall']:.3f}"])
    return lines


def cause_table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per text part that a term can be made of."""
    lines = [["text part", "least size", "median", "greatest", "negative named"]]
    for row in result["negatives"]["terms"]:
        named = "" if row["told_apart"] is None else f"{100 * row['told_apart']:.0f} %"
        lines.append([row["term"], *(f"{row[name]:.0f}" for name in ("least", "median", "greatest")), named])
    return lines


def base_table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with what a background does to the base's first step, by where the prompt tells of it."""
    share = result["negatives"]["pooled_share"]
    return [
        ["background told in", "its effect on the base's first step"],
        ["tokens with pooled text", "100 %"],
        ["pooled text alone", f"{100 * share:.1f} %"],
    ]
