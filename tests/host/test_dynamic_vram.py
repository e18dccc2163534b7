"""Dynamic VRAM: weights that are never merged, and models that the host loads anew for torch.compile and LoRA hooks."""

import gc

import pytest
import torch
from safetensors.torch import load_file

from teefusion_core.files.student_file import StudentInfo, write_student
from teefusion_core.training.loop_settings import TrainSettings

from .composition_columns import STUDENT_FILE
from .distillation_parts import example_of, shaken
from .dynamic_patcher import dynamic_vram
from .reflection_parts import SD3_LORA, Bench, difference, randn, relative

pytestmark = [pytest.mark.usefixtures("as_the_host_runs_nodes"), pytest.mark.extended]
EXACT, MATTERS = 1e-4, 1e-2
QKV = "diffusion_model.joint_blocks.0.x_block.attn.qkv"
FC1 = "diffusion_model.joint_blocks.1.x_block.mlp.fc1"
EMBEDDER = ["y_embedder.mlp.2", "t_embedder.mlp.0"]


@pytest.fixture(scope="module")
def top(host, pack):
    with dynamic_vram(host.comfy):
        yield Bench(host, pack)


@pytest.fixture(scope="module")
def models(pack):
    return pack.comfy_host.load_demo.__globals__["MODELS"]


def compiled(model):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, "eager").args[0]


def hooked(conditioning, layer, shape):
    import comfy.hooks

    wide, narrow = shape
    state = {
        f"diffusion_model.{layer}.lora_up.weight": randn(1, wide, 2),
        f"diffusion_model.{layer}.lora_down.weight": randn(2, 2, narrow),
    }
    return comfy.hooks.set_hooks_for_conditioning(conditioning, comfy.hooks.create_hook_lora(state, 0.3, 0.0))


def fused_picture(top, model, change=lambda model: model, positive=None, **options):
    world, node = top.world(), top.pack.nodes["TeEFusionConditioning"]
    fused, positive = node.execute(model, positive or world.positive, world.negative, 3.0, **options).args
    return top.euler(world, model=change(fused), cfg=1.0, positive=positive)


def test_a_schedule_reaches_a_model_that_is_loaded_anew(top):
    curve = top.module("guidance.schedule").GuidanceSchedule("cosine down", low=1.0)
    student = top.load("student")[0]
    scheduled = fused_picture(top, student, schedule=curve)
    assert relative(fused_picture(top, student, compiled, schedule=curve), scheduled) < EXACT
    assert relative(fused_picture(top, student), scheduled) > MATTERS


def test_the_emulation_streams_and_loads_anew(top, models):
    model = top.world().model
    top.euler(top.world(), model=top.lora(model, SD3_LORA), steps=1)
    assert model.is_dynamic() and not model.model.diffusion_model.joint_blocks[1].x_block.attn.qkv.weight_function
    assert compiled(model).model is not model.model


class TestLoraGap:
    @pytest.fixture(scope="class")
    def patches(self, top):
        def lora(strength=1.0):
            return lambda model: top.lora(model, SD3_LORA, strength)

        return {
            "nothing": lambda model: model.clone(), "lora": lora(), "lora -1.5": lora(-1.5),
            "bias": difference(f"{FC1}.bias", 1024), "difference": difference(f"{QKV}.weight", 768, 256),
            "small": difference("diffusion_model.x_embedder.proj.bias", 256),
        }  # fmt: skip

    @pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
    @pytest.mark.parametrize(
        ("strong", "weak"),
        [
            ("lora", "nothing"), ("nothing", "lora"), ("lora", "lora -1.5"), ("bias", "nothing"), ("nothing", "bias"),
            ("difference", "lora"), ("lora", "difference"), ("small", "nothing"), ("nothing", "small"),
        ],
    )  # fmt: skip
    def test_one_copy_predicts_as_two(self, top, patches, strong, weak, small, monkeypatch):
        if not small:
            monkeypatch.setattr(top.module("comfy_host.reflection.lora_gap"), "SMALL", 0)
        world = top.world()
        a, b = (patches[name](twin) for name, twin in zip((strong, weak), top.twins(world), strict=True))
        shared = top.reflect(world, model=patches[strong](world.model), weak=patches[weak](world.model), steps=2)
        apart = top.reflect(world, model=a, weak=b, steps=2)
        assert relative(shared.samples, apart.samples) < EXACT
        assert relative(shared.samples, top.reflect(world, model=a, weak=a, steps=2).samples) > 10 * EXACT

    def test_nothing_is_left_after_a_run(self, top, patches):
        world = top.world()
        patched = top.euler(world, model=patches["lora"](world.model))
        top.reflect(world, model=patches["lora"](world.model), weak=world.model, steps=2)
        assert torch.equal(top.euler(world, model=patches["lora"](world.model)), patched)


