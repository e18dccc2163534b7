"""What hosts punish, item by item, read off what is packed.

The table in CONTRIBUTING.md says which tests keep the others; a test below holds it to tests that are there.
"""

import ast
import json
import re
import sys
from pathlib import PurePosixPath

import pytest

from .packed import REPO, code, nodes_of, packed, texts, tree_of

NODE_FILES = [name for name in code() if name.startswith("nodes/")]
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "nodes", "server"}
# of the schema module these stand in the oldest host as in the newest
SHARED = {
    "Boolean",
    "Clip",
    "Combo",
    "ComfyNode",
    "Conditioning",
    "Custom",
    "Float",
    "Guider",
    "Int",
    "Latent",
    "Model",
}
SHARED |= {"Image", "NodeOutput", "Sampler", "Sigmas", "Schema", "String", "Vae"}
TEMPLATES = {"example_workflows", "example", "examples", "workflow", "workflows"}
CHANGING = {"append", "extend", "insert", "update", "setdefault", "add", "remove", "pop", "clear", "register"}
# may only become fewer: used as a library, without a command line, ComfyUI takes a GPU for granted
KNOWN_SETTINGS = {
    ("teefusion_core/comfy_host/headless.py", "comfy.cli_args.args"),
    # in_training, for as long as it does
    ("teefusion_core/comfy_host/training/network.py", "comfy.model_management"),
}
# small networks of our own, a few layers beside the host's model
KNOWN_LAYERS = {"teefusion_core/prompts/sharpener.py", "teefusion_core/guidance/methods.py"}
FROZEN = {
    "TinySD3Loader": "variant | MODEL CLIP VAE",
    "TeEFusionStudentLoader": "model student | MODEL",
    "TeEFusionConditioning": "model positive null guidance guidance_precision | MODEL CONDITIONING",
    "DICESharpen": "conditioning sharpener alpha beta null negative model | CONDITIONING",
    "TextEmbeddingBlend": "base add_weight subtract_weight add subtract reference | CONDITIONING report",
    "W2SDTeacherSampler": "strong_model positive negative latent_image seed steps strong_cfg weak_cfg final_cfg"
    " scheduler denoise reflect_steps rounds inversion weak_model weak_positive weak_negative | LATENT",
    "ZSampling": "model positive negative latent_image seed steps cfg inversion_cfg scheduler denoise reflect_steps"
    " rounds inversion | LATENT",
    "ReflectionGuider": "strong_model positive negative strong_cfg weak_cfg final_cfg rule chats_alpha weak_model"
    " weak_positive weak_negative | GUIDER",
    "ReflectionSampler": "reflect_steps rounds inversion | SAMPLER",
    "DistillTrainer": "model guider sampler prompts name guidance_min guidance_max steps teacher_steps scheduler width"
    " height trainable rank batch_size learning_rate preview_every run_seed accept_changes target timestep_sampling"
    " images_per_trajectory cache_size reuse negative_share initial_gain_ratio gradient_checkpointing save_every clip"
    " vae negative_prompts positive null latents method whole_model | LORA_MODEL LOSS_MAP steps file",
    "GuidanceReport": "model guider sampler sigmas latent_image positive negative noise_seed vae"
    " | LATENT plot report cost",
    "CompareGrid": "images_a prompts methods costs image_size images_b images_c images_d images_e images_f | grid",
    "ScoreImages": "images prompts clip pickscore hps aesthetic image_reward | table scores",
}
each_code = pytest.mark.parametrize("name", code())
each_node_file = pytest.mark.parametrize("name", NODE_FILES)


