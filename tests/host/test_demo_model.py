"""The embedded model through the nodes that ComfyUI comes with."""

import random
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lab.demo_world.scenes import sample_picture
from lab.demo_world.verifier import judge
from teefusion_core.training.adapters import Lora, linear_layers

PROMPT = "a red circle left of a small blue square on a white background"
STEPS, SEED, FINE = 3, 5, 20
MOST_BYTES = 40e6
LOADER = "Load Demo SD3"
W = 2.0


@pytest.fixture(autouse=True)
def _as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def load(pack):
    """Return a function that loads a variant through the node (kept)."""
    kept = {}

    def variant(name):
        if name not in kept:
            model, clip, vae = pack.nodes["TinySD3Loader"].execute(name).args
            kept[name] = SimpleNamespace(model=model, clip=clip, vae=vae)
        return kept[name]

    return variant


@pytest.fixture(scope="session")
def base(load):
    return load("base")


@pytest.fixture(scope="session")
def stock(host):
    """Return the host's own nodes by name."""
    from comfy_extras import nodes_model_advanced, nodes_sd3

    import nodes

    assert nodes.__file__.startswith(str(host.path)), "the host's nodes, not ours"
    custom = host.custom_sampler
    return SimpleNamespace(
        encode=nodes.CLIPTextEncode().encode,
        empty=lambda **size: nodes_sd3.EmptySD3LatentImage.execute(**size).args[0],
        ksampler=nodes.KSampler().sample,
        ksampler_advanced=nodes.KSamplerAdvanced().sample,
        decode=nodes.VAEDecode().decode,
        encode_picture=nodes.VAEEncode().encode,
        shift=nodes_model_advanced.ModelSamplingSD3().patch,
        lora_loader=nodes.LoraLoader,
        custom=custom,
    )


@pytest.fixture(scope="session")
def prompts(base, stock):
    """Prompt with the empty prompt, encoded by the stock node."""
    return tuple(stock.encode(base.clip, text)[0] for text in (PROMPT, ""))


@pytest.fixture
def sample(stock, prompts):
    """Run the stock KSampler node; count the rows of every forward of the network."""

    def run(model, *, cfg, positive=None, batch=1, size=64, seed=SEED, steps=STEPS):
        rows = run.rows = []
        seen = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        try:
            latent = stock.empty(width=size, height=size, batch_size=batch)
            arguments = (seed, steps, cfg, "euler", "normal", positive or prompts[0], prompts[1], latent)
            return stock.ksampler(model, *arguments)[0]["samples"]
        finally:
            seen.remove()

    return run


def relative(a, b):
    return float((a - b).norm() / b.norm())


class TestTypes:
    """What comes out is the host's own, nothing that only looks like it."""

    @pytest.mark.parametrize("variant", ["base", "weak", "student"])
    def test_the_model_is_the_hosts_sd3(self, variant, load, host):
        model = load(variant).model
        assert type(model) is host.comfy.model_patcher.ModelPatcher
        assert type(model.model) is host.comfy.model_base.SD3
        network = model.model.diffusion_model
        assert type(network) is host.comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper
        assert isinstance(model.model.latent_format, host.comfy.latent_formats.SD3)
        assert isinstance(model.model.model_sampling, host.comfy.model_sampling.ModelSamplingDiscreteFlow)
        assert model.model.model_sampling.shift == 3.0

    def test_the_text_encoder_is_the_hosts_clip(self, base, host):
        assert type(base.clip) is host.comfy.sd.CLIP

    def test_the_picture_codec_is_the_hosts_vae(self, base, host):
        assert type(base.vae) is host.comfy.sd.VAE
        assert base.vae.latent_channels == 16

    def test_only_the_student_says_that_it_is_one(self, load, pack):
        about = {name: load(name).model.get_attachment(pack.comfy_host.STUDENT_KEY) for name in ("base", "student")}
        assert about["base"] is None
        assert about["student"]["method"] == "teefusion" and about["student"]["gain"] > 0
        assert about["student"]["guidance_min"] <= 1 and about["student"]["guidance_max"] >= 4

    def test_weak_differs_from_base(self, load, base, pack):
        prints = [pack.comfy_host.base_fingerprint(load(name).model) for name in ("base", "weak", "student")]
        assert prints[0] != prints[1] and prints[0] == prints[2]

    def test_all_files_are_small(self, pack, record_property):
        files = list(_tiny(pack).MODELS.glob("*.safetensors"))
        total = sum(path.stat().st_size for path in files)
        record_property("bytes", total)
        assert len(files) >= 5 and total <= MOST_BYTES


