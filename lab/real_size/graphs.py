"""The shipped workflows for real weights, at few pixels and steps."""

from __future__ import annotations

import json
from typing import Any

from runner.graph import Json, to_prompt
from runner.places import WORKFLOWS

PUBLISHED, GAP, DISTILL = "02 TeEFusion SD3-medium", "05 W2SD SD3.5 with a LoRA", "07 Distill SD3.5-medium"
PROMPTS = "A serene mountain lake at sunset\nA cat asleep on a stack of books"
TRAINED = {
    "prompts": PROMPTS, "steps": 3, "teacher_steps": 2, "batch_size": 1, "rank": 8, "images_per_trajectory": 1,
    "cache_size": 1, "reuse": 4.0, "preview_every": 0, "name": "real_size", "calibration": 0,
}  # fmt: skip
"""Inputs of Distill Trainer in the quick run."""


def quick(name: str, info: Json, *, pixels: int, steps: int, **trainer: Any) -> Json:
    """Return a shipped workflow as an API prompt, at a size and a number of steps.

    Args:
        name: of the workflow.
        info: the server's description of its nodes.
        trainer: more inputs of Distill Trainer.
    """
    prompt = to_prompt(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), info)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "DistillTrainer":
            inputs |= TRAINED | {"width": pixels, "height": pixels} | trainer
        elif node["class_type"] == "EmptySD3LatentImage":
            inputs |= {"width": pixels, "height": pixels}
        elif "steps" in inputs:
            inputs["steps"] = steps
    return prompt


def with_one_encoder(prompt: Json) -> Json:
    """Return a prompt whose only text encoder is CLIP-L, the smallest one."""
    for node in prompt.values():
        if node["class_type"] == "TripleCLIPLoader":
            node |= {"class_type": "CLIPLoader", "inputs": {"clip_name": "clip_l.safetensors", "type": "sd3"}}
    return prompt


def node_of(prompt: Json, kind: str) -> str:
    """Return the id of the only node of a class."""
    (found,) = [key for key, node in prompt.items() if node["class_type"] == kind]
    return found


def trained_student(distill: Json, file: str, guidance: float | None, *, pixels: int, steps: int) -> Json:
    """Return a prompt that samples the student of a training run, with the loaders of that run's prompt.

    Args:
        distill: prompt of the run.
        file: student file in the output folder; empty for the base.
        guidance: w of the term; None leaves the term out.
    """
    base = node_of(distill, "CheckpointLoaderSimple")
    graph: Json = {base: distill[base]}

    def add(key: str, kind: str, **inputs: Any) -> list:
        graph[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": key}}
        return [key, 0]

    model, clip, vae = ([base, place] for place in range(3))
    positive = add("positive", "CLIPTextEncode", text=PROMPTS.splitlines()[0], clip=clip)
    negative = add("negative", "CLIPTextEncode", text="", clip=clip)
    if file:
        model = add("student", "TeEFusionStudentLoader", model=model, student=file)
    if guidance is not None:
        fusion = add(
            "fusion", "TeEFusionConditioning", model=model, positive=positive, null=negative, guidance=guidance
        )
        model, positive = fusion, [fusion[0], 1]
    latent = add("latent", "EmptySD3LatentImage", width=pixels, height=pixels, batch_size=1)
    samples = add(
        "sampler", "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=1,
        steps=steps, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    add("save", "SaveImage", images=add("decoded", "VAEDecode", samples=samples, vae=vae), filename_prefix="student")
    return graph
