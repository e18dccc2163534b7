"""Families of models, as rows of a table: the formula, the trainer, the loader on the host's own small networks.

`scripts/bench.py backbones` runs this file, then writes its cells as a table.
"""

import pytest
import torch

from teefusion_core.files.student_file import write_student
from teefusion_core.guidance.architectures import architecture_of
from teefusion_core.training.loop_settings import TrainSettings
from teefusion_core.training.settings import DistillSettings
from teefusion_core.training.targets import Example

from .backbones_parts import BACKBONES, WITHOUT, built, prompt
from .reflection_parts import randn, relative, weights_of

W, GAIN, STEPS, SEED = 3.0, 0.2, 3, 4
EQUAL, OTHER = 1e-4, 1e-3

each = pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)


@pytest.fixture(scope="module")
def model_of(host):
    kept = {}

    def get(backbone):
        if backbone.name not in kept:
            kept[backbone.name] = built(host, backbone)
        return kept[backbone.name]

    return get


@pytest.fixture
def tell(backbone, record_property):
    return lambda column, outcome: record_property("cell", "|".join((backbone.name, column, outcome)))


def sampled(host, backbone, model, positive, negative, cfg=1.0):
    noise = randn(SEED, 1, *backbone.latent)
    options = {"denoise": 1.0, "seed": SEED, "disable_pbar": True}
    arguments = (STEPS, cfg, "euler", "normal", positive, negative, torch.zeros_like(noise))
    out = host.comfy.sample.sample(model, noise, *arguments, **options)
    assert torch.isfinite(out).all()
    return out


def literal_twin(host, backbone, model, null, w, gain):
    """The MODEL with G(psi(1000 w)) * F(c - null) written into the forward of F, parts named by hand."""
    from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

    network = model.model.diffusion_model
    noise = randn(0, 1, *backbone.latent)
    sizes = {"width": 8 * noise.shape[-1], "height": 8 * noise.shape[-2]}  # SDXL is conditioned on them
    null_1Y = model.model.encode_adm(pooled_output=null[0][1]["pooled_output"], noise=noise, device="cpu", **sizes)
    F, G = backbone.text(network), backbone.time(network)
    whole = F.forward

    def forward(y_BY):
        psi = timestep_embedding(torch.tensor([1000.0 * w]), backbone.waves)
        return whole(y_BY) + gain * G(psi) * whole(y_BY - null_1Y.to(y_BY))

    twin = model.clone()
    path = backbone.path + (".mlp" if F is not network.get_submodule(backbone.path) else "")
    twin.add_object_patch(f"diffusion_model.{path}.forward", forward)
    return twin


def distillation(host, pack, backbone, model, positives=None, **options):
    parts, cfg = pack.comfy_host, host.comfy.samplers.CFGGuider(model)
    settings = dict(
        teacher_steps=STEPS,
        images_per_trajectory=2,
        cache_size=1,
        rank=2,
        initial_gain_ratio=0.3,
        guidance_max=6.0,
        mixed_precision=False,
    )
    return parts.Distillation(
        model, parts.Teacher(cfg, host.comfy.samplers.sampler_object("euler")),
        parts.Prompts(positives or [prompt(backbone, 1), prompt(backbone, 3)], "prompt"),
        parts.Prompts([prompt(backbone, 2)], "null"), DistillSettings(**settings | options), latent_CHW=backbone.latent,
    )  # fmt: skip


@each
def test_the_formula(backbone, host, pack, model_of, tell):
    model = model_of(backbone)
    assert architecture_of(model.model.diffusion_model).name == backbone.family
    positive, null, before = prompt(backbone, 1), prompt(backbone, 2), weights_of(model)
    fused = pack.comfy_host.apply_fusion(model, positive, null, W, gain=GAIN, guidance_precision="exact")
    with torch.inference_mode():
        plain = sampled(host, backbone, model, positive, null)
        got = sampled(host, backbone, *fused, null)
        twin = sampled(host, backbone, literal_twin(host, backbone, model, null, W, GAIN), positive, null)
        again = sampled(host, backbone, model, positive, null)
    assert relative(got, twin) < EQUAL and relative(got, plain) > OTHER
    assert torch.equal(again, plain)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    tell("family", backbone.family)
    tell("conditioning", "equals the formula")