def _tiny(pack):
    return pack.comfy_host.demo_model


class TestText:
    def test_a_prompt_has_tokens_with_a_pooled_vector(self, prompts, base):
        for ((context, extras),) in prompts:
            assert context.shape == (1, 24, 128) and extras["pooled_output"].shape == (1, 128)
            assert torch.isfinite(context).all() and torch.isfinite(extras["pooled_output"]).all()
        assert base.model.model.adm_channels == 128

    def test_other_words_give_another_prompt(self, base, stock, prompts):
        other = stock.encode(base.clip, PROMPT.replace("red", "green"))[0]
        assert relative(other[0][1]["pooled_output"], prompts[0][0][1]["pooled_output"]) > 0.05

    def test_capitals_with_punctuation_change_nothing(self, base, stock, prompts):
        shouted = stock.encode(base.clip, PROMPT.upper() + " .")[0]
        assert torch.equal(shouted[0][0], prompts[0][0][0])

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [("a chartreuse dodecahedron", 24), ("two red circles and " * 12, 72), ("(red:1.4) ring", 24)],
    )
    def test_unknown_words_long_texts_weights(self, base, stock, sample, text, tokens):
        positive = stock.encode(base.clip, text)[0]
        assert positive[0][0].shape == (1, tokens, 128)
        assert torch.isfinite(sample(base.model, cfg=4.0, positive=positive)).all()


class TestSampling:
    @pytest.mark.parametrize(("cfg", "passes"), [(4.0, 2), (1.0, 1)])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_ksampler(self, base, sample, cfg, passes, batch):
        out = sample(base.model, cfg=cfg, batch=batch)
        assert out.shape == (batch, 16, 8, 8) and torch.isfinite(out).all() and out.std() > 0.1
        assert sum(sample.rows) == passes * STEPS * batch
        assert torch.equal(sample(base.model, cfg=cfg, batch=batch), out)
        assert not torch.equal(sample(base.model, cfg=cfg, batch=batch, seed=SEED + 1), out)

    def test_pictures_of_another_size(self, base, sample):
        assert sample(base.model, cfg=1.0, size=128).shape == (1, 16, 16, 16)

    def test_the_prompt_with_its_strength_matters(self, base, sample, prompts):
        out = sample(base.model, cfg=4.0)
        assert relative(sample(base.model, cfg=1.0), out) > 0.01
        assert relative(sample(base.model, cfg=4.0, positive=prompts[1]), out) > 0.01

    def test_advanced_halves_make_the_whole(self, base, sample, stock, prompts):
        latent, names = stock.empty(width=64, height=64), ("euler", "normal", *prompts)
        first = stock.ksampler_advanced(base.model, "enable", SEED, STEPS, 4.0, *names, latent, 0, 2, "enable")[0]
        second = stock.ksampler_advanced(base.model, "disable", SEED, STEPS, 4.0, *names, first, 2, STEPS, "disable")[0]
        assert relative(second["samples"], sample(base.model, cfg=4.0)) < 1e-4
        assert relative(first["samples"], second["samples"]) > 1e-3

    def test_custom_sampling_is_the_same_run(self, base, sample, stock, prompts):
        parts = stock.custom
        guider = parts.CFGGuider.execute(base.model, *prompts, 4.0).args[0]
        sigmas = parts.BasicScheduler.execute(base.model, "normal", STEPS, 1.0).args[0]
        euler, noise = parts.KSamplerSelect.execute("euler").args[0], parts.RandomNoise.execute(SEED).args[0]
        latent = stock.empty(width=64, height=64)
        out, denoised = parts.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent).args
        assert torch.equal(out["samples"], sample(base.model, cfg=4.0))
        assert torch.isfinite(denoised["samples"]).all()

    def test_image_to_image(self, base, stock, prompts):
        picture = torch.from_numpy(sample_picture(random.Random(0))[1].copy())[None] / 255
        latent = stock.encode_picture(base.vae, picture)[0]
        arguments = (SEED, 4, 4.0, "euler", "normal", *prompts, latent)
        near, far = (stock.ksampler(base.model, *arguments, denoise=denoise)[0]["samples"] for denoise in (0.25, 0.9))
        assert relative(near, latent["samples"]) < relative(far, latent["samples"])

    def test_another_shift_is_another_schedule(self, base, sample, stock):
        plain = sample(base.model, cfg=1.0)
        three, one = (stock.shift(base.model, shift)[0] for shift in (3.0, 1.0))
        assert one.get_model_object("model_sampling").shift == 1.0
        assert relative(sample(three, cfg=1.0), plain) < 1e-6
        assert relative(sample(one, cfg=1.0), plain) > 1e-3
        assert torch.equal(sample(base.model, cfg=1.0), plain)