class TestModelsThatAreLoadedAnew:
    def test_a_lora_on_the_embedders_is_part_of_the_term(self, top):
        student = top.load("student")[0]
        lora = top.lora(student, EMBEDDER)
        top.unload()  # casts of the original with this LoRA would hide that the term is computed with the wrong copy
        anew = fused_picture(top, lora, compiled)
        plain = fused_picture(top, lora)
        assert relative(anew, plain) < EXACT
        assert relative(fused_picture(top, student), plain) > MATTERS

    def test_the_original_may_be_gone(self, top):
        plain = fused_picture(top, top.load("student")[0])
        world, student = top.world(), [top.load("student")[0]]
        node = top.pack.nodes["TeEFusionConditioning"]
        fused, positive = node.execute(student.pop(), world.positive, world.negative, 3.0).args
        fused = compiled(fused)
        top.unload()
        fused.parent = None
        gc.collect()
        assert relative(top.euler(world, model=fused, cfg=1.0, positive=positive), plain) < EXACT

    def test_a_hook_on_the_embedders_is_refused(self, top, pack):
        positive = hooked(top.world().positive, "y_embedder.mlp.2", (256, 256))
        with pytest.raises(pack.errors.InvalidConfig, match="LoRA hook"):
            fused_picture(top, top.load("student")[0], positive=positive)

    def test_a_hook_elsewhere(self, top, models):
        positive = hooked(top.world().positive, "joint_blocks.1.x_block.attn.qkv", (768, 256))
        got = fused_picture(top, top.load("student")[0], positive=positive)
        stock = top.comfy.sd.load_diffusion_model(str(models / "demo_sd3_base.safetensors"), disable_dynamic=True)
        expected = fused_picture(top, top.pack.comfy_host.load_student(stock, models / STUDENT_FILE), positive=positive)
        assert relative(got, expected) < 1e-3  # the stock copy has float32 weights
        assert relative(got, fused_picture(top, top.load("student")[0])) > MATTERS

    def test_another_node_behind_ours_is_named(self, top, pack):
        world, node = top.world(), pack.nodes["TeEFusionConditioning"]
        fused = node.execute(top.load("student")[0], world.positive, world.negative, 3.0).args[0]
        ours = fused.get_model_object("extra_conds")
        fused.add_object_patch("extra_conds", lambda **kwargs: ours(**kwargs))
        with pytest.raises(pack.errors.InvalidConfig, match="put TeEFusion Conditioning behind"):
            compiled(fused)

    @pytest.mark.parametrize("weak", ["itself", "other weights", "lora"])
    def test_a_reflection_with_a_hook_on_a_prompt(self, top, pack, weak, models):
        world = top.world()
        prompt = {"positive": hooked(world.positive, "joint_blocks.1.x_block.attn.qkv", (768, 256))}
        if weak == "lora":
            with pytest.raises(pack.errors.InvalidConfig, match="LoRA hook"):
                top.reflect(world, weak=top.lora(world.model, SD3_LORA), **prompt)
            return
        load = top.comfy.sd.load_diffusion_model
        stock = [load(str(models / f"demo_sd3_{name}.safetensors"), disable_dynamic=True) for name in ("base", "weak")]
        beside = weak == "other weights"
        got = top.reflect(world, weak=world.weak if beside else None, **prompt).samples
        expected = top.reflect(world, model=stock[0], weak=stock[1] if beside else None, **prompt).samples
        assert relative(got, expected) < 1e-3
        assert relative(got, top.reflect(world, weak=world.weak if beside else None).samples) > MATTERS

    def test_a_compiled_whole_student(self, top, pack, distil, tmp_path):
        with torch.inference_mode(False), torch.no_grad():
            distillation = shaken(distil(guidance_max=8.0))
            loop = TrainSettings(steps=1, batch_size=1, learning_rate=1e-9)
            training = pack.comfy_host.Training(
                distillation, loop, root=tmp_path, name="r", teacher="", whole_model=True
            )
            tensors = distillation.student.update.merged()
            write_student(tmp_path / "whole.safetensors", tensors, training.file(1).info)
        student = pack.comfy_host.load_student(None, tmp_path / "whole.safetensors")
        assert student.is_dynamic()
        assert relative(fused_picture(top, student, compiled), fused_picture(top, student)) < EXACT


