"""A guidance LoRA on the demo model: the strength of its LoRA is the guidance, in our nodes and in the stock loader."""

import logging
import time

import pytest
import torch

from teefusion_core.files.student_file import write_student
from teefusion_core.guidance.calibration import Calibration
from teefusion_core.training.loop_settings import TrainSettings

from .distillation_parts import LATENT, TEXTS, shaken
from .reflection_parts import SD3_LORA, randn, relative, weights_of

METHOD = {"method": "guidance lora", "initial_gain_ratio": 0.0}
LOOP = TrainSettings(steps=2, batch_size=4, learning_rate=3e-3, save_every=1)
CURVE = Calibration([1.0, 3.0, 5.0], [1.5, 4.0, 6.5], [2.0, 4.0, 6.0], [1.7, 3.2, 5.0], [2.0, 4.0, 6.0])
NAME = "strong.safetensors"


@pytest.fixture(scope="module")
def path(pack, host, world, encoded, tmp_path_factory):
    """The file of a guidance LoRA that differs from its base, with a range from 1 to 6."""
    from teefusion_core.training.settings import DistillSettings

    parts = pack.comfy_host
    with torch.inference_mode(False), torch.no_grad():
        teacher = parts.Teacher(host.comfy.samplers.CFGGuider(world.model), host.comfy.samplers.sampler_object("euler"))
        prompts = parts.Prompts([encoded[TEXTS[0]]], "prompt"), parts.Prompts([encoded[""]], "null")
        settings = DistillSettings(guidance_min=1.0, guidance_max=6.0, rank=4, method=METHOD["method"])
        distil = shaken(parts.Distillation(world.model, teacher, *prompts, settings, latent_CHW=LATENT))
        file = distil.student.file(teacher="", base=parts.base_fingerprint(world.model), step=1)
    where = tmp_path_factory.mktemp("loras") / NAME
    file.write(where)
    return where


@pytest.fixture
def loras(path, add_folder):
    return add_folder("loras", path.parent)


def loaded(pack, model, name=NAME):
    return pack.nodes["TeEFusionStudentLoader"].execute(name, model).args[0]


def fused(pack, world, student, w):
    return pack.nodes["TeEFusionConditioning"].execute(student, world.positive, world.negative, w).args


def picture(top, world, model, positive=None, **options):
    with torch.inference_mode():
        return top.euler(world, model=model, cfg=1.0, positive=positive or world.positive, **options)


def strength_told(caplog):
    [line] = [text for text in caplog.messages if "LoRA strength" in text][-1:]
    return float(line.split("LoRA strength ")[1].split(";")[0])


@pytest.mark.parametrize("calibration", ["", CURVE.json()], ids=["plain", "calibrated"])
@pytest.mark.parametrize("w", [1.0, 2.7, 5.0])
def test_the_stock_loader_at_the_strength_that_the_node_tells(
    pack, top, world, path, tmp_path, add_folder, caplog, w, calibration
):
    from safetensors.torch import load_file

    import nodes
    from teefusion_core.files.student_file import read_student

    folder = add_folder("loras", tmp_path / "other")
    info = vars(read_student(path)[1]) | {"calibration": calibration}
    write_student(folder / "own.safetensors", load_file(path), type(read_student(path)[1])(**info))
    with caplog.at_level(logging.INFO):
        model, positive = fused(pack, world, loaded(pack, world.model, "own.safetensors"), w)
    inner = w if not calibration else float(CURVE.inner_of(torch.tensor([w])))
    assert strength_told(caplog) == pytest.approx(inner / 3.5, abs=1e-4)
    ours = picture(top, world, model, positive)
    [stock] = nodes.LoraLoaderModelOnly().load_lora_model_only(world.model, "own.safetensors", strength_told(caplog))
    assert relative(picture(top, world, stock), ours) < 1e-5
    assert relative(ours, picture(top, world, world.model)) > 3e-3, "the update is heard"