class TestPictures:
    def test_decoded_latents_are_pictures(self, base, sample, stock):
        picture = stock.decode(base.vae, {"samples": sample(base.model, cfg=4.0, batch=2)})[0]
        assert picture.shape == (2, 64, 64, 3)
        assert picture.min() >= 0 and picture.max() <= 1 and torch.isfinite(picture).all()

    def test_scenes_survive_the_codec(self, base, stock, record_property):
        rng = random.Random(1)
        scenes, pictures = zip(*(sample_picture(rng, held_out=True) for _ in range(100)), strict=True)
        batch = torch.from_numpy(np.stack(pictures)).float() / 255
        latent = stock.encode_picture(base.vae, batch)[0]
        assert latent["samples"].shape == (100, 16, 8, 8)
        # the host's SD3 format is what the network sees; it should be about standard normal
        seen = base.model.model.process_latent_in(latent["samples"])
        assert abs(seen.mean()) < 0.3 and 0.7 < seen.std() < 1.3
        back = (stock.decode(base.vae, latent)[0].numpy() * 255).round().astype(np.uint8)
        right = np.mean([judge(picture, scene).overall for picture, scene in zip(back, scenes, strict=True)])
        record_property("right", right)
        assert right >= 0.97


class TestLora:
    @pytest.fixture
    def lora(self, base, host, tmp_path):
        """A LoRA file in the host's folder with the update that it holds."""
        import folder_paths

        network = base.model.model.diffusion_model
        update = Lora(network, 4, layers=[path for path in linear_layers(network) if "attn" in path])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for up in update.up.values():
                up.copy_(0.1 * torch.randn(up.shape, generator=generator))
        save_file(update.state(), tmp_path / "tiny_lora.safetensors")
        folder_paths.add_model_folder_path("loras", str(tmp_path))
        yield SimpleNamespace(name="tiny_lora.safetensors", update=update)
        folder_paths.folder_names_and_paths["loras"][0].remove(str(tmp_path))

    def test_the_stock_loader_reads_our_updates(self, base, sample, stock, lora):
        plain = sample(base.model, cfg=1.0)
        model, clip = stock.lora_loader().load_lora(base.model, base.clip, lora.name, 1.0, 1.0)
        patched = sample(model, cfg=1.0)
        assert relative(patched, plain) > 0.01
        merged = base.model.clone()
        for path in lora.update.layers:
            up, down = lora.update.factors(path)
            merged.add_patches({f"diffusion_model.{path}.weight": ("diff", ((up @ down).detach(),))})
        assert relative(patched, sample(merged, cfg=1.0)) < 1e-3
        assert torch.equal(sample(base.model, cfg=1.0), plain), "nothing of the LoRA may stay"

    def test_it_goes_together_with_the_student(self, load, sample, stock, lora, pack, prompts):
        student = load("student")

        def fused_picture(model):
            model, positive = _fused(pack, model, prompts)
            return sample(model, cfg=1.0, positive=positive)

        model, _ = stock.lora_loader().load_lora(student.model, student.clip, lora.name, 1.0, 1.0)
        assert model.get_attachment(pack.comfy_host.STUDENT_KEY)["gain"] > 0
        assert relative(fused_picture(model), fused_picture(student.model)) > 0.01


def _fused(pack, model, prompts, w=W):
    return pack.nodes["TeEFusionConditioning"].execute(model, *prompts, w).args