def dotted(node):
    """Return `a.b.c` of such an expression, else the empty text."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def of_the_host(node):
    return dotted(node).split(".")[0] in HOST


def functions_of(name):
    return nodes_of(name, ast.FunctionDef, ast.AsyncFunctionDef)


def calls_of(name, what):
    """Return the calls of a function or method of that name."""
    return [
        call for call in nodes_of(name, ast.Call) if dotted(call.func).split(".")[-1] == what or _method(call, what)
    ]


def _method(call, what):
    return isinstance(call.func, ast.Attribute) and call.func.attr == what


class TestSchemas:
    @each_node_file
    def test_keywords_pass_through_the_filter(self, name):
        """One that an older host does not know would take this node with all after it out of the menu."""
        if name == "nodes/_schema.py":
            return
        assert not calls_of(name, "Schema") and not calls_of(name, "Input")

    @each_node_file
    def test_names_of_the_schema_module_are_in_every_host(self, name):
        used = {node.attr for node in nodes_of(name, ast.Attribute) if dotted(node.value) == "io"}
        assert used <= SHARED

    @each_node_file
    def test_ids_are_literal(self, name):
        """Lists of nodes are made by programs that read the source."""
        ids = [keyword.value for keyword in nodes_of(name, ast.keyword) if keyword.arg == "node_id"]
        assert all(isinstance(value, ast.Constant) for value in ids)

    @each_node_file
    def test_results_are_node_outputs(self, name):
        """The oldest host cannot read a plain dict."""
        for function in functions_of(name):
            if function.name == "execute":
                returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
                assert returns and all(dotted(value.func) == "io.NodeOutput" for value in returns)

    @each_node_file
    def test_classes_keep_no_state(self, name):
        """The host locks a class before it runs it."""
        targets = [target for node in nodes_of(name, ast.Assign) for target in node.targets]
        assert not [dotted(target) for target in targets if dotted(target).startswith("cls.")]

    @pytest.mark.parametrize("node_id", FROZEN)
    def test_sockets_stay_new_ones_go_last(self, node_id):
        """Saved workflows name inputs by their place. The English texts list them in the order of the schema."""
        node = json.loads(texts()["locales/en/nodeDefs.json"])[node_id]
        inputs, outputs = (part.split() for part in FROZEN[node_id].split(" | "))
        assert list(node["inputs"])[: len(inputs)] == inputs
        assert [output["name"] for output in node["outputs"].values()][: len(outputs)] == outputs

    def test_every_node_is_frozen(self):
        assert json.loads(texts()["locales/en/nodeDefs.json"]).keys() == FROZEN.keys()

    def test_features_are_probed_not_versions(self):
        for name in code():
            assert not re.search(r"comfyui_version|packaging\.version|parse_version", texts()[name]), name


class TestNothingOfTheHostIsChanged:
    @each_code
    def test_none_of_its_attributes_is_set(self, name):
        targets = [target for node in nodes_of(name, ast.Assign) for target in node.targets]
        targets += [node.target for node in nodes_of(name, ast.AugAssign, ast.AnnAssign)]
        found = {
            dotted(target.value) for target in targets if isinstance(target, ast.Attribute) and of_the_host(target)
        }
        assert {(name, what) for what in found} <= KNOWN_SETTINGS
        assert not [call for call in calls_of(name, "setattr") if call.args and of_the_host(call.args[0])]

    def test_the_known_settings_are_still_there(self):
        for name, what in KNOWN_SETTINGS:
            assert f"{what}." in texts()[name]

    @each_code
    def test_none_of_its_lists_grows(self, name):
        calls = [call for call in nodes_of(name, ast.Call) if isinstance(call.func, ast.Attribute)]
        changed = [dotted(call.func) for call in calls if call.func.attr in CHANGING and of_the_host(call.func.value)]
        assert not changed

    @each_code
    def test_no_block_of_a_model_is_written_again(self, name):
        """A copied forward breaks with the next host; ours are networks that no host has."""
        for node in nodes_of(name, ast.ClassDef):
            bases = [dotted(base) for base in node.bases]
            of_a_model = [base for base in bases if base.startswith(("comfy.ldm", "comfy.model_base"))]
            assert not of_a_model, node.name
        assert "comfy.ldm" not in texts()[name]

    @each_code
    def test_no_model_is_moved_past_the_host(self, name):
        """It counts what is in memory; the choice of a device is its own."""
        text = texts()[name]
        assert not re.search(r"\.cuda\(|\.to\(\s*[\"']cuda|empty_cache\(|unload_all_models\(|\bautocast\(", text)
        assert not re.search(r"patch_model\(|device_to=|force_patch_weights", text)

    def test_layers_of_our_own_are_where_we_know(self):
        """The host's layers cast, offload, quantise; plain ones do not."""
        plain = re.compile(r"\bnn\.(Linear|Conv\dd|LayerNorm|GroupNorm|Embedding)\(")
        assert {name for name in code() if plain.search(texts()[name])} <= KNOWN_LAYERS

    @each_code
    def test_modules_keep_nothing_between_runs(self, name):
        """A tensor in a global is memory that nobody gives back."""
        for node in tree_of(name).body:
            value = getattr(node, "value", None) if isinstance(node, ast.Assign | ast.AnnAssign) else None
            assert not isinstance(value, ast.Dict | ast.List) or any(ast.iter_child_nodes(value)), f"line {node.lineno}"
        assert not nodes_of(name, ast.Global)
        assert not re.search(r"@(functools\.)?(lru_)?cache\b", texts()[name])


