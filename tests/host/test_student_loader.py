"""Load TeEFusion Student: a file of the host's LoRA folders on the base that it was trained from."""

import os
import shutil

import pytest
import torch
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


def test_a_file_written_anew_is_loaded_anew(pack, loras):
    node = pack.nodes["TeEFusionStudentLoader"]
    first = node.fingerprint_inputs(student=NAME)
    assert node.fingerprint_inputs(student=NAME) == first
    os.utime(loras / NAME, ns=(1, 1))
    assert node.fingerprint_inputs(student=NAME) != first
    assert node.fingerprint_inputs(student="../gone") == "../gone"
