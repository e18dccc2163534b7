"""What ComfyUI, its interface and its older versions punish, read off what is packed."""

import ast
import json
from pathlib import PurePosixPath

import pytest
from runner.places import PACK

from .packed import code, nodes_of, packed, texts

NODE_FILES = [name for name in code() if name.startswith("nodes/") and name != "nodes/_schema.py"]
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "nodes", "server"}
CHANGING = {"append", "extend", "insert", "update", "setdefault", "add", "remove", "pop", "clear", "register"}
# may only become fewer: used as a library, without a command line, ComfyUI takes a GPU for granted
KNOWN_SETTINGS = {
    ("teefusion_core/comfy_host/headless.py", "comfy.cli_args.args"),
    # in_training, for as long as it does
    ("teefusion_core/comfy_host/training/network.py", "comfy.model_management"),
}
FROZEN = {
    "TinySD3Loader": "variant | MODEL CLIP VAE",
    "TeEFusionStudentLoader": "model student | MODEL",
    "TeEFusionConditioning": "model positive null guidance guidance_precision schedule | MODEL CONDITIONING",
    "DICESharpen": "conditioning sharpener alpha beta null negative model | CONDITIONING",
    "TextEmbeddingBlend": "base add_weight subtract_weight add subtract reference | CONDITIONING report",
    "W2SDTeacherSampler": "strong_model positive negative latent_image seed steps strong_cfg weak_cfg final_cfg"
    " scheduler denoise reflect_steps rounds inversion weak_model weak_positive weak_negative | LATENT",
    "ZSampling": "model positive negative latent_image seed steps cfg inversion_cfg scheduler denoise reflect_steps"
    " rounds inversion | LATENT",
    "ReflectionGuider": "strong_model positive negative strong_cfg weak_cfg final_cfg rule chats_alpha weak_model"
    " weak_positive weak_negative schedule | GUIDER",
    "ReflectionSampler": "reflect_steps rounds inversion | SAMPLER",
    "DistillTrainer": "model guider sampler prompts name guidance_min guidance_max steps teacher_steps scheduler width"
    " height trainable rank batch_size learning_rate preview_every run_seed accept_changes target timestep_sampling"
    " images_per_trajectory cache_size reuse negative_share initial_gain_ratio gradient_checkpointing save_every clip"
    " vae negative_prompts positive null latents method whole_model calibration | LORA_MODEL LOSS_MAP steps file",
    "GuidanceReport": "model guider sampler sigmas latent_image positive negative noise_seed vae"
    " | LATENT plot report cost",
    "CompareGrid": "images_a prompts methods costs image_size images_b images_c images_d images_e images_f | grid",
    "ScoreImages": "images prompts clip pickscore hps aesthetic image_reward | table scores",
    "GuidanceSchedule": "shape start end low_guidance shares | schedule",
    "ScheduledCFGGuider": "model positive negative cfg schedule | GUIDER",
    "GuidanceSweep": "model positive null latent_image lowest highest count spacing sharpener"
    " | MODEL CONDITIONING LATENT sweep",
    "SweepGrid": "images sweep image_size scores | grid best report",
}
each_code = pytest.mark.parametrize("name", code())


def dotted(node):
    """Return `a.b.c` of such an expression, else the empty text."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def of_the_host(node):
    return dotted(node).split(".")[0] in HOST


@pytest.mark.parametrize("node_id", FROZEN)
def test_sockets_are_frozen_and_new_ones_go_last(node_id):
    """Saved workflows name inputs by their place. The English texts list them in the order of the schema."""
    node = json.loads(texts()["locales/en/nodeDefs.json"])[node_id]
    inputs, outputs = (part.split() for part in FROZEN[node_id].split(" | "))
    assert list(node["inputs"])[: len(inputs)] == inputs
    assert [output["name"] for output in node["outputs"].values()][: len(outputs)] == outputs


def test_every_node_is_frozen():
    assert json.loads(texts()["locales/en/nodeDefs.json"]).keys() == FROZEN.keys()


@pytest.mark.parametrize("name", NODE_FILES)
def test_schemas_are_made_by_the_filter_of_keywords(name):
    """A keyword that an older host does not know would take this node with all after it out of the menu."""
    called = {dotted(call.func).rpartition(".")[2] for call in nodes_of(name, ast.Call)}
    assert not called & {"Schema", "Input"}


@each_code
def test_no_attribute_or_list_of_the_host_is_changed(name):
    targets = [target for node in nodes_of(name, ast.Assign) for target in node.targets]
    targets += [node.target for node in nodes_of(name, ast.AugAssign, ast.AnnAssign)]
    found = {dotted(target.value) for target in targets if isinstance(target, ast.Attribute) and of_the_host(target)}
    assert {(name, what) for what in found} <= KNOWN_SETTINGS
    calls = nodes_of(name, ast.Call)
    assert not [c for c in calls if dotted(c.func) == "setattr" and of_the_host(c.args[0])]
    methods = [call.func for call in calls if isinstance(call.func, ast.Attribute)]
    assert not [dotted(method) for method in methods if method.attr in CHANGING and of_the_host(method.value)]


@each_code
def test_wrappers_take_arguments_that_a_newer_host_adds(name):
    for function in nodes_of(name, ast.FunctionDef):
        arguments = function.args.posonlyargs + function.args.args
        if arguments and arguments[0].arg == "executor":
            assert function.args.vararg and function.args.kwarg, function.name


@pytest.mark.parametrize("name", [name for name in packed() if name.endswith((".py", ".json"))])
def test_windows_can_read_it(name):
    """Source, workflows: some hosts open them in the encoding of the country. Translations are opened as UTF-8."""
    if not name.startswith("locales/zh/"):
        texts()[name].encode("ascii")


def test_the_folder_of_the_pack_may_have_any_name_without_a_dot():
    """A clone is named after the repository, an installation after the project: neither stands in the code."""
    assert "." not in PACK and not [name for name in code() if PACK in texts()[name]]


def test_no_scripts_for_the_browser():
    """Every .js below WEB_DIRECTORY would run, break with an interface that draws nodes anew."""
    assert {PurePosixPath(name).suffix for name in packed() if name.startswith("web/")} == {".md", ".webp"}


def test_one_folder_of_templates():
    """A second one would answer under the same address."""
    templates = {"example_workflows", "example", "examples", "workflow", "workflows"}
    assert {name.split("/")[0] for name in packed()} & templates == {"workflows"}
    deeper = [name for name in packed() if name.startswith("workflows/") and name.count("/") > 1]
    assert all(name.startswith("workflows/api/") for name in deeper), "the list of templates shows no folders"