@each
def test_guided_a_second_time_its_negative_rows_stay_as_they_are(backbone, host, pack, model_of):
    model, cfg = model_of(backbone), 2.5
    positive, null = prompt(backbone, 1), prompt(backbone, 2)
    fused, guided = pack.comfy_host.apply_fusion(model, positive, null, W, gain=GAIN)

    def once(which, prompts, cfg, negative):
        guider = host.comfy.samplers.CFGGuider(which)
        guider.set_conds(prompts, negative)
        guider.set_cfg(cfg)
        seen = []

        def step(network, x, sigmas, extra_args=None, callback=None, disable=None):
            seen.append(network(x, sigmas[0] * x.new_ones(len(x)), **(extra_args or {})))
            return x

        noise, sampler = randn(SEED, 1, *backbone.latent), host.comfy.samplers.KSAMPLER(step)
        sigmas = pack.comfy_host.schedule(which, "normal", STEPS, 1.0)
        guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=SEED)
        return seen[0]

    with torch.inference_mode():
        cond, uncond = once(fused, guided, 1.0, null), once(model, null, 1.0, null)
        assert relative(once(fused, guided, cfg, null), uncond + cfg * (cond - uncond)) < EQUAL


@each
def test_two_steps_of_training_make_a_student_that_loads(backbone, host, pack, model_of, tell, tmp_path):
    parts, model = pack.comfy_host, model_of(backbone)
    positive, null, before = prompt(backbone, 1), prompt(backbone, 2), weights_of(model)
    with torch.inference_mode(False), torch.enable_grad():
        distil = distillation(host, pack, backbone, model)
        loop = TrainSettings(steps=2, batch_size=2, learning_rate=0.02, warmup_steps=0, ema_decay=0.0)
        student = parts.Training(distil, loop, root=tmp_path, name="run", teacher="CFG").run()
    assert student.finished and len(student.losses) == 2 and all(0 < loss < 1e6 for loss in student.losses)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    write_student(tmp_path / "student.safetensors", student.file.tensors, student.file.info)
    with torch.inference_mode():
        loaded = parts.load_student(model, tmp_path / "student.safetensors")
        got = sampled(host, backbone, *parts.apply_fusion(loaded, positive, null, W), null)
        merged = literal_twin(host, backbone, loaded, null, W, student.file.info.gain)
        assert relative(got, sampled(host, backbone, merged, positive, null)) < EQUAL
        fused = parts.apply_fusion(model, positive, null, W, gain=student.file.info.gain, guidance_precision="exact")
        assert relative(got, sampled(host, backbone, *fused, null)) > OTHER, "the update is heard"
    with pytest.raises(pack.errors.CheckpointMismatch):
        parts.load_student(built(host, backbone, seed=9), tmp_path / "student.safetensors")
    tell("trainer", f"2 steps, {len(student.file.tensors)} tensors")
    tell("loader", "its file on its base")


