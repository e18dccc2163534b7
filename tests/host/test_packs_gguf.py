"""The demo base as a GGUF, by ComfyUI-GGUF, through our nodes: each as its twin with the decoded weights.

`scripts/packs.py` runs this file as well. GGUF decodes in float16, which is the difference that is allowed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from teefusion_core.training.loop_settings import TrainSettings

from . import packs_parts
from .reflection_parts import SD3_LORA, randn, relative
from .test_student_loader import fused_picture

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
PACK = "ComfyUI-GGUF"
EQUAL, OTHER = 5e-3, 0.3
EMBEDDERS = ["y_embedder.mlp.2", "t_embedder.mlp.0"]


@dataclass
class Pair:
    """A GGUF and what it decodes to.

    Attributes:
        kind: name of the quantisation.
        model: MODEL of ComfyUI-GGUF.
        twins: two stock MODELs with the decoded weights, each on its own copy.
    """

    kind: str
    model: Any
    twins: list[Any]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory, top):
    custom_nodes = tmp_path_factory.mktemp("comfyui") / "custom_nodes"
    custom_nodes.mkdir()
    assert packs_parts.load(PACK, custom_nodes)
    return pytest.importorskip("gguf")


def quantised(gguf, kind: str, weights: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Write a GGUF; return the weights that it stands for."""
    number, decoded = gguf.GGMLQuantizationType[kind], {}
    writer = gguf.GGUFWriter(str(path), "sd3")
    for name, weight in weights.items():
        plain = weight.float().numpy()
        if plain.ndim == 2 and plain.shape[-1] % 32 == 0:
            coded = gguf.quants.quantize(plain, number)
            writer.add_tensor(name, coded, raw_dtype=number)
            plain = gguf.quants.dequantize(coded, number).copy().reshape(plain.shape)
        else:
            writer.add_tensor(name, plain)
        decoded[name] = torch.from_numpy(plain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def pair(request, gguf, top, pack, tmp_path_factory):
    import comfy.utils
    import folder_paths

    folder = tmp_path_factory.mktemp("gguf")
    weights = comfy.utils.load_torch_file(str(models_of(pack) / "demo_sd3_base.safetensors"))
    decoded = quantised(gguf, request.param, weights, folder / f"demo_{request.param}.gguf")
    folder_paths.add_model_folder_path("unet_gguf", str(folder))
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    model = packs_parts.call("UnetLoaderGGUF", unet_name=f"demo_{request.param}.gguf")
    load = top.comfy.sd.load_diffusion_model_state_dict
    twins = [load(dict(decoded), model_options={"dtype": torch.float32}) for _ in range(2)]
    return Pair(request.param, model, twins)


@pytest.fixture
def tell(pair, record_property):
    def tell(node, column, outcome, difference=0.0):
        version = packs_parts.version(PACK)
        cell = (PACK, version, f"{pair.kind} {node}".strip(), column, outcome, f"{difference:.1e}")
        record_property("cell", "|".join(cell))

    return tell


def models_of(pack) -> Path:
    return pack.comfy_host.load_demo.__globals__["MODELS"]


def with_lora(top, pair, model, layers, strength=1.0):
    state, weights = {}, pair.twins[0].model.state_dict()
    for number, layer in enumerate(layers):
        wide, *narrow = weights[f"diffusion_model.{layer}.weight"].shape
        ones = [1] * (len(narrow) - 1)
        state[f"diffusion_model.{layer}.lora_up.weight"] = 0.3 * randn(number, wide, 2, *ones)
        state[f"diffusion_model.{layer}.lora_down.weight"] = 0.3 * randn(50 + number, 2, *narrow)
    return top.comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]


@pytest.mark.parametrize("layers", [[], EMBEDDERS], ids=["plain", "LoRA on the embedders"])
def test_student_and_conditioning(top, pair, pack, tell, layers):
    def picture(model):
        student = pack.comfy_host.load_student(model, models_of(pack) / "demo_sd3_student.safetensors")
        return fused_picture(pack, top, with_lora(top, pair, student, layers) if layers else student)

    difference = relative(picture(pair.model), picture(pair.twins[0]))
    assert difference < EQUAL
    tell("with a LoRA" if layers else "", "student", "works", difference)


@pytest.mark.parametrize("role", ["Z-Sampling", "strong network", "weak network"])
def test_reflection(top, pair, tell, role):
    world = top.world()

    def picture(model):
        both = {"model": world.model, "weak": model} if role == "weak network" else {"model": model}
        return top.reflect(world, **both | ({"weak": world.weak} if role == "strong network" else {})).samples

    difference = relative(picture(pair.model), picture(pair.twins[0]))
    assert difference < EQUAL
    column = "Z-Sampling" if role == "Z-Sampling" else "W2SD"
    tell("" if column == role else f"as {role}", column, "works", difference)


@pytest.mark.parametrize("sides", [(1.0, None), (None, -1.5), (1.0, -1.5)], ids=["strong", "weak", "both"])
@pytest.mark.parametrize("small", [2**20, 0], ids=["exchanged", "low rank"])
def test_lora_gap(top, pair, tell, sides, small, monkeypatch):
    """A LoRA on one side or on both, on one copy of the coded weights; the twin has a copy for each side."""
    monkeypatch.setattr(top.module("comfy_host.reflection.lora_gap"), "SMALL", small)

    def picture(strong, weak):
        models = [
            model if strength is None else with_lora(top, pair, model, SD3_LORA, strength)
            for model, strength in zip((strong, weak), sides, strict=True)
        ]
        return top.reflect(top.world(), model=models[0], weak=models[1]).samples

    got, same = picture(pair.model, pair.model), top.reflect(top.world(), model=pair.twins[0]).samples
    difference = relative(got, picture(*pair.twins))
    assert difference < EQUAL and relative(got, same) > OTHER
    tell("with a LoRA gap", "W2SD", "works", difference)


def test_a_gap_that_is_no_lora_is_refused(top, pair, pack, tell):
    weak = pair.model.clone()
    patch = ("diff", (0.1 * randn(1, 1024, 256),))
    weak.add_patches({"diffusion_model.joint_blocks.1.x_block.mlp.fc1.weight": patch}, 0.7)
    with pytest.raises(pack.errors.InvalidConfig, match="fc1"):
        top.reflect(top.world(), model=pair.model, weak=weak)
    tell("with a gap that is no LoRA", "W2SD", "refused: coded weights")


def test_trainer(pair, pack, distil, tmp_path, tell):
    def losses(model, name):
        with torch.inference_mode(False):
            loop = TrainSettings(steps=2, batch_size=2, learning_rate=1e-3)
            made = distil(model=model)
            return pack.comfy_host.Training(made, loop, root=tmp_path, name=name, teacher="").run().losses

    mine, theirs = (torch.tensor(losses(model, name)) for model, name in ((pair.model, "a"), (pair.twins[0], "b")))
    difference = relative(mine, theirs)
    assert difference < EQUAL
    tell("losses", "trainer", "works", difference)


def test_a_trainer_that_needs_plain_weights_says_so(pair, pack, distil, tell):
    with pytest.raises(pack.errors.TeEFusionError, match="quantised"), torch.inference_mode(False):
        distil(model=pair.model, trainable="everything")
    tell("with everything trained", "trainer", "refused: coded weights")