def test_at_zero_it_is_the_base_bit_for_bit(pack, top, world, path, tmp_path, distil):
    distillation = shaken(distil(**METHOD, guidance_min=0.0))
    x, sigma_B = randn(8, 2, *LATENT), torch.tensor([0.7, 0.3])
    with torch.no_grad(), distillation.in_training():
        rows = distillation.velocity([0, 1], [0, 0], torch.tensor([0.0, 4.0]))(x, sigma_B)
        with distillation.student.update.disabled():
            plain = distillation.network.velocity(x, sigma_B, distillation.positives.batch([0, 1]))
    assert torch.equal(rows[0], plain[0]) and relative(rows[1], plain[1]) > 1e-3
    file = distillation.student.file(teacher="", base=pack.comfy_host.base_fingerprint(world.model), step=1)
    file.write(tmp_path / "zero.safetensors")
    student = pack.comfy_host.load_student(world.model, tmp_path / "zero.safetensors")
    model, positive = fused(pack, world, student, 0.0)
    assert torch.equal(picture(top, world, model, positive), picture(top, world, world.model))


def test_a_new_w_keeps_the_base(pack, top, world, loras, record_property):
    before, student, images, seconds = weights_of(world.model), loaded(pack, world.model), [], []
    picture(top, world, student, steps=1)
    for w in (1.0, 3.0, 6.0):
        began = time.perf_counter()
        model, positive = fused(pack, world, student, w)
        with torch.inference_mode():
            pack.comfy_host.Network.__init__.__globals__["comfy"].model_management.load_models_gpu([model])
        seconds.append(time.perf_counter() - began)
        assert model.model is world.model.model, "one copy of the weights"
        images.append(picture(top, world, model, positive))
    record_property("seconds per change of w", seconds)
    assert relative(images[0], images[1]) > 1e-2 and relative(images[1], images[2]) > 1e-2
    assert torch.equal(picture(top, world, *fused(pack, world, student, 1.0)), images[0]), "and back"
    assert torch.equal(picture(top, world, student), picture(top, world, world.model)), "alone it is the base"
    top.assert_clean(world.model, before)


def test_a_step_costs_what_a_step_of_the_base_costs(pack, world, loras):
    model, positive = fused(pack, world, loaded(pack, world.model), 3.0)
    assert set(model.wrappers) == {"outer_sample"}, "nothing runs in a step"
    assert set(model.object_patches) == {"state_dict_for_saving"}
    assert positive == list(world.positive)


@pytest.mark.parametrize("w", [0.5, 6.5, [1.0, 2.0]])
def test_what_it_cannot_do_is_refused(pack, world, loras, w):
    with pytest.raises(pack.errors.InvalidConfig, match="1 to 6|one strength for the whole batch"):
        pack.comfy_host.apply_fusion(loaded(pack, world.model), world.positive, world.negative, w)


def test_a_second_guidance_on_the_same_model_is_refused(pack, top, world, loras):
    model, positive = fused(pack, world, loaded(pack, world.model), 3.0)
    again, _ = fused(pack, world, model, 3.0)
    assert torch.equal(picture(top, world, again), picture(top, world, model, positive)), "the same one is no mistake"
    with pytest.raises(pack.errors.InvalidConfig, match=r"strength 0\.8571.*0\.5714"):
        fused(pack, world, model, 2.0)


def test_beside_other_loras_in_any_order(pack, top, world, loras):
    def with_lora(model):
        return top.lora(model, SD3_LORA, strength=0.5, seed=5)

    before = fused(pack, world, loaded(pack, with_lora(world.model)), 3.0)
    between = fused(pack, world, with_lora(loaded(pack, world.model)), 3.0)
    model, positive = fused(pack, world, loaded(pack, world.model), 3.0)
    pictures = [picture(top, world, *pair) for pair in (before, between, (with_lora(model), positive))]
    assert relative(pictures[0], pictures[1]) < 1e-4 and relative(pictures[0], pictures[2]) < 1e-4
    assert relative(pictures[0], picture(top, world, model, positive)) > 1e-3


def test_a_lora_loader_is_no_mistake_for_it_alone(pack, world, loras, distil, tmp_path, add_folder, caplog):
    import nodes

    folder = add_folder("loras", tmp_path / "fused")
    with torch.inference_mode(False), torch.no_grad():
        student = shaken(distil()).student
        student.file(teacher="", base="", step=1).write(folder / "term.safetensors")
    note = pack.comfy_host.note_student_as_lora
    [legal] = nodes.LoraLoaderModelOnly().load_lora_model_only(world.model, NAME, 0.7)
    note(legal)
    assert "Load TeEFusion Student" not in caplog.text
    [wrong] = nodes.LoraLoaderModelOnly().load_lora_model_only(legal, "term.safetensors", 1.0)
    note(wrong)
    assert "Load TeEFusion Student" in caplog.text


