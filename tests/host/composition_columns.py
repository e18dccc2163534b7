"""Student, reflection with one network, reflection over a LoRA gap: each with a literal twin of stock parts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from .composition_parts import CHANGES, FINAL, NOTHING, SAME, SEED, STRONG, STUDENT, W2SD, WEAK, Setup, W, Z
from .reflection_parts import SD3_LORA, relative

EQUAL, OTHER = 2e-4, 1e-3
STUDENT_FILE = "demo_sd3_student.safetensors"


def sampled(top, setup, guider, sampler):
    parts = top.host.custom_sampler
    noise, nothing = parts.RandomNoise.execute(SEED).args[0], parts.DisableNoise.execute().args[0]
    sigmas = top.pack.comfy_host.schedule(guider.model_patcher, "normal", setup.steps, setup.denoise)
    pieces = parts.SplitSigmas.execute(sigmas, setup.steps // 2).args if setup.split else [sigmas]
    latent = setup.latent
    with setup.around():
        for piece in pieces:
            latent = parts.SamplerCustomAdvanced.execute(noise, guider, sampler, piece, latent).args[0]
            noise = nothing
    assert torch.isfinite(latent["samples"]).all()
    return latent["samples"]


def stock_guider(top, setup, cfg):
    guider = top.comfy.samplers.CFGGuider(setup.model)
    guider.set_conds(setup.positive, setup.negative)
    guider.set_cfg(cfg)
    return guider


def literal_reflection(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Reflection of a stock guider written out: down strong, up weak, down again; never at the last step."""
    guider = model.inner_model

    def slope(x, sigma, cfg):
        guider.cfg = cfg
        return (x - model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))) / sigma

    for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
        if there > 0:
            below = x + (there - here) * slope(x, here, STRONG)
            x = below + (here - there) * slope(below, there, WEAK)
        x = x + (there - here) * slope(x, here, FINAL)
    return x


class Column:
    """One way to sample, on the demo SD3."""

    def __init__(self, top):
        self.top = top

    def base(self, dtype):
        """The demo network in a data type; loaded once."""
        if dtype == torch.float32:
            return self.top.world().model
        if dtype not in self.top.kept:
            path = str(self.top.models / "demo_sd3_base.safetensors")
            options = {"dtype": dtype}
            self.top.kept[dtype] = self.top.comfy.sd.load_diffusion_model(path, model_options=options)
        return self.top.kept[dtype]

    def prompts(self):
        world = self.top.world()
        return {"positive": world.positive, "other": world.other, "negative": world.negative}

    def start(self, **fields):
        return self.wired(Setup(**{"latent": {"samples": torch.zeros(1, 16, 8, 8)}, **self.prompts(), **fields}))


class Student(Column):
    """The shipped student with its guidance in the prompt."""

    name = STUDENT

    def wired(self, setup):
        base = self.base(setup.dtype)
        path = self.top.models / STUDENT_FILE
        key = ("student", setup.dtype)
        if key not in self.top.kept:
            self.top.kept[key] = self.top.pack.comfy_host.load_student(base, path)
        return replace(setup, model=self.top.kept[key])

    def ours(self, setup, change, before=False):
        """Sample with the change wired behind our node, or in front of it."""
        node = self.top.pack.nodes["TeEFusionConditioning"]
        if before:
            setup = change(setup)
        null = self.prompts()["negative"]
        model, positive = node.execute(setup.model, setup.positive, null, W).args
        _, other = node.execute(setup.model, setup.other, null, W).args
        setup = replace(setup, model=model, positive=positive, other=other)
        return self.run(setup if before else change(setup))

    def twin(self, setup, change):
        """The student's weights with the formula written into the text embedder, at the w of its calibration."""
        network, info = setup.model.model.diffusion_model, setup.model.get_attachment("teefusion_student")
        null_1P = self.prompts()["negative"][0][1]["pooled_output"]
        assert info["guidance_precision"] == "exact"
        curve = json.loads(info["calibration"])
        inner = float(np.interp(W, curve["wanted"], curve["inner"]))

        def forward(y_BP):
            from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

            F, G, null = network.y_embedder.mlp, network.t_embedder.mlp, null_1P.to(y_BP)
            psi = timestep_embedding(torch.tensor([1000.0 * inner]), 256).to(y_BP)
            guided = F(y_BP) + info["gain"] * G(psi) * F(y_BP - null)
            return torch.where((y_BP == null).all(-1, keepdim=True), F(y_BP), guided)

        model = setup.model.clone()
        model.add_object_patch("diffusion_model.y_embedder.forward", forward)
        return self.run(change(replace(setup, model=model)))

    def run(self, setup):
        euler = self.top.comfy.samplers.sampler_object("euler")
        return sampled(self.top, setup, stock_guider(self.top, setup, setup.cfg), euler)


class OneNetwork(Column):
    """Z-Sampling: strong and weak are one network at two scales."""

    name = Z

    def wired(self, setup):
        return replace(setup, model=self.base(setup.dtype))

    def ours(self, setup, change, before=False):
        setup, host = change(setup), self.top.pack.comfy_host
        guider = host.ReflectionGuider(setup.model, setup.weak, scales=host.Scales(STRONG, WEAK, FINAL))
        guider.set_conds(setup.positive, setup.negative)
        return sampled(self.top, setup, guider, host.ReflectionSampler())

    def twin(self, setup, change):
        setup = change(setup)
        literal = self.top.comfy.samplers.KSAMPLER(literal_reflection)
        return sampled(self.top, setup, stock_guider(self.top, setup, FINAL), literal)


class LoraGap(OneNetwork):
    """W2SD: strong has a LoRA, weak has not, on one copy of the weights; its twin has a copy for each."""

    name = W2SD

    def wired(self, setup):
        base = self.base(setup.dtype)
        return replace(setup, model=self.top.lora(base, SD3_LORA, seed=31), weak=base)

    def twin(self, setup, change):
        key = ("second copy", setup.dtype)
        if key not in self.top.kept:
            path = str(self.top.models / "demo_sd3_base.safetensors")
            self.top.kept[key] = self.top.comfy.sd.load_diffusion_model(path, model_options={"dtype": setup.dtype})
        return self.ours(replace(setup, weak=self.top.kept[key]), change)


COLUMNS = (Student, OneNetwork, LoraGap)


def columns_of(top, folder):
    """Return the columns by name; `folder` is for models that are saved."""
    top.folder, top.models = folder, top.pack.comfy_host.load_demo.__globals__["MODELS"]
    return {column.name: column(top) for column in COLUMNS}


def check_cell(row, column, equal=EQUAL):
    """Check one cell against its twin; return the outcome as the table has it."""
    top = column.top

    def change(setup):
        return row.change(top, setup)

    setup = column.start(**row.settings, **row.own)
    if column.name in row.refused:
        with pytest.raises(top.pack.errors.InvalidConfig, match=row.refused[column.name]) as caught:
            column.ours(setup, change)
        return f"refused: {caught.value}"
    got = column.ours(setup, change)
    if row.on_model:
        assert relative(column.ours(setup, change, before=True), got) < equal, "the order of the nodes matters"
    plain = column.ours(column.start(**row.settings), _unchanged)
    if row.expected in (SAME, NOTHING):
        assert relative(got, plain) < equal
    if row.expected == NOTHING:
        assert relative(column.twin(setup, change), column.twin(setup, _unchanged)) < equal
    if row.expected == CHANGES:
        assert relative(got, column.twin(setup, change)) < equal
        assert got.shape != plain.shape or relative(got, plain) > OTHER
    return row.expected


def _unchanged(setup):
    return setup