class TestTraining:
    @pytest.mark.parametrize("trainable", ["lora", "everything"])
    def test_it_computes_as_without_dynamic_vram(self, top, host, pack, distil, models, trainable):
        path = str(models / "demo_sd3_base.safetensors")
        stock = host.comfy.sd.load_diffusion_model(path, disable_dynamic=True)
        found = []
        with torch.inference_mode(False):
            for model in (stock, top.load("base")[0]):
                distillation = shaken(distil(model=model, trainable=trainable))
                example = example_of(distillation.trajectory(0))
                with distillation.in_training():
                    loss = distillation.loss(example)
                    loss.backward()
                grads = [w.grad for w in distillation.student.update.parameters() if w.grad is not None]
                found.append((float(loss.detach()), sum(float(grad.norm()) ** 2 for grad in grads) ** 0.5))
        assert found[1] == pytest.approx(found[0], rel=5e-3) and found[1][1] > 0

    def test_teacher_and_student_share_the_copy(self, top, host, distil):
        model = top.load("base")[0]
        distillation = distil(model=model, guider=host.comfy.samplers.CFGGuider(model))
        assert distillation.teacher.model.model is distillation.network.base is not model.model

    def test_a_model_that_cannot_be_loaded_again_is_refused(self, top, pack, distil):
        model = top.load("base")[0].clone()
        model.cached_patcher_init = None
        with pytest.raises(pack.errors.InvalidConfig, match="--disable-dynamic-vram"):
            distil(model=model)

    def test_memory_that_the_host_can_evict_is_free(self, top, pack, distil, monkeypatch):
        network = distil().network
        monkeypatch.setattr(network.model, "get_free_memory", lambda device: 7, raising=False)
        assert pack.comfy_host.memory_check._free(network, 0) == 7


def test_a_guidance_lora_is_merged_at_the_strength_of_each_run(pack, top, models, tmp_path, add_folder):
    """A layer keeps what it cast for the last MODEL: another w must not meet the weights of the one before."""
    import nodes

    info = {
        "method": "guidance lora", "mode": "lora", "guidance_min": 1.0, "guidance_max": 6.0, "gain": 0.0,
        "guidance_embedding_scale": 1000.0, "guidance_precision": "exact", "teacher": "", "step": 1,
        "base": pack.comfy_host.base_fingerprint(top.world().model), "pack_version": "", "reference_guidance": 4.0,
    }  # fmt: skip
    folder = add_folder("loras", tmp_path)
    write_student(folder / "own.safetensors", load_file(models / STUDENT_FILE), StudentInfo(**info))
    world, conditioning = top.world(), pack.nodes["TeEFusionConditioning"].execute
    student = pack.nodes["TeEFusionStudentLoader"].execute("own.safetensors", world.model).args[0]
    assert student.is_dynamic()

    def picture(w):
        fused, positive = conditioning(student, world.positive, world.negative, w).args
        return top.euler(world, model=fused, cfg=1.0, positive=positive)

    def stock(strength):
        [model] = nodes.LoraLoaderModelOnly().load_lora_model_only(world.model, "own.safetensors", strength)
        return top.euler(world, model=model, cfg=1.0)

    for w, strength in ((2.0, 0.5), (6.0, 1.5), (2.0, 0.5)):
        assert relative(picture(w), stock(strength)) < EXACT
    assert relative(picture(2.0), picture(6.0)) > MATTERS


def test_a_gap_that_no_layer_computes_with_is_reported(top, monkeypatch, caplog):
    monkeypatch.setattr(top.module("comfy_host.reflection.lora_gap"), "is_merged", lambda *_: True)
    world = top.world()
    with caplog.at_level("WARNING"):
        top.reflect(world, model=top.lora(world.model, SD3_LORA), weak=world.model, scales=(2.0, 2.0, 2.0), steps=2)
    assert "bit-identical" in caplog.text
