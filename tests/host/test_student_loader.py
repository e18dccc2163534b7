"""Load TeEFusion Student: a file of the host's LoRA folders on the base that it was trained from."""

import gc
import os
import shutil
import sys
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from teefusion_core.files.student_file import write_student
from teefusion_core.training.loop_settings import TrainSettings

from .distillation_parts import shaken
from .reflection_parts import relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
NAME = "students/mine.safetensors"


@pytest.fixture
def loras(pack, tmp_path, add_folder):
    (tmp_path / "loras" / "students").mkdir(parents=True)
    models = pack.comfy_host.load_demo.__globals__["MODELS"]
    shutil.copy(models / "demo_sd3_student.safetensors", tmp_path / "loras" / NAME)
    (tmp_path / "secret.safetensors").write_bytes((tmp_path / "loras" / NAME).read_bytes())
    return add_folder("loras", tmp_path / "loras")


@pytest.fixture
def whole(pack, distil, tmp_path, add_folder):
    """A student with all weights in a diffusion_models folder; its update in a LoRA folder."""
    folders = {"diffusion_models": tmp_path / "models", "loras": tmp_path / "updates"}
    with torch.inference_mode(False), torch.no_grad():
        distillation = shaken(distil(guidance_max=8.0))
        for kind, folder in folders.items():
            add_folder(kind, folder)
            whole = kind == "diffusion_models"
            loop = TrainSettings(steps=1, batch_size=1, learning_rate=1e-9)
            where = dict(root=tmp_path, name="r", teacher="", whole_model=whole)
            training = pack.comfy_host.Training(distillation, loop, **where)
            tensors = distillation.student.update.merged() if whole else distillation.student.update.state()
            write_student(folder / "a.safetensors", tensors, training.file(1).info)
    return folders["diffusion_models"] / "a.safetensors"


def load(pack, model, name=NAME):
    return pack.nodes["TeEFusionStudentLoader"].execute(name, model).args[0]


def fused_picture(pack, top, model):
    world = top.world()
    fused, positive = pack.nodes["TeEFusionConditioning"].execute(model, world.positive, world.negative, 3.0).args
    return top.euler(world, model=fused, cfg=1.0, positive=positive)


def test_the_student_is_the_one_that_the_demo_loader_gives(pack, top, loras):
    base = top.world().model
    plain = fused_picture(pack, top, top.load("student")[0])
    assert relative(fused_picture(pack, top, load(pack, base)), plain) < 1e-5
    assert not base.patches and base.get_attachment(pack.comfy_host.STUDENT_KEY) is None


@pytest.mark.parametrize("variant", ["student", "student_guidance_lora"])
def test_a_student_that_nothing_guides_says_so(pack, top, caplog, variant):
    world, student = top.world(), top.load(variant)[0]
    lowest, *_ = pack.nodes["GuidanceSweep"].execute(
        student, world.positive, world.negative, top.empty(world), 1.0, 2.0, 2, "linear"
    ).args  # fmt: skip
    fused, positive = pack.comfy_host.apply_fusion(student, world.positive, world.negative, 1.0)
    for model, warned in ((student, True), (student.clone(), True), (fused, False), (lowest[0], False)):
        caplog.clear()
        top.euler(world, model=model, cfg=1.0, positive=positive)
        said = [line for line in caplog.messages if "put TeEFusion Conditioning between" in line]
        assert len(said) == warned


def test_a_dropped_student_goes_with_its_last_user(pack, top, loras):
    """As in test_patch.py, for what the loader itself puts on the model."""
    world, base = top.world(), top.world().build()
    gc.collect()
    gc.disable()
    try:
        top.euler(world, model=load(pack, base), cfg=1.0)
        top.euler(world, model=base, cfg=1.0)  # the host puts back what was patched
        left = weakref.ref(base.model)
        del base
        assert left() is None
    finally:
        gc.enable()


def test_files_of_the_folder_are_offered(pack, loras):
    assert NAME in pack.nodes["TeEFusionStudentLoader"].GET_SCHEMA().inputs[1].options


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "students/../../secret.safetensors", "gone"])
def test_nothing_outside_the_folders_is_opened(pack, top, loras, name):
    with pytest.raises(pack.errors.CheckpointMismatch, match="^Load TeEFusion Student: .*loras"):
        load(pack, top.world().model, name)