class TestPatches:
    def test_no_wrapper_that_sd3_never_runs(self):
        assert not [name for name in code() if "DIFFUSION_MODEL" in texts()[name]]

    def test_no_weight_wrapper_that_edits_in_place(self):
        assert not [name for name in code() if "add_weight_wrapper" in texts()[name]]

    @each_code
    def test_wrappers_take_what_a_newer_host_adds(self, name):
        for function in functions_of(name):
            arguments = function.args.posonlyargs + function.args.args
            if arguments and arguments[0].arg == "executor":
                assert function.args.vararg and function.args.kwarg, function.name

    def test_overridden_methods_of_a_guider_do_too(self):
        methods = {node.name: node for node in functions_of("teefusion_core/comfy_host/reflection/guider.py")}
        for name in ("sample", "inner_sample"):
            assert methods[name].args.vararg and methods[name].args.kwarg, name
        assert "outer_sample" not in methods

    def test_a_guider_says_its_cfg(self):
        """The host's sampler logs it at the first step."""
        assigned = nodes_of("teefusion_core/comfy_host/reflection/guider.py", ast.Assign)
        assert "self.cfg" in {dotted(part) for node in assigned for target in node.targets for part in ast.walk(target)}

    def test_callbacks_hand_on_all_that_previews_read(self):
        calls = calls_of("teefusion_core/comfy_host/reflection/sampler.py", "callback")
        told = [{key.value for key in call.args[0].keys} for call in calls if call.args]
        assert told == [{"x", "i", "sigma", "sigma_hat", "denoised"}]

    def test_prompts_carry_plain_tensors(self):
        """Objects of the host in a CONDITIONING cannot be stored with a data set, so they are made within a run."""
        makers = [(name, call) for name in code() for call in calls_of(name, "CONDRegular")]
        assert [name for name, _ in makers] == ["teefusion_core/comfy_host/guidance/patch.py"]
        inside = next(
            node for node in functions_of("teefusion_core/comfy_host/guidance/patch.py") if node.name == "extra_conds"
        )
        assert makers[0][1] in list(ast.walk(inside))


class TestCancel:
    def test_progress_is_not_the_only_check(self):
        """The bar is throttled in newer hosts, the check within it likewise."""
        for name in code():
            if "ProgressBar(" in texts()[name] or name.endswith("reflection_sampler.py"):
                assert "throw_exception_if_processing_interrupted()" in texts()[name], name

    def test_training_leaves_inference_mode(self):
        assert "torch.inference_mode(False)" in texts()["teefusion_core/comfy_host/training/from_graph.py"]

    @each_code
    def test_cancel_is_swallowed_nowhere(self, name):
        """Who catches everything raises it again, or keeps it to raise it later."""
        for handler in nodes_of(name, ast.ExceptHandler):
            if handler.type is None or dotted(handler.type) in ("BaseException", "Exception"):
                kept = {dotted(node.value) for node in ast.walk(handler) if isinstance(node, ast.Assign)}
                again = [node for node in ast.walk(handler) if isinstance(node, ast.Raise)]
                assert again or handler.name in kept, handler.lineno


class TestTheFolder:
    def test_no_scripts_for_the_browser(self):
        """Every .js below WEB_DIRECTORY would run, break with an interface that draws nodes anew."""
        assert {PurePosixPath(name).suffix for name in packed() if name.startswith("web/")} == {".md"}

    def test_one_folder_of_templates(self):
        """A second one would answer under the same address."""
        assert {name.split("/")[0] for name in packed()} & TEMPLATES == {"workflows"}
        assert all(name.count("/") == 1 for name in packed() if name.startswith("workflows/"))

    def test_thumbnails_are_named_after_their_workflow(self):
        files = [PurePosixPath(name) for name in packed() if name.startswith("workflows/")]
        workflows = {path.stem for path in files if path.suffix == ".json"}
        pictures = {path.stem: REPO / path for path in files if path.suffix != ".json"}
        assert pictures and pictures.keys() <= workflows
        assert all(path.suffix == ".jpg" and path.stat().st_size < 100_000 for path in pictures.values())
        assert all(path.read_bytes().startswith(b"\xff\xd8") for path in pictures.values())

    def test_workflows_do_without_nodes_that_changed(self):
        """Core nodes of training have other sockets in newer hosts."""
        for name in packed():
            if name.startswith("workflows/") and name.endswith(".json"):
                types = {node["type"] for node in json.loads(texts()[name])["nodes"]}
                assert not types & {"TrainLoraNode", "LoadTrainingDataset", "SaveTrainingDataset"}, name

    def test_its_name_may_be_any_without_a_dot(self):
        """A clone is named after the repository, an installation after the project: neither stands in the code."""
        sys.path.insert(0, str(REPO / "scripts"))
        try:
            from runner.places import PACK
        finally:
            sys.path.remove(str(REPO / "scripts"))
        assert "." not in PACK
        assert not [name for name in code() if PACK in texts()[name]]

    @pytest.mark.parametrize("name", [name for name in packed() if name.endswith((".py", ".json"))])
    def test_windows_can_read_it(self, name):
        """Source, workflows: some hosts open them in the encoding of the country. Translations are opened as UTF-8."""
        if not name.startswith("locales/zh/"):
            texts()[name].encode("ascii")


def test_the_table_names_tests_that_are_there():
    page = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("## What hosts punish")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        item, _, kept = (cell.strip() for cell in row.strip("|").split(" | "))
        names = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", kept)
        assert names or kept == "no test", item
        for path, test in names:
            text = (REPO / "tests" / path).read_text(encoding="utf-8")
            assert not test or re.search(rf"\b(def|class) {test}\b", text), (path, test)
