"""Config files: what is refused before anything is loaded, and what makes a run another run."""

import json
import shutil
from dataclasses import asdict, fields

import pytest
import torch
from PIL import Image

from teefusion_core.training.loop_settings import TrainSettings
from teefusion_core.training.processes import Processes
from teefusion_core.training.run_identity import RunIdentity
from teefusion_core.training.settings import DistillSettings

from .reflection_parts import SD3_LORA
from .test_command_line import CONFIG, PROMPTS, REPO

PLAIN = {section: dict(values) for section, values in CONFIG.items()}
W2SD = {"teacher": {"kind": "w2sd", "weak_model": "w1.safetensors"}}


def with_(*changes, start=PLAIN):
    """Return a config with values set, (section, name, value), or removed where the value is None."""
    config = {section: dict(values) for section, values in start.items()}
    for section, name, value in changes:
        config.setdefault(section, {}).pop(name, None)
        if value is not None:
            config[section][name] = value
    return config


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        *(("training", "learning_rate", value) for value in ("1e-3", "~", None)),
        *(("distillation", "rank", value) for value in ("16", 2.5, True, -1)),
        *(("distillation", "run_seed", value) for value in (-1, "7", 0.5)),
        *(("distillation", "teacher_steps", value) for value in (2.5, "2")),
        *(("distillation", "gradient_checkpointing", value) for value in ("false", 1, 0)),
        ("distillation", "guidance_min", "1"), ("distillation", "images_per_trajectory", 2.0),
        *(("data", "width", value) for value in ("64", "abc", 0, -64, 64.0, True)),
        ("data", "prompts", ["a red circle"]), ("data", "subfolders", "no"), ("model", "demo_model", "Base"),
        ("model", "demo_model", True), ("output", "accept_changes", "learning_rate"),
        ("output", "accept_changes", [1]), ("output", "whole_model", "false"), ("output", "name", 7),
        ("training", "parallel", True),
    ],
)  # fmt: skip
def test_types_are_strict(pack, tmp_path, section, name, value):
    with pytest.raises(pack.errors.InvalidConfig, match=name):
        pack.comfy_host.training_of(with_((section, name, value)), prompts_in(tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("section", "name", "value", "others"),
    [
        ("teacher", "weak_model", "w1.safetensors", []), ("teacher", "strong_cfg", 2.0, []),
        ("teacher", "reflect_steps", 3, [("teacher", "kind", "cfg")]),
        ("teacher", "sampler", "euler", [("teacher", "kind", "w2sd")]),
        ("teacher", "weak_model", "w1.safetensors", [("teacher", "kind", "z-sampling")]),
        ("teacher", "reflect_steps", 0, [("teacher", "kind", "w2sd")]),
        ("model", "clip", ["a.safetensors"], []), ("model", "checkpoint", "a.safetensors", []),
        ("model", "vae", "v.safetensors", []), ("data", "subfolders", True, []), ("data", "images", "folder", []),
        ("distillation", "rank", 4, [("distillation", "trainable", "embedders")]),
        ("distillation", "initial_gain_ratio", 0.2, [("distillation", "method", "distillcfg")]),
        ("distillation", "initial_gain_ratio", 0.2, [("distillation", "method", "guidance lora")]),
        ("distillation", "guidance_precision", "exact", [("distillation", "method", "guidance lora")]),
        ("distillation", "negative_share", 0.5, []), ("data", "negative_prompts", "prompts.txt", []),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(pack, tmp_path, section, name, value, others):
    with pytest.raises(pack.errors.InvalidConfig, match=name.replace("negative_prompts", "negative")):
        pack.comfy_host.training_of(with_((section, name, value), *others), prompts_in(tmp_path))


def prompts_in(folder):
    (folder / "prompts.txt").write_text(PROMPTS)
    return folder


OTHER_VALUES = {
    "scheduler": "karras", "timestep_sampling": "uniform", "target": "clean", "trainable": "embedders",
    "guidance_precision": "official bf16", "method": "teefusion split", "learning_rate_schedule": "cosine",
}  # fmt: skip


def other(value, name):
    if isinstance(value, bool):
        return not value
    return OTHER_VALUES[name] if isinstance(value, str) else value + 3 if isinstance(value, int) else value * 0.5 + 0.01


@pytest.mark.parametrize("settings", [DistillSettings(), TrainSettings(steps=8, learning_rate=1e-3, batch_size=2)])
def test_every_setting_of_distillation_and_training_is_part_of_the_run(pack, tmp_path, settings):
    identity = RunIdentity(tmp_path, "base", Processes(), frozenset())
    stored = json.loads(json.dumps(identity.manifest(0, asdict(settings))))
    identity.check(stored, asdict(settings))
    for field in fields(settings):
        changed = asdict(settings) | {field.name: other(getattr(settings, field.name), field.name)}
        with pytest.raises(ValueError, match=rf"\b{field.name} \("):
            identity.check(stored, changed)
        RunIdentity(tmp_path, "base", Processes(), frozenset({field.name})).check(stored, changed)


@pytest.fixture(scope="module")
def files(tmp_path_factory, top, host):
    folder = prompts_in(tmp_path_factory.mktemp("config"))
    for name, source in {"w1": "weak", "w2": "base"}.items():
        shutil.copy(REPO / "models" / f"demo_sd3_{source}.safetensors", folder / f"{name}.safetensors")
    (folder / "others.txt").write_text("a blue ring\n")
    for name, colour in {"one": "red", "two": "blue"}.items():
        (folder / name).mkdir()
        Image.new("RGB", (64, 64), colour).save(folder / name / "a.png")
        (folder / name / "a.txt").write_text("a red circle")
    return folder


@pytest.fixture(scope="module")
def identity(pack, files):
    """Return what makes the run of a config; the parts that it is made of are loaded once."""
    file = pack.comfy_host.from_file
    load, kept = file.load_models, {}

    def loaded(section, folder):
        key = json.dumps(section, sort_keys=True)
        if key not in kept:
            kept[key] = load(section, folder)
        return kept[key]

    def of(config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file, "load_models", loaded)
            patch.setattr(pack.comfy_host.Distillation, "check_teacher", lambda self: None)
            training, _ = file.training_of(config, files)
        return {"base": training.base, **training.folder.described}

    return of


PICTURES = with_(("data", "prompts", None), ("data", "images", "one"), start=PLAIN)
REFLECTED = PLAIN | W2SD
CHANGED = [
    (PLAIN, [("model", "demo_model", "weak")], {"base"}),
    (PLAIN, [("teacher", "sampler", "heun")], {"teacher", "sampler_function"}),
    (PLAIN, [("data", "prompts", "others.txt")], {"prompts"}),
    (PLAIN, [("data", "width", 96)], {"latent_shape"}), (PLAIN, [("data", "height", 96)], {"latent_shape"}),
    (PLAIN, [("data", "negative_prompts", "others.txt"), ("distillation", "negative_share", 0.5)],
     {"negative_prompts", "negative_share"}),
    (PICTURES, [("data", "images", "two")], {"images"}),
    (PICTURES, [("data", "width", 32)], {"images", "latent_shape"}),
    (REFLECTED, [("teacher", "kind", "z-sampling"), ("teacher", "weak_model", None)], {"weak_model", "weak_cfg"}),
    (REFLECTED, [("teacher", "weak_model", "w2.safetensors")], {"weak_model"}),
    (REFLECTED, [("teacher", "strong_cfg", 1.0)], {"strong_cfg"}),
    (REFLECTED, [("teacher", "weak_cfg", 1.5)], {"weak_cfg"}),
    (REFLECTED, [("teacher", "reflect_steps", 2)], {"reflect_steps"}),
    (REFLECTED, [("teacher", "inversion", "upper")], {"inversion"}),
    (PLAIN, [("output", "student", "other.safetensors")], set()),
    (PLAIN, [("output", "whole_model", True)], set()), (PLAIN, [("output", "calibration", 3)], set()),
]  # fmt: skip


@pytest.mark.parametrize(("start", "changes", "named"), CHANGED, ids=lambda value: None)
def test_every_setting_of_model_teacher_and_data_is_part_of_the_run(identity, start, changes, named):
    before, after = identity(start), identity(with_(*changes, start=start))
    assert before == identity(start), "the same twice"
    found = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert named <= found if named else not found, found


def test_every_setting_has_its_case(pack):
    tried = {(section, name) for _, changes, _ in CHANGED for section, name, _ in changes}
    on_purpose = {("model", name) for name in ("checkpoint", "diffusion_model", "clip", "clip_type", "vae")}
    on_purpose |= {("data", "subfolders"), ("output", "runs"), ("output", "name"), ("output", "accept_changes")}
    sections = ("model", "teacher", "data", "output")
    every = {(section, name) for section in sections for name in pack.comfy_host.config_rules.LEGAL[section]}
    assert every <= tried | on_purpose, "files beside a model are known by its weights, its prompts and its images"


class TestWhatIsWired:
    """The identity of a run in a graph."""

    def of(self, pack, distil, **options):
        return pack.comfy_host.identity_of(distil(**options))

    def test_patches_of_the_teacher_and_of_the_model_count(self, pack, host, top, distil, world):
        before = self.of(pack, distil)
        cfg = host.comfy.samplers.CFGGuider
        lora = top.lora(world.model, SD3_LORA, seed=3)
        assert self.of(pack, distil, guider=cfg(lora)) != before
        assert self.of(pack, distil, guider=cfg(lora)) != self.of(
            pack, distil, guider=cfg(top.lora(world.model, SD3_LORA, seed=4))
        )
        slg = world.model.clone()
        slg.set_model_sampler_post_cfg_function(scaled(1.0))
        other = world.model.clone()
        other.set_model_sampler_post_cfg_function(scaled(2.0))
        first, second = (self.of(pack, distil, guider=cfg(model)) for model in (slg, other))
        assert before != first != second and first == self.of(pack, distil, guider=cfg(slg.clone()))

    def test_every_input_of_the_node_counts_or_has_no_effect(self, pack, distil):
        counts = {field.name for kind in (DistillSettings, TrainSettings) for field in fields(kind)}
        counts |= {"prompts", "negative_prompts"} & self.of(pack, distil).keys()
        shown_in = {  # input -> part of the identity that it shapes
            "model": "model_patches", "guider": "guider", "sampler": "sampler", "positive": "prompts",
            "null": "negative_prompts", "latents": "images", "width": "latent_shape", "height": "latent_shape",
            "clip": "prompts",
        }  # fmt: skip
        assert set(shown_in.values()) <= self.of(pack, distil).keys()
        without_effect = {"name", "accept_changes", "preview_every", "vae", "whole_model", "calibration"}
        inputs = {item.id for item in pack.nodes["DistillTrainer"].GET_SCHEMA().inputs}
        assert inputs <= counts | shown_in.keys() | without_effect

    def test_a_prompt_counts_whole(self, pack, distil, encoded):
        [[tokens, extras]] = next(iter(encoded.values()))

        def of(prompt):
            made = distil()
            made.positives = pack.comfy_host.Prompts([prompt], "prompt")
            return pack.comfy_host.identity_of(made)["prompts"]

        found = {of([[tokens, extras]]), of([[tokens + 1, extras]]), of([[tokens, extras | {"width": 64}]])}
        assert len(found) == 3 and of([[tokens.clone(), dict(extras)]]) in found

    def test_a_scale_that_the_trainer_sets_does_not_count(self, pack, host, distil, world):
        guiders = [host.comfy.samplers.CFGGuider(world.model) for _ in range(2)]
        guiders[1].set_cfg(9.0)
        one, two = (self.of(pack, distil, guider=guider) for guider in guiders)
        assert one == two


def scaled(factor):
    def post_cfg(args):
        return args["denoised"] * torch.tensor(factor)

    return post_cfg
