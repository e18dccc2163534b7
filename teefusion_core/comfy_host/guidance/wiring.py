"""Wiring mistakes that only the whole graph shows."""

import math
from collections.abc import Mapping

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..notes import begin, warn
from ..prompt_graph import links
from .attachments import STUDENT_KEY, WRAPPER_KEY

FUSING = ("TeEFusionConditioning", "GuidanceSweep")
NO_SHARPENER = "none"
"""Option of Guidance Sweep."""
MODEL, CONDITIONING = 0, 1
"""Outputs of nodes that fuse."""
SCALES = {"cfg": "", "cfg1": " (cfg_conds)", "cfg2": " (cfg_cond2_negative)"}
"""CFG scales of the host's guiders: attribute -> input of the node, if it has another name."""
SAME = 1e-3
"""Difference of two noise levels that counts as none."""


def unused_models(prompt: Mapping) -> dict[str, str]:
    """Return a warning for each node that fuses whose CONDITIONING is used while no MODEL of such a node is.

    Args:
        prompt: graph of a run, node id -> {"class_type", "inputs"}, as a browser sends it.
    Returns:
        Warnings by node id.
    """
    nodes = {str(number): node for number, node in prompt.items() if isinstance(node, Mapping)}
    fusing = {number for number, node in nodes.items() if node.get("class_type") in FUSING and not _sharpens(node)}
    connected = {link for node in nodes.values() for link in links(node) if isinstance(link[1], int)}
    if any((number, MODEL) in connected for number in fusing):
        return {}
    text = "connect MODEL to the sampler too: without it the sampler ignores guidance."
    return {number: text for number in fusing if (number, CONDITIONING) in connected}


def _sharpens(node: Mapping) -> bool:
    """Return whether a sweep is one of a sharpener, which leaves the model as it is."""
    return (node.get("inputs") or {}).get("sharpener", NO_SHARPENER) != NO_SHARPENER


def note_run(guider, noise: Tensor, latent_image: Tensor, sampler, sigmas: Tensor, *_, **__) -> None:
    """Warn in the running node if a run guides a second time, or in other steps than the student has learned.

    Args:
        guider: GUIDER of the run.
        noise, latent_image, sampler, sigmas: as in its `outer_sample`; another pack may pass them by name.
    """
    begin()
    student = guider.model_patcher.get_attachment(STUDENT_KEY) or {}
    if (learned := student.get("student_steps", 0)) and not _learned(guider.model_patcher, student, sigmas):
        steps = len(sigmas) - 1
        warn(
            f"set steps to {learned}, scheduler to {student['scheduler']} and denoise to 1: the student learned to "
            f"sample in {learned} steps, but this run has {'other noise levels' if steps == learned else steps}."
        )
    for attribute, where in SCALES.items():
        cfg = getattr(guider, attribute, 1.0)
        if isinstance(cfg, (int, float)) and not math.isclose(cfg, 1.0):
            warn(f"set cfg to 1: it is {cfg:g}{where}, so images are guided twice.")
    # its steps use the negative prompt at any cfg
    method = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
    if method.endswith("_cfg_pp"):
        warn(f"choose {method.removesuffix('_cfg_pp')} as sampler: {method} guides a second time, even at cfg 1.")


def _learned(model_patcher, student: Mapping, sigmas: Tensor) -> bool:
    """Return whether all steps of a run follow each other in the schedule that a student has learned."""
    steps, scheduler = student["student_steps"], student["scheduler"]
    if scheduler not in comfy.samplers.SCHEDULER_HANDLERS:  # of another pack
        return len(sigmas) - 1 == steps
    known = comfy.samplers.calculate_sigmas(model_patcher.get_model_object("model_sampling"), scheduler, steps)
    first = int((known - sigmas[0].to(known)).abs().argmin())
    part = known[first : first + len(sigmas)]
    return len(part) == len(sigmas) and torch.allclose(part, sigmas.to(part), rtol=SAME, atol=SAME)


def note_unguided(executor, *args, **kwargs):
    """Warn once per run of a student that no node of ours guides; a wrapper of every student."""
    if not executor.class_obj.model_patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY):
        warn(
            "put TeEFusion Conditioning between the student and the sampler: without it, the student runs without "
            "guidance."
        )
    return executor(*args, **kwargs)
