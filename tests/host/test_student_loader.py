"""Load TeEFusion Student: a file of the host's LoRA folders on the base that it was trained from."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from .reflection_parts import PROMPT, relative

NAME = "students/mine.safetensors"


@pytest.fixture(autouse=True)
def _as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def loras(pack, tmp_path):
    """A LoRA folder with the demo student in it; its path."""
    import folder_paths

    (tmp_path / "loras" / "students").mkdir(parents=True)
    models = pack.comfy_host.load_tiny.__globals__["MODELS"]
    shutil.copy(models / "tiny_sd3_student.safetensors", tmp_path / "loras" / NAME)
    (tmp_path / "secret.safetensors").write_bytes((tmp_path / "loras" / NAME).read_bytes())
    folder_paths.add_model_folder_path("loras", str(tmp_path / "loras"))
    yield tmp_path / "loras"
    folder_paths.folder_names_and_paths["loras"][0].remove(str(tmp_path / "loras"))


def load(pack, model, name=NAME):
    return pack.nodes["TeEFusionStudentLoader"].execute(model, name).args[0]


def fused_picture(pack, top, model):
    clip = top.load("base")[1]
    prompt, null = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
    fused, positive = pack.nodes["TeEFusionConditioning"].execute(model, prompt, null, 3.0).args
    return top.euler(top.world("flow"), model=fused, cfg=1.0, positive=positive)


def test_the_student_is_the_one_that_the_demo_loader_gives(pack, top, loras):
    base = top.world("flow").model
    plain = fused_picture(pack, top, top.load("student")[0])
    assert relative(fused_picture(pack, top, load(pack, base)), plain) < 1e-5
    assert not base.patches and base.get_attachment(pack.comfy_host.STUDENT_KEY) is None


def test_sockets_are_frozen(pack):
    schema = pack.nodes["TeEFusionStudentLoader"].GET_SCHEMA()
    assert [(item.id, item.get_io_type()) for item in schema.inputs] == [("model", "MODEL"), ("student", "COMBO")]
    assert [item.get_io_type() for item in schema.outputs] == ["MODEL"]


def test_files_of_the_folder_are_offered(pack, loras):
    assert NAME in pack.nodes["TeEFusionStudentLoader"].GET_SCHEMA().inputs[1].options


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "students/../../secret.safetensors", "gone"])
def test_nothing_outside_the_folders_is_opened(pack, top, loras, name):
    with pytest.raises(pack.errors.CheckpointMismatch, match="Load TeEFusion Student: .* none of the loras folders"):
        load(pack, top.world("flow").model, name)


def test_another_base_is_refused(pack, top, loras):
    with pytest.raises(pack.errors.CheckpointMismatch, match="was trained from the base"):
        load(pack, top.world("flow").weak)


def test_an_ordinary_lora_is_refused(pack, top, loras):
    save_file(load_file(loras / NAME), loras / NAME)
    with pytest.raises(pack.errors.CheckpointMismatch, match="plain LoRA files belong in a LoRA loader"):
        load(pack, top.world("flow").model)
