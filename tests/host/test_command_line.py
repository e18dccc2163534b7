"""`python -m teefusion_core train` in processes of its own, on the embedded model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from teefusion_core.training.settings import DistillSettings

REPO = Path(__file__).resolve().parent.parent.parent
CONFIG = {
    "model": {"demo_model": "base"},
    "data": {"prompts": "prompts.txt", "width": 64, "height": 64},
    "distillation": {"teacher_steps": 4, "images_per_trajectory": 2, "cache_size": 2, "rank": 2}
    | {"initial_gain_ratio": 0.25, "guidance_max": 6.0},
    "training": {"steps": 12, "batch_size": 2, "learning_rate": 1e-3, "save_every": 2},
    "output": {"name": "mine", "calibration": 1},
}
PROMPTS = "a red circle on white\n\n a blue square left of a green ring \n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return tmp_path


def written(folder, name="run.json", **sections):
    config = {section: CONFIG.get(section, {}) | values for section, values in ({**CONFIG} | sections).items()}
    config = {section: {k: v for k, v in values.items() if v is not None} for section, values in config.items()}
    (folder / name).write_text(json.dumps(config))
    return folder / name


def start(path, pack=REPO, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "teefusion_core", "train", str(path)],
        cwd=pack, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment},
    )  # fmt: skip


def ended(process):
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  not a dict


def same(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize(
    "distillation",
    [{}, pytest.param({"method": "guidance lora", "initial_gain_ratio": None}, marks=pytest.mark.extended)],
    ids=["teefusion", "guidance lora"],
)
def test_killed_it_resumes_to_the_same_student(folder, distillation):
    code, out, err = ended(start(written(folder, distillation=distillation)))
    assert code == 0, err
    assert "step 12/12" in out and str(folder / "mine.safetensors") in out
    assert "comparing student and teacher at w 1 of 5" in out
    whole, metadata = tensors_of(folder / "mine.safetensors")
    assert metadata["teacher"] == "CFG at scale 1 + w, euler" and metadata["step"] == "12"

    other = written(folder, "other.json", distillation=distillation, output={"name": "other"})
    victim = start(other)
    deadline = time.monotonic() + 120
    while not list((folder / "runs" / "other").glob("step-0000000[4-9]")):
        assert time.monotonic() < deadline and victim.poll() is None, victim.stderr.read()
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (folder / "other.safetensors").exists()
    code, out, err = ended(start(other))
    assert code == 0, err
    assert same(tensors_of(folder / "other.safetensors")[0], whole)


def test_pictures_with_a_reflection_teacher(folder):
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 80), (80 * number, 0, 0)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a red circle on white")
    path = written(
        folder, data={"images": "pictures", "negative_prompts": "prompts.txt"},
        teacher={"kind": "w2sd", "weak_model": "weak"},
        distillation={"gradient_checkpointing": True, "trainable": "embedders", "negative_share": 0.5},
        training={"steps": 2},
    )  # fmt: skip
    config = json.loads(path.read_text())
    del config["data"]["prompts"], config["distillation"]["rank"]
    path.write_text(json.dumps(config))
    code, _, err = ended(start(path))
    assert code == 0, err
    tensors, metadata = tensors_of(folder / "mine.safetensors")
    assert metadata["mode"] == "diff" and metadata["teacher"].startswith("W2SD, final_cfg 1 + w, ")
    assert all(name.rpartition(".")[2] in ("diff", "diff_b") for name in tensors)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("training", "learning_rate", 0), ("training", "rank", 4), ("training", "parallel", "dpp"),
        ("distillation", "rank", 0), ("teacher", "kind", "magic"), ("teacher", "sampler", "euler_ancestral"),
        ("data", "prompts", "nowhere.txt"), ("output", "name", "../mine"), ("extra", "x", 1),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_anything_is_written(folder, pack, section, name, value):
    """In this process, to be quick; the command ends with the same message."""
    config = json.loads(written(folder, **{section: {name: value}}).read_text())
    with pytest.raises(pack.errors.TeEFusionError, match=f"{section}|{name}|{value}"):
        pack.comfy_host.from_file.training_of(config, folder)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("taken", ["the weak model of the run", "the captions", "the LoRA of somebody"])
def test_no_file_of_the_user_is_replaced(folder, pack, taken):
    """Refused before the first step, be it an input of the run or not."""
    name = "early" + (".safetensors" if taken != "the captions" else ".txt")
    if taken == "the weak model of the run":
        shutil.copy(REPO / "models" / "demo_sd3_weak.safetensors", folder / name)
    elif taken == "the captions":
        (folder / name).write_text(PROMPTS)
    else:
        save_file({"x.lora_up.weight": torch.ones(8, 2)}, folder / name, metadata={"ss_base_model_version": "sd3"})
    before = (folder / name).read_bytes()
    teacher = {"kind": "w2sd", "weak_model": name} if taken == "the weak model of the run" else {}
    data = {"prompts": name} if taken == "the captions" else {}
    config = json.loads(written(folder, teacher=teacher, data=data, output={"student": name}).read_text())
    with pytest.raises(pack.errors.TeEFusionError, match=name):
        pack.comfy_host.from_file.training_of(config, folder)
    assert (folder / name).read_bytes() == before and not (folder / "runs").exists()


MODELS = REPO / "models"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are no base model, text encoder or VAE, and some that are only one of them."""
    made = tmp_path_factory.mktemp("files")
    base = (MODELS / "demo_sd3_base.safetensors").read_bytes()
    for part in ("base", "vae", "student"):
        (made / f"{part}.safetensors").symlink_to(MODELS / f"demo_sd3_{part}.safetensors")
    for ways in ("lora_up", "lora_A"):
        names = [f"transformer.block.{number}.{ways}.weight" for number in range(3)]
        save_file({name: torch.ones(4, 4) for name in names}, made / f"{ways}.safetensors")
    save_file({"x": torch.ones(2)}, made / "nothing.safetensors")
    for name in ("page.safetensors", "page.ckpt"):
        (made / name).write_text("\n<!DOCTYPE html><html><body>404")
    for name in ("empty.safetensors", "empty.pt"):
        (made / name).write_bytes(b"")
    (made / "cut.safetensors").write_bytes(base[: len(base) // 2])
    (made / "pointer.safetensors").write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 9\n")
    torch.save({"x": torch.ones(2)}, made / "pickle.safetensors")
    torch.save({"x": torch.ones(2)}, made / "state.ckpt")
    (made / "folder.safetensors").mkdir()
    weights, _ = tensors_of(MODELS / "demo_sd3_base.safetensors")
    del weights[next(name for name in weights if name.endswith("x_block.mlp.fc1.weight"))]
    save_file(weights, made / "incomplete.safetensors")
    save_file(clip_l(), made / "clip_l.safetensors")
    return made


def clip_l(width=64):
    """A text encoder of CLIP's layout, narrower than any real one."""
    shapes = {"weight": (width, width), "bias": (width,)}
    return {
        f"text_model.encoder.layers.{layer}.mlp.{part}.{kind}": torch.zeros(shapes[kind])
        for layer in range(2) for part in ("fc1", "fc2") for kind in ("weight", "bias")
    }  # fmt: skip


WRONG = {
    "lora_up": "a LoRA", "lora_A": "a LoRA", "student": "a TeEFusion student", "nothing": "", "page": "web page",
    "page.ckpt": "web page", "empty": "empty", "empty.pt": "empty", "cut": "intact", "pointer": "Git LFS",
    "pickle": "pickle", "state.ckpt": "", "folder": "folder",
}  # fmt: skip
"""File -> what the error says that it is."""
PLACES = {
    "checkpoint": lambda load, name, folder: load.load_models({"checkpoint": name}, folder),
    "diffusion_model": lambda load, name, folder: load.load_models({"diffusion_model": name}, folder),
    "clip": lambda load, name, folder: load._clip({"clip": [name]}, folder),
    "vae": lambda load, name, folder: load._vae({"vae": name}, folder, None),
    "weak_model": lambda load, name, folder: load.load_network(name, folder, "[teacher] weak_model"),
}


class TestWrongFiles:
    """Every wrong file at every place is one of our errors, with its name and what it is."""

    def refused(self, pack, call, *arguments):
        with pytest.raises(pack.errors.TeEFusionError) as caught:
            call(*arguments)
        print(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("name", WRONG)
    def test_it_is_named_with_what_it_holds(self, pack, files, name, place):
        file = name if "." in name else f"{name}.safetensors"
        message = self.refused(pack, PLACES[place], pack.comfy_host.model_section, file, files)
        assert file in message and WRONG[name] in message and place in message

    @pytest.mark.parametrize(
        ("place", "name", "said"),
        [
            ("checkpoint", "base", "text encoders"), ("checkpoint", "vae", "a VAE"),
            ("checkpoint", "clip_l", "text encoders"),
            ("diffusion_model", "vae", "a VAE"), ("diffusion_model", "clip_l", "text encoders"),
            ("diffusion_model", "incomplete", "x_block.mlp.fc1"), ("weak_model", "incomplete", "x_block.mlp.fc1"),
            ("clip", "vae", "a VAE"), ("clip", "base", "a diffusion model"), ("clip", "clip_l", "clip"),
            ("vae", "base", "a diffusion model"), ("vae", "clip_l", "text encoders"),
        ],
    )  # fmt: skip
    def test_a_model_of_another_kind(self, pack, files, place, name, said):
        message = self.refused(pack, PLACES[place], pack.comfy_host.model_section, f"{name}.safetensors", files)
        assert f"{name}.safetensors" in message and said in message and place in message

    @pytest.mark.parametrize("place", PLACES)
    def test_a_file_that_does_not_exist(self, pack, files, place):
        message = self.refused(pack, PLACES[place], pack.comfy_host.model_section, "gone.safetensors", files)
        assert "gone.safetensors does not exist" in message


def test_the_command_ends_with_one_line(folder):
    code, out, err = ended(start(folder / "nowhere.toml"))
    assert (code, out) == (1, "") and err.startswith("TeEFusion: ") and err.count("\n") == 1
    (folder / "broken.json").write_text("{")
    code, _, err = ended(start(folder / "broken.json", COMFYUI_PATH=str(folder)))
    assert code == 1 and "broken.json" in err
    code, _, err = ended(start(written(folder), COMFYUI_PATH=str(folder)))
    assert code == 1 and str(folder) in err
    code, _, err = ended(start(written(folder), ACCELERATE_USE_CPU="True", MASTER_ADDR="127.0.0.1"))
    assert code == 1 and "--cpu" in err


def test_a_python_without_torch_ends_with_one_line():
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module('teefusion_core', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("TeEFusion: ") and done.stderr.count("\n") == 1


DOCS = (REPO / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.fixture
def installed(folder, host):
    around = folder / "ComfyUI"
    around.mkdir()
    for entry in host.path.iterdir():
        if entry.name != "custom_nodes":
            (around / entry.name).symlink_to(entry)
    made = around / "custom_nodes" / "some-pack"
    for part in ("teefusion_core", "models"):
        shutil.copytree(REPO / part, made / part)
    return made


def test_the_example_in_the_docs_trains_by_the_comfyui_around_the_pack(folder, installed):
    text, toml = (re.search(rf"```{kind}\n(.*?)```", DOCS, re.DOTALL)[1] for kind in ("text", "toml"))
    (folder / "prompts.txt").write_text(text)
    (folder / "run.toml").write_text(toml.replace("steps = 200", "steps = 2\nsave_every = 1"))
    code, out, err = ended(start(folder / "run.toml", installed, COMFYUI_PATH=""))
    assert code == 0, err
    assert str(folder / "my_student.safetensors") in out


def test_the_docs_name_every_setting(pack):
    rules = pack.comfy_host.config_rules
    words = set(re.findall(r"\w+", DOCS))
    assert {name for names in rules.LEGAL.values() for name in names} <= words
    assert rules.TEACHERS.keys() <= set(re.findall(r'kind = "([^"]+)"', DOCS))


def test_the_docs_give_the_defaults():
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", DOCS, re.MULTILINE))
    defaults = {name: str(default).lower().strip("`") for name, default in listed.items()}
    settings = vars(DistillSettings())
    assert len(defaults) >= 10
    for name, default in defaults.items():
        value = settings[name]
        assert default in (str(value).lower(), f"{value:g}" if not isinstance(value, str) else ""), name