def test_a_cfg_above_one_is_a_mistake(pack, top, world, loras, caplog):
    model, positive = fused(pack, world, loaded(pack, world.model), 3.0)
    with torch.inference_mode():
        top.euler(world, model=model, cfg=3.0, positive=positive, steps=1)
    assert "guided twice" in caplog.text
    caplog.clear()
    picture(top, world, model, positive, steps=1)
    ours = [record for record in caplog.records if "teefusion_core" in record.name]  # the host has warnings of its own
    assert not [record for record in ours if record.levelno >= logging.WARNING]


def test_as_the_strong_model_of_w2sd(pack, top, world, loras, host):
    """Strong and weak share their weights, and differ in the LoRA: it must be switched between the passes."""
    parts, scales = pack.comfy_host, pack.comfy_host.Scales(1.0, 1.0, 1.0)
    model, positive = fused(pack, world, loaded(pack, world.model), 3.0)

    def reflected(strong, weak):
        guider = parts.ReflectionGuider(strong, weak, scales=scales)
        guider.set_conds(world.positive, world.negative)
        with torch.inference_mode():
            noise, sigmas = randn(4, 1, *LATENT), parts.schedule(world.model, "normal", 4, 1.0)
            return guider.sample(noise, torch.zeros_like(noise), parts.ReflectionSampler(), sigmas, disable_pbar=True)

    import nodes

    [stock] = nodes.LoraLoaderModelOnly().load_lora_model_only(world.model, NAME, 0.8571)
    ours = reflected(model, world.model)
    assert relative(ours, reflected(stock, world.model)) < 1e-5
    assert relative(ours, reflected(model, None)) > 1e-3, "the weak model is the base"


def test_a_student_that_is_stopped_and_resumed_is_the_same(pack, distil, tmp_path):
    def training(name):
        options = dict(METHOD, reuse=0, cache_size=1)
        return pack.comfy_host.Training(distil(nulls=("",), **options), LOOP, root=tmp_path, name=name, teacher="CFG")

    whole = training("whole").run().file.tensors
    assert not training("parts").run(should_stop=lambda seen=[]: bool(seen.append(0) or len(seen) > 1)).finished
    resumed = training("parts").run()
    assert resumed.finished and all(torch.equal(tensor, whole[name]) for name, tensor in resumed.file.tensors.items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (METHOD | {"negative_share": 0.5}, "negative_share is 0.5.*negative prompts"),
        (METHOD | {"trainable": "everything"}, "trainable is everything.*lora"),
        (METHOD | {"trainable": "embedders"}, "trainable is embedders.*lora"),
    ],
)
def test_settings_that_cannot_be_are_refused(distil, options, match):
    with pytest.raises(Exception, match=match):
        distil(**options)


def test_a_whole_model_is_refused(pack, distil, tmp_path):
    where = dict(root=tmp_path, name="run", teacher="CFG", whole_model=True)
    with pytest.raises(pack.errors.InvalidConfig, match="whole_model is on.*single guidance"):
        pack.comfy_host.Training(distil(nulls=("",), **METHOD), LOOP, **where)


def test_layers_that_see_other_rows_than_the_batch_get_one_w_at_a_time(distil, world):
    """A layer that gets all tokens as rows cannot tell which row has which w."""
    distillation = shaken(distil(nulls=("",), **METHOD))
    x, w_B, sigma_B = randn(8, 2, *LATENT), torch.tensor([1.0, 5.0]), torch.tensor([0.7, 0.7])
    with torch.no_grad(), distillation.in_training():
        expected = distillation.velocity([0, 1], [0, 0], w_B)(x, sigma_B)
        assert not distillation.student.one_w_per_batch
        # as a host may compute a block
        block = world.model.model.diffusion_model.joint_blocks[0].x_block.mlp
        whole = block.forward
        block.forward = lambda x_BLD: whole(x_BLD.flatten(0, 1)).unflatten(0, x_BLD.shape[:2])
        try:
            got = distillation.velocity([0, 1], [0, 0], w_B)(x, sigma_B)
        finally:
            del block.forward
    assert distillation.student.one_w_per_batch and relative(got, expected) < 1e-5
