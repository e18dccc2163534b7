"""A real ComfyUI on the CPU, with the pack loaded the way ComfyUI loads custom nodes.

The host comes from COMFYUI_PATH, else from `.host/ComfyUI` in the repository.
"""

import asyncio
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden_weights import state_dict

from teefusion_core.training.settings import DistillSettings

from .distillation_parts import LATENT, NEGATIVE, ROWS, STEPS, TEXTS
from .reflection_parts import bench

REPO = Path(__file__).resolve().parent.parent.parent


def pytest_collection_modifyitems(items):
    """Leave the host's own warnings alone."""
    for item in items:
        if "/tests/host/" in str(item.path):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def host():
    path = Path(os.environ.get("COMFYUI_PATH") or REPO / ".host" / "ComfyUI")
    assert (path / "comfy").is_dir(), f"no ComfyUI in {path}; set COMFYUI_PATH"
    sys.path.insert(0, str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        import comfy.lora
        import comfy.model_base
        import comfy.patcher_extension
        import comfy.sample
        import comfy.samplers
        import comfy.sd
        import node_helpers
        import utils.json_util  # noqa: F401  as main.py does, before the nodes put another `utils` first on the path
        from comfy_extras import nodes_custom_sampler
    return SimpleNamespace(path=path, comfy=comfy, custom_sampler=nodes_custom_sampler, node_helpers=node_helpers)


@pytest.fixture(autouse=True)
def no_dead_models():
    """Take a MODEL that one collection of garbage took together with its parent from the host's list.

    The host would keep it as long as another copy lives, collect all garbage at every load, and fail in a ControlNet.
    """
    yield
    if management := sys.modules.get("comfy.model_management"):
        loaded = management.current_loaded_models
        loaded[:] = [model for model in loaded if not model.is_dead()]


@pytest.fixture
def as_the_host_runs_nodes():
    """Run the test under inference mode."""
    with torch.inference_mode():
        yield


def _public_names(prefix):
    """Return all that the modules of the host side define, under one roof."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith(prefix)}
    found = {name.removeprefix(prefix).rpartition(".")[2]: module for name, module in modules.items()}
    for name, module in modules.items():
        found |= {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == name}
        found |= {key: value for key, value in vars(module).items() if key.isupper()}
    return SimpleNamespace(**found)


@pytest.fixture(scope="session")
def pack(host):
    """Return the pack as a module named after its path, as ComfyUI names it."""
    name = str(REPO).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, REPO / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    core = f"{name}.teefusion_core"
    for late in ("from_file", "from_graph"):  # which no node imports before it runs
        importlib.import_module(f"{core}.comfy_host.training.{late}")
    inner = {"errors": sys.modules[f"{core}.errors"], "fusion": sys.modules[f"{core}.guidance.fusion"]}
    inner["comfy_host"] = _public_names(f"{core}.comfy_host.")
    return SimpleNamespace(module=module, extension=extension, nodes=nodes, **inner)


@pytest.fixture
def add_folder(host):
    import folder_paths

    added = []

    def add(kind, path):
        path.mkdir(parents=True, exist_ok=True)
        folder_paths.add_model_folder_path(kind, str(path))
        added.append((kind, str(path)))
        return path

    yield add
    for kind, path in added:
        folder_paths.folder_names_and_paths[kind][0].remove(path)


@pytest.fixture(scope="session")
def golden_model(host):
    loaded = {}

    def load(case):
        if case not in loaded:
            options = {"dtype": torch.float32}
            loaded[case] = host.comfy.sd.load_diffusion_model_state_dict(state_dict(case), model_options=options)
        return loaded[case]

    return load


@pytest.fixture(scope="module")
def top(host, pack):
    return bench(host, pack)


@pytest.fixture(scope="module")
def world(top):
    return top.world()


@pytest.fixture(scope="module")
def encoded(top):
    """Return prompts, the empty one, a negative one, as CLIPTextEncode makes them: under inference mode."""
    with torch.inference_mode():
        clip = top.load("base")[1]
        return {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (*TEXTS, "", NEGATIVE)}


@pytest.fixture
def distil(host, pack, world, encoded):
    def make(texts=TEXTS, nulls=("", NEGATIVE), guider=None, sampler=None, model=None, **options):
        parts, model = pack.comfy_host, model or world.model
        guider = guider or host.comfy.samplers.CFGGuider(model)
        teacher = parts.Teacher(guider, sampler or host.comfy.samplers.sampler_object("euler"))
        positives = options.pop("positives", None) or parts.Prompts([encoded[text] for text in texts], "prompt")
        start = {name: options.pop(name) for name in ("images",) if name in options} or {"latent_CHW": LATENT}
        settings = dict(teacher_steps=STEPS, images_per_trajectory=ROWS, cache_size=2, rank=4, mixed_precision=False)
        settings |= dict(initial_gain_ratio=0.25, guidance_min=1.0, guidance_max=6.0)
        settings = DistillSettings(**settings | options)
        null = parts.Prompts([encoded[text] for text in nulls], "null")
        return parts.Distillation(model, teacher, positives, null, settings, **start)

    return make