def test_another_base_a_student_and_a_fused_model_are_refused(pack, top, loras):
    world = top.world()
    fused, _ = pack.comfy_host.apply_fusion(world.model, world.positive, world.negative, 2.0)
    for model in (world.weak, top.load("student")[0], fused):
        with pytest.raises(pack.errors.CheckpointMismatch, match="^Load TeEFusion Student: .*base"):
            load(pack, model)


def test_an_ordinary_lora_is_refused(pack, top, loras):
    save_file(load_file(loras / NAME), loras / NAME)
    with pytest.raises(pack.errors.CheckpointMismatch, match="mine.safetensors"):
        load(pack, top.world().model)


def without(*ends):
    def damage(tensors):
        layer = sorted(name for name in tensors if name.endswith(".alpha"))[3].removesuffix(".alpha")
        for end in ends:
            del tensors[layer + end]

    return damage


def with_value(end, change):
    def damage(tensors):
        name = sorted(name for name in tensors if name.endswith(end))[3]
        tensors[name] = change(tensors[name].clone())

    return damage


def with_one(value):
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor([0]), value).reshape(tensor.shape)


def test_a_calibration_that_was_edited_is_refused(pack, top, loras):
    with safe_open(loras / NAME, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(loras / NAME), loras / NAME, metadata=metadata | {"calibration": '{"wanted": [1]}'})
    with pytest.raises(
        pack.errors.CheckpointMismatch, match="^Load TeEFusion Student: .*mine.safetensors.*calibration"
    ):
        load(pack, top.world().model)


DAMAGES = {
    "no up": without(".lora_up.weight"),
    "no down": without(".lora_down.weight"),
    "no alpha, so that another strength would be used": without(".alpha"),
    "a layer less": without(".lora_up.weight", ".lora_down.weight", ".alpha"),
    "another rank": with_value(".lora_up.weight", lambda tensor: tensor[:, :1].contiguous()),
    "another width": with_value(".lora_down.weight", lambda tensor: tensor[:, :-1].contiguous()),
    "NaN": with_value(".lora_down.weight", with_one(torch.nan)),
    "infinite": with_value(".lora_up.weight", with_one(torch.inf)),
    "an alpha that is NaN": with_value(".alpha", lambda tensor: tensor * torch.nan),
}


def rewritten(path, target, damage, listed=True):
    """Write a damaged copy of a file, as another program would."""
    with safe_open(path, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if listed or name != "tensor_shapes"}
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, target, metadata=metadata)


class TestDamage:
    """A file with metadata of ours whose weights are not whole."""

    def refused(self, pack, model, name=NAME):
        with pytest.raises(pack.errors.CheckpointMismatch, match=f"^Load TeEFusion Student: .*{name.split('/')[-1]}"):
            load(pack, model, name)

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_a_file_without_a_list_of_its_tensors(self, pack, top, loras, damage):
        rewritten(loras / NAME, loras / NAME, damage)
        self.refused(pack, top.world().model)

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_a_file_with_a_list(self, pack, top, whole, damage):
        update = whole.parent.parent / "updates" / "a.safetensors"
        rewritten(update, update, damage)
        self.refused(pack, top.world().model, "a.safetensors")

    @pytest.mark.parametrize("listed", [True, False])
    @pytest.mark.parametrize("kind", ["missing", "short", "NaN"])
    def test_a_whole_model(self, pack, top, whole, kind, listed):
        def damage(tensors):
            name = next(name for name in tensors if name.endswith("mlp.fc1.weight"))
            if kind == "missing":
                del tensors[name]
            else:
                tensors[name] = tensors[name][:-1].contiguous() if kind == "short" else tensors[name] * torch.nan

        rewritten(whole, whole, damage, listed)
        for model in (None, top.world().model):
            self.refused(pack, model, TestWholeStudents.NAME)

    def test_a_file_of_another_kind(self, pack, top, loras):
        for content in (b"", b"<html>", b"GGUF", (loras / NAME).read_bytes()[:-9]):
            (loras / NAME).write_bytes(content)
            self.refused(pack, top.world().model)