@each
def test_gradients_are_right_with_activations_kept_or_made_again(backbone, host, pack, model_of):
    """Against a finite difference: the host's blocks may write over what a backward pass needs."""
    model, step, gradients, kept = model_of(backbone), 2e-2, [], []
    x, rows = randn(5, 2, *backbone.latent), torch.zeros(2, dtype=torch.long)
    half, w = torch.full((2,), 0.5), torch.full((2,), W)
    example = Example(x, half, w, rows, rows, randn(6, *x.shape), randn(7, *x.shape), half)
    with torch.inference_mode(False), torch.enable_grad():
        for checkpointing in (False, True):
            distil = distillation(host, pack, backbone, model, gradient_checkpointing=checkpointing)
            weights = list(distil.student.update.parameters())
            start = torch.cat([0.1 * randn(number, *weight.shape).flatten() for number, weight in enumerate(weights)])

            def at(place, distil=distil, weights=weights):
                torch.nn.utils.vector_to_parameters(place, weights)
                return distil.loss(example)

            plain = distil.network.velocity(x, half, distil.positives.batch([0, 0]))
            with distil.in_training():
                assert relative(distil.network.velocity(x, half, distil.positives.batch([0, 0])), plain) < EQUAL, (
                    "an update of zero changes nothing"
                )
                with torch.autograd.graph.saved_tensors_hooks(lambda x: kept[-1].append(x.nbytes) or x, lambda x: x):
                    kept.append([])
                    loss = at(start)
                gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
                along = gradient / gradient.norm()
                slope = (at(start + step * along) - at(start - step * along)) / (2 * step)
            assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.02)
            gradients.append(gradient)
    assert relative(*gradients) < EQUAL
    assert sum(kept[1]) < 0.5 * sum(kept[0]), "most activations are made again"


def _sized(backbone, seed, width):
    [[tokens, extras]] = prompt(backbone, seed)
    return [[tokens, extras | {"width": width, "height": width, "target_width": width, "crop_w": width // 8}]]


def _masked(backbone, seed, words):
    [[tokens, extras]] = prompt(backbone, seed)
    return [[tokens, extras | {"attention_mask": (torch.arange(tokens.shape[1]) < words).long()[None]}]]


@pytest.mark.parametrize(("name", "make", "values", "method"), [
    ("SDXL", _sized, (512, 2048, 512), "teefusion"), ("SDXL", _sized, (256, 64, 1024), "dice"),
    ("Lumina 2, Z-Image", _masked, (2, 5, 3), "dice"),
])  # fmt: skip
def test_prompts_that_differ_in_more_than_words_are_trained_as_if_alone(host, pack, name, make, values, method):
    [backbone] = [one for one in (*BACKBONES, *WITHOUT) if one.name == name]
    model, prompts = built(host, backbone), [make(backbone, number, value) for number, value in enumerate(values)]
    same_w = {"guidance_min": 4.0, "guidance_max": 4.0} if method == "dice" else {}
    with torch.inference_mode(False), torch.no_grad():
        distil = distillation(host, pack, backbone, model, positives=prompts, method=method, **same_w)
        x, sigma_B, w_B = randn(8, 3, *backbone.latent), torch.full((3,), 0.6), torch.full((3,), 4.0)
        together = distil.velocity([0, 1, 2], [0, 0, 0], w_B)(x, sigma_B)
        for row in range(3):
            one = slice(row, row + 1)
            assert relative(distil.velocity([row], [0], w_B[one])(x[one], sigma_B[one]), together[one]) < 1e-5
        own = slice(1, 2)
        first = prompts[1][0][0], prompts[0][0][1] | {"pooled_output": prompts[1][0][1]["pooled_output"]}
        distil.positives.entries[1] = first
        wrong = distil.velocity([1], [0], w_B[own])(x[own], sigma_B[own])
        heard = relative(wrong, together[own]) > OTHER
        assert heard or make is _masked, "newer hosts leave the mask of Lumina out"


@pytest.mark.parametrize("backbone", WITHOUT, ids=lambda backbone: backbone.name)
def test_without_pooled_text_it_says_what_is_missing(backbone, host, pack, tell):
    model = built(host, backbone)
    said = "^TeEFusion Conditioning: .*guidance lora.*DICE Sharpen"
    with pytest.raises(pack.errors.UnsupportedArchitecture, match=said):
        pack.nodes["TeEFusionConditioning"].execute(model, prompt(backbone, 1), prompt(backbone, 2), W)
    tell("family", "refused")
    tell("conditioning", backbone.missing + "; guidance lora and DICE Sharpen are offered")