class TestStudent:
    @pytest.fixture
    def fused(self, load, pack, prompts):
        return lambda w=W: _fused(pack, load("student").model, prompts, w)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_one_pass_per_step(self, fused, sample, batch):
        model, positive = fused()
        out = sample(model, cfg=1.0, positive=positive, batch=batch)
        assert sample.rows == [batch] * STEPS
        assert out.shape == (batch, 16, 8, 8) and torch.isfinite(out).all()
        assert torch.equal(sample(model, cfg=1.0, positive=positive, batch=batch), out)

    def test_guidance_is_heard(self, fused, sample):
        weak, strong = (sample(model, cfg=1.0, positive=positive) for model, positive in (fused(1.0), fused(4.0)))
        assert relative(strong, weak) > 0.01

    def test_a_student_is_nearer_to_its_teacher_than_the_base_is(self, fused, sample, base, load, pack, prompts, stock):
        empty, cfg = stock.empty(width=64, height=64, batch_size=8), {"strong_cfg": 1.0, "weak_cfg": 1.0}
        settings = {"seed": SEED, "steps": FINE, "scheduler": "normal", "denoise": 1.0}
        settings |= {"reflect_steps": -1, "rounds": 1, "inversion": "exact", "weak_model": load("weak").model}
        run = pack.nodes["W2SDTeacherSampler"].execute
        teacher = run(base.model, *prompts, empty, **cfg, final_cfg=1 + W, **settings).args[0]["samples"]
        model, positive = fused()
        student, plain = (
            sample(which, cfg=1.0, positive=prompt, batch=8, steps=FINE)
            for which, prompt in ((model, positive), (base.model, prompts[0]))
        )
        assert relative(student, teacher) < 0.7 * relative(plain, teacher)

    def test_loading_the_student_leaves_the_base_alone(self, base, sample, load):
        plain = sample(base.model, cfg=1.0)
        load("student")
        assert torch.equal(sample(base.model, cfg=1.0), plain)

    def test_guidance_outside_the_trained_range(self, fused, pack):
        with pytest.raises(
            pack.errors.InvalidConfig, match="TeEFusion Conditioning: guidance is .* trained for w from"
        ):
            fused(90.0)


class TestBadFiles:
    """The loader names itself with the file, whatever is wrong in the folder of the pack."""

    @pytest.fixture
    def folder(self, pack, tmp_path, monkeypatch):
        """A copy of the shipped files that may be spoilt."""
        tiny = _tiny(pack)
        for path in tiny.MODELS.glob("*.safetensors"):
            shutil.copy(path, tmp_path)
        monkeypatch.setattr(tiny, "MODELS", tmp_path)
        return tmp_path

    @pytest.fixture
    def refuse(self, pack):
        def check(variant, match, error="CheckpointMismatch"):
            with pytest.raises(getattr(pack.errors, error), match=match) as caught:
                pack.nodes["TinySD3Loader"].execute(variant)
            assert str(caught.value).startswith(f"{LOADER}: ")

        return check

    STUDENT = "demo_sd3_student.safetensors"

    def test_whole_files_load(self, folder, pack):
        assert len(pack.nodes["TinySD3Loader"].execute("student").args) == 3

    def test_no_such_variant(self, refuse, folder):
        refuse("giant", "variant is 'giant'; choose one of base, weak, student", error="InvalidConfig")

    def test_a_student_of_another_base(self, refuse, folder):
        weak = folder / "demo_sd3_weak.safetensors"
        shutil.move(weak, folder / "demo_sd3_base.safetensors")
        refuse("student", f"{self.STUDENT} was trained from the base [0-9a-f]{{16}}, this model is [0-9a-f]{{16}}")

    def test_a_student_without_metadata(self, refuse, folder):
        save_file(load_file(folder / self.STUDENT), folder / self.STUDENT)
        refuse("student", f"{self.STUDENT} says format None")

    def test_a_truncated_student(self, refuse, folder):
        _cut(folder / self.STUDENT)
        refuse("student", f"{self.STUDENT} is not a whole safetensors file")

    def test_a_pickled_student(self, refuse, folder):
        torch.save({"a": torch.zeros(1)}, folder / self.STUDENT)
        refuse("student", f"{self.STUDENT} is not a whole safetensors file")

    def test_a_student_for_matrices_that_the_base_lacks(self, refuse, folder, pack):
        reader = sys.modules[f"{pack.module.__name__}.teefusion_core.files.student_file"]
        tensors, info = reader.read_student(folder / self.STUDENT)
        renamed = {name.replace("joint_blocks.0.", "joint_blocks.99."): tensor for name, tensor in tensors.items()}
        reader.write_student(folder / self.STUDENT, renamed, info)
        refuse("student", r"has \d+ updates, only \d+ fit this model")

    @pytest.mark.parametrize("part", ["base", "text", "vae"])
    def test_a_missing_part(self, refuse, folder, part):
        (folder / f"demo_sd3_{part}.safetensors").unlink()
        refuse("base", f"demo_sd3_{part}.safetensors .* install the pack again")

    @pytest.mark.parametrize("part", ["base", "text", "vae"])
    def test_a_truncated_part(self, refuse, folder, part):
        _cut(folder / f"demo_sd3_{part}.safetensors")
        refuse("base", f"demo_sd3_{part}.safetensors .* install the pack again")


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
