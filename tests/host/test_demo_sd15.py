"""The embedded model of the SD1.5 class through the nodes that ComfyUI comes with, and through ours."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lab.demo_world.captions import held_out_prompts
from lab.demo_world.verifier import judge

from .reflection_parts import PROMPT, SEED, counted, randn, randomise, relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
STEPS, FINE = 4, 20
SHARPENER = "demo_sd15_sharpener.safetensors"


@pytest.fixture(scope="module")
def demo(pack):
    model, clip, vae = pack.nodes["TinySD3Loader"].execute("sd15").args
    return SimpleNamespace(model=model, clip=clip, vae=vae)


@pytest.fixture(scope="module")
def nodes(host):
    import nodes

    assert nodes.__file__.startswith(str(host.path)), "the host's nodes, not ours"
    return nodes


@pytest.fixture(scope="module")
def encode(nodes, demo):
    return lambda text: nodes.CLIPTextEncode().encode(demo.clip, text)[0]


@pytest.fixture
def sample(nodes, demo, encode):
    """Run KSampler from Empty Latent Image, the node of a stock SD1.5 workflow, which has four channels."""

    def run(model=None, *, cfg=3.0, positive=None, negative=None, sampler="euler", steps=STEPS, batch=1):
        [latent] = nodes.EmptyLatentImage().generate(64, 64, batch)
        prompts = positive or encode(PROMPT), negative or encode("")
        arguments = (SEED, steps, cfg, sampler, "normal", *prompts, latent)
        return nodes.KSampler().sample(model or demo.model, *arguments)[0]["samples"]

    return run


@pytest.fixture(scope="module")
def prompts():
    return held_out_prompts(24)


@pytest.fixture(scope="module")
def together(prompts, encode):
    return [[torch.cat([encode(text)[0][0] for text, _ in prompts]), {}]]


@pytest.fixture
def right(sample, nodes, demo, prompts):
    """Sample one image per prompt, return the share of right ones."""

    def run(positive, cfg, model=None):
        latent = sample(model, positive=positive, cfg=cfg, steps=FINE, batch=len(prompts))
        images = (nodes.VAEDecode().decode(demo.vae, {"samples": latent})[0].numpy() * 255).round().astype(np.uint8)
        return np.mean([judge(image, claim).overall for image, (_, claim) in zip(images, prompts, strict=True)])

    return run


class TestStock:
    def test_it_is_the_hosts_unet_with_noise_prediction(self, demo, host):
        model = demo.model.model
        assert type(demo.model) is host.comfy.model_patcher.ModelPatcher
        assert type(model) is host.comfy.model_base.BaseModel
        assert type(model.diffusion_model) is host.comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
        assert model.model_type is host.comfy.model_base.ModelType.EPS
        assert isinstance(model.model_config, host.comfy.supported_models.SD15)

    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
    def test_a_sampler(self, sampler, sample, demo):
        out = sample(sampler=sampler, batch=2, steps=8)
        assert out.shape == (2, 16, 8, 8) and torch.isfinite(out).all() and out.std() > 0.1
        assert torch.equal(sample(sampler=sampler, batch=2, steps=8), out)

    def test_pictures_show_what_the_prompt_says_and_guidance_helps(self, right, together, record_property):
        shares = {cfg: right(together, cfg) for cfg in (1.0, 3.0)}
        record_property("right", shares)
        assert shares[3.0] > shares[1.0] + 0.1 and shares[3.0] > 0.4

    def test_a_lora(self, nodes, demo, sample, tmp_path, host):
        from safetensors.torch import save_file

        layer, width = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", 128
        low_rank = {f"{layer}.lora_A.weight": randn(1, 4, 128), f"{layer}.lora_B.weight": randn(2, width, 4)}
        save_file(low_rank, tmp_path / "lora.safetensors")
        file = host.comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
        changed, _ = host.comfy.sd.load_lora_for_models(demo.model, None, file, 0.5, 0)
        plain = sample()
        assert relative(sample(changed), plain) > 0.01
        assert torch.equal(sample(), plain)

    @pytest.mark.parametrize("block", [("input", 4), ("middle", 0), ("output", 0)])
    def test_a_patch_of_cross_attention(self, block, demo, sample, host):
        """IP-Adapters add the attention to tokens of an image to that of the prompt in this way."""
        seen, image = [], randn(3, 1, 4, 128)

        def patch(q, k, v, extra_options):
            seen.append(extra_options["block"][:2])
            attention = host.comfy.ldm.modules.attention.optimized_attention
            tokens = image[..., : k.shape[-1]].expand(len(q), -1, -1)
            return attention(q, k, v, extra_options["n_heads"]) + attention(q, tokens, tokens, extra_options["n_heads"])

        patched = demo.model.clone()
        patched.set_model_attn2_replace(patch, *block)
        assert relative(sample(patched), sample()) > 1e-3
        assert len(seen) == STEPS and {tuple(where) for where in seen} == {block}

    def test_a_controlnet(self, demo, sample, encode, nodes, host):
        config = sys.modules[type(demo.model.model.model_config).__module__].UNET_CONFIG
        config = {
            name: value for name, value in config.items() if name not in ("out_channels", "transformer_depth_output")
        }
        import comfy.cldm.cldm

        network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, num_heads=8, dtype=torch.float32)
        randomise(network, 7)
        control = host.comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
        hint, prompts = torch.rand(1, 64, 64, 3), (encode(PROMPT), encode(""))
        positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(*prompts, control, hint, 0.5, 0.0, 1.0)
        assert relative(sample(positive=positive, negative=negative), sample()) > 0.01


class TestOurs:
    def test_a_guidance_term_is_refused_and_the_way_out_named(self, pack, demo, encode):
        with pytest.raises(pack.errors.UnsupportedArchitecture, match="guidance lora.*DICE Sharpen"):
            pack.nodes["TeEFusionConditioning"].execute(demo.model, encode(PROMPT), encode(""), 2.0)

    def test_z_sampling(self, pack, demo, encode, nodes):
        [latent] = nodes.EmptyLatentImage().generate(64, 64, 1)
        settings = {"steps": STEPS, "scheduler": "normal", "denoise": 1.0, "reflect_steps": -1, "rounds": 1}
        run = pack.nodes["ZSampling"].execute
        out = run(demo.model, encode(PROMPT), encode(""), latent, seed=SEED, cfg=3.0, inversion_cfg=0.0,
                  inversion="exact", **settings).args[0]["samples"]  # fmt: skip
        assert out.shape == (1, 16, 8, 8) and torch.isfinite(out).all() and out.std() > 0.1


class TestIncludedStudent:
    def test_it_gives_guidance_in_one_pass(self, pack, sample, encode, right, together, nodes, record_property):
        student, clip, _ = pack.nodes["TinySD3Loader"].execute("sd15_student_guidance_lora").args
        null = nodes.CLIPTextEncode().encode(clip, "")[0]
        fused, prompts = pack.nodes["TeEFusionConditioning"].execute(student, together, null, 2.0).args
        with counted(fused) as passes:
            shares = {"w 2": right(prompts, 1.0, fused), "none": right(together, 1.0)}
        record_property("right", shares)
        assert shares["w 2"] > shares["none"] + 0.1 and shares["w 2"] > 0.4
        assert passes == [(0, len(together[0][0]))] * FINE


class TestIncludedSharpener:
    @pytest.fixture
    def sharpen(self, pack, demo, encode):
        def run(prompt, alpha=1.0):
            return pack.nodes["DICESharpen"].execute(
                prompt, SHARPENER, alpha, 0.0, null=encode(""), model=demo.model
            ).args[0]  # fmt: skip

        return run

    def test_it_gives_guidance_in_one_pass(self, sharpen, right, together, demo, record_property):
        before = {name: weight.clone() for name, weight in demo.model.model.diffusion_model.state_dict().items()}
        with counted(demo.model) as passes:
            shares = {alpha: right(sharpen(together, alpha), 1.0) for alpha in (0.0, 1.0)}
        record_property("right", shares)
        assert shares[1.0] > shares[0.0] + 0.1 and shares[1.0] > 0.4
        assert passes == [(0, len(together[0][0]))] * 2 * FINE
        after = demo.model.model.diffusion_model.state_dict()
        assert all(torch.equal(after[name], weight) for name, weight in before.items())

    def test_more_alpha_up_to_that_of_training_is_more_guidance(self, sharpen, together, demo, encode, record_property):
        from lab.demo_world.measure import predictions
        from teefusion_core.guidance.cfg import effective_guidance

        noise, sampling = randn(5, len(together[0][0]), 16, 8, 8), demo.model.get_model_object("model_sampling")
        sigma = sampling.sigma_max / 3
        where = [(sigma * noise, sigma), (noise, torch.tensor(1.0))]
        null = encode("")
        seen = {alpha: predictions(demo.model, sharpen(together, alpha), null, where, noise)[0]
                for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)}  # fmt: skip
        empty = [[null[0][0].expand_as(together[0][0]), {}]]
        uncond = predictions(demo.model, empty, null, where, noise)[0]
        scales = [float(effective_guidance(x, seen[0.0], uncond).mean()) for x in seen.values()]
        record_property("scales", scales)
        assert scales[0] == pytest.approx(1.0, abs=1e-3) and scales == sorted(scales) and scales[-1] > 1.1

    def test_nodes_list_it_unless_a_file_of_the_user_has_its_name(self, pack, top, tmp_path, add_folder):
        for node, name in (("DICESharpen", "sharpener"), ("GuidanceSweep", "sharpener")):
            [combo] = [item for item in pack.nodes[node].GET_SCHEMA().inputs if item.id == name]
            assert combo.options.count(SHARPENER) == 1
        files = top.module("comfy_host.trained_files")
        assert files.sharpener_file(SHARPENER).parent.name == "models"
        (add_folder("loras", tmp_path / "loras") / SHARPENER).write_bytes(b"mine")
        assert files.sharpener_file(SHARPENER) == tmp_path / "loras" / SHARPENER
        assert files.sharpener_files().count(SHARPENER) == 1
