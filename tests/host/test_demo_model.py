"""The embedded model through the nodes that ComfyUI comes with."""

import random
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lab.demo_world.scenes import sample_picture
from lab.demo_world.verifier import judge

from .reflection_parts import PROMPT, SEED, STEPS, relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
FINE, W = 20, 2.0


@pytest.fixture(scope="session")
def load(pack):
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
    from comfy_extras import nodes_sd3

    import nodes

    assert nodes.__file__.startswith(str(host.path)), "the host's nodes, not ours"
    return SimpleNamespace(
        encode=nodes.CLIPTextEncode().encode,
        empty=lambda **size: nodes_sd3.EmptySD3LatentImage.execute(**size).args[0], ksampler=nodes.KSampler().sample,
        decode=nodes.VAEDecode().decode, encode_picture=nodes.VAEEncode().encode,
    )  # fmt: skip


@pytest.fixture(scope="session")
def prompts(base, stock):
    return tuple(stock.encode(base.clip, text)[0] for text in (PROMPT, ""))


@pytest.fixture
def sample(stock, prompts):
    """Run the stock KSampler node; count the rows of every forward of the network."""

    def run(model, *, cfg, positive=None, batch=1, seed=SEED, steps=STEPS):
        rows = run.rows = []
        seen = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        try:
            latent = stock.empty(width=64, height=64, batch_size=batch)
            arguments = (seed, steps, cfg, "euler", "normal", positive or prompts[0], prompts[1], latent)
            return stock.ksampler(model, *arguments)[0]["samples"]
        finally:
            seen.remove()

    return run


class TestTypes:
    """What comes out is the host's own, nothing that only looks like it."""

    @pytest.mark.parametrize("variant", ["base", "weak", "student"])
    def test_model_clip_and_vae_are_of_the_hosts_classes(self, variant, load, host):
        found, ldm = load(variant), host.comfy.ldm
        model = found.model.model
        assert type(found.model) is host.comfy.model_patcher.ModelPatcher and type(model) is host.comfy.model_base.SD3
        assert type(model.diffusion_model) is ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper
        assert isinstance(model.latent_format, host.comfy.latent_formats.SD3)
        assert isinstance(model.model_sampling, host.comfy.model_sampling.ModelSamplingDiscreteFlow)
        assert model.model_sampling.shift == 3.0
        assert type(found.clip) is host.comfy.sd.CLIP and type(found.vae) is host.comfy.sd.VAE

    def test_only_the_student_says_that_it_is_one(self, load, pack):
        about = {name: load(name).model.get_attachment(pack.comfy_host.STUDENT_KEY) for name in ("base", "student")}
        assert about["base"] is None and about["student"]["method"] == "teefusion" and about["student"]["gain"] > 0
        assert about["student"]["guidance_min"] <= 1 and about["student"]["guidance_max"] >= 4

    def test_weak_differs_from_base(self, load, base, pack):
        prints = [pack.comfy_host.base_fingerprint(load(name).model) for name in ("base", "weak", "student")]
        assert prints[0] != prints[1] and prints[0] == prints[2]


class TestText:
    def test_a_prompt_has_tokens_with_a_pooled_vector(self, prompts, base):
        for ((context, extras),) in prompts:
            assert context.shape == (1, 24, 128) and extras["pooled_output"].shape == (1, 128)
            assert torch.isfinite(context).all() and torch.isfinite(extras["pooled_output"]).all()
        assert base.model.model.adm_channels == 128

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

    def test_the_prompt_with_its_strength_matters(self, base, sample, prompts):
        out = sample(base.model, cfg=4.0)
        assert relative(sample(base.model, cfg=1.0), out) > 0.01
        assert relative(sample(base.model, cfg=4.0, positive=prompts[1]), out) > 0.01


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


class TestStudent:
    @pytest.fixture
    def fused(self, load, pack, prompts):
        return lambda: pack.nodes["TeEFusionConditioning"].execute(load("student").model, *prompts, W).args

    @pytest.mark.parametrize("batch", [1, 3])
    def test_one_pass_per_step(self, fused, sample, batch):
        model, positive = fused()
        out = sample(model, cfg=1.0, positive=positive, batch=batch)
        assert sample.rows == [batch] * STEPS
        assert out.shape == (batch, 16, 8, 8) and torch.isfinite(out).all()
        assert torch.equal(sample(model, cfg=1.0, positive=positive, batch=batch), out)

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


class TestBadFiles:
    """The loader names itself with the file, whatever is wrong in the folder of the pack."""

    @pytest.fixture
    def folder(self, pack, tmp_path, monkeypatch):
        tiny = pack.comfy_host.demo_model
        for path in tiny.MODELS.glob("*.safetensors"):
            shutil.copy(path, tmp_path)
        monkeypatch.setattr(tiny, "MODELS", tmp_path)
        return tmp_path

    @pytest.fixture
    def refuse(self, pack):
        def check(variant, match, error="CheckpointMismatch"):
            with pytest.raises(getattr(pack.errors, error), match=f"^Load Demo Model: .*{match}"):
                pack.nodes["TinySD3Loader"].execute(variant)

        return check

    def test_no_such_variant(self, refuse):
        refuse("giant", "giant.*base, weak, sd15, .*student", error="InvalidConfig")

    def test_a_student_of_another_base(self, refuse, folder):
        shutil.move(folder / "demo_sd3_weak.safetensors", folder / "demo_sd3_base.safetensors")
        refuse("student", "demo_sd3_student.safetensors.*[0-9a-f]{16}.*[0-9a-f]{16}")

    def test_a_student_for_matrices_that_the_base_lacks(self, refuse, folder, pack):
        reader = sys.modules[f"{pack.module.__name__}.teefusion_core.files.student_file"]
        path = folder / "demo_sd3_student.safetensors"
        tensors, info = reader.read_student(path)
        renamed = {name.replace("joint_blocks.0.", "joint_blocks.99."): tensor for name, tensor in tensors.items()}
        reader.write_student(path, renamed, info)
        refuse("student", r"\d+.*\d+")

    @pytest.mark.parametrize("part", ["base", "text", "vae"])
    def test_a_missing_or_truncated_part(self, refuse, folder, part):
        path = folder / f"demo_sd3_{part}.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refuse("base", path.name)
        path.unlink()
        refuse("base", path.name)