class TestWholeStudents:
    NAME = "diffusion_models/a.safetensors"

    def test_it_equals_its_base_with_the_update(self, pack, top, whole):
        base = top.world().model
        expected = fused_picture(pack, top, load(pack, base, "a.safetensors"))
        assert relative(fused_picture(pack, top, load(pack, None, self.NAME)), expected) < 3e-3
        assert relative(fused_picture(pack, top, load(pack, base, self.NAME)), expected) < 3e-3
        plain = fused_picture(pack, top, top.load("student")[0])
        assert relative(plain, expected) > 0.05

    def test_the_hosts_own_loader_reads_it(self, pack, host, whole):
        stock = host.comfy.sd.load_diffusion_model(str(whole))
        ours = load(pack, None, self.NAME)
        own, other = (model.model.diffusion_model.state_dict() for model in (stock, ours))
        assert all(torch.equal(own[name], weight) for name, weight in other.items())

    def test_another_base_is_refused(self, pack, top, whole):
        with pytest.raises(pack.errors.CheckpointMismatch):
            load(pack, top.world().weak, self.NAME)

    def test_an_update_needs_its_base(self, pack, whole):
        with pytest.raises(pack.errors.InvalidConfig, match="a.safetensors"):
            load(pack, None, "a.safetensors")

    @pytest.mark.parametrize("name", ["diffusion_models/../secret.safetensors", "diffusion_models/gone"])
    def test_nothing_outside_is_opened(self, pack, whole, name):
        with pytest.raises(pack.errors.CheckpointMismatch, match="diffusion_models"):
            load(pack, None, name)


class TestInAStockLoraLoader:
    """The host's own node reads the weights of a student, and neither its gain nor its method."""

    @pytest.fixture
    def shown(self, pack, monkeypatch):
        lines = []
        module = sys.modules[f"{pack.module.__name__}.teefusion_core.comfy_host.guidance.patch"]
        monkeypatch.setattr(module, "warn", lines.append)
        return lines

    def by_the_host(self, host, model, path):
        return host.comfy.sd.load_lora_for_models(model, None, load_file(path), 1.0, 0.0)[0]

    def test_the_nodes_that_can_know_it_say_so(self, pack, host, top, loras, shown):
        world = top.world()
        model = self.by_the_host(host, world.model, loras / NAME)
        pack.nodes["TeEFusionConditioning"].execute(model, world.positive, world.negative, 3.0)
        assert len(shown) == 1 and "Load TeEFusion Student" in shown[0]
        guider = host.comfy.samplers.CFGGuider(model)
        guider.set_conds(world.positive, world.negative)
        sampler = host.comfy.samplers.sampler_object("euler")
        latent = top.empty(world, 1)
        pack.comfy_host.report_guidance(
            world.model, guider, sampler, top.sigmas(world, 1), latent, world.positive, world.negative, 0
        )
        assert len(shown) == 2

    def test_a_student_and_an_ordinary_lora_are_left_alone(self, pack, host, top, loras, shown):
        world = top.world()
        tensors = {name: tensor for name, tensor in load_file(loras / NAME).items() if "joint_blocks.0" in name}
        save_file(tensors, loras / "ordinary.safetensors")
        for model in (load(pack, world.model), self.by_the_host(host, world.model, loras / "ordinary.safetensors")):
            pack.nodes["TeEFusionConditioning"].execute(model, world.positive, world.negative, 3.0)
        assert not [line for line in shown if "Load TeEFusion Student" in line]


def test_a_file_written_anew_is_loaded_anew(pack, loras):
    node = pack.nodes["TeEFusionStudentLoader"]
    first = node.fingerprint_inputs(student=NAME)
    assert node.fingerprint_inputs(student=NAME) == first
    os.utime(loras / NAME, ns=(1, 1))
    assert node.fingerprint_inputs(student=NAME) != first
    assert node.fingerprint_inputs(student="../gone") == "../gone"
