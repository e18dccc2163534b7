"""DICE Sharpen with Text Embedding Blend on the host's own conditioning."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from .reflection_parts import OTHER, PROMPT, bench, relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
NAME, WIDTH = "sharpeners/mine.safetensors", 128
KEEP = {"area": (4, 4, 0, 0), "strength": 0.5, "start_percent": 0.2, "mask": torch.ones(1, 8, 8)}


@pytest.fixture(scope="module")
def top(host, pack):
    return bench(host, pack)


@pytest.fixture(scope="module")
def encode(top):
    clip = top.load("base")[1]
    return lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))


@pytest.fixture(scope="module")
def core(top):
    return top.module("files.sharpener_file"), top.module("prompts.sharpener")


@pytest.fixture
def loras(core, tmp_path):
    """A LoRA folder with a random sharpener for the demo model in it; its path."""
    import folder_paths

    files, network = core
    (tmp_path / "loras" / "sharpeners").mkdir(parents=True)
    with torch.inference_mode(False):
        torch.manual_seed(3)
        sharpener = network.Sharpener(WIDTH, 64, 8)
        sharpener.fc2.weight.data.mul_(20)  # loud enough to be seen in a picture
    info = files.SharpenerInfo(
        method="dice", width=WIDTH, hidden=64, heads=8, alpha=1.0, alpha_min=0.0, alpha_max=2.0, teacher="none",
        base="", step=0, pack_version="0.1.0",
    )  # fmt: skip
    files.write_sharpener(tmp_path / "loras" / NAME, sharpener, info)
    folder_paths.add_model_folder_path("loras", str(tmp_path / "loras"))
    yield tmp_path / "loras"
    folder_paths.folder_names_and_paths["loras"][0].remove(str(tmp_path / "loras"))


@pytest.fixture
def sharpen(pack, loras):
    def run(conditioning, alpha=1.0, beta=0.0, name=NAME, **prompts):
        return pack.nodes["DICESharpen"].execute(conditioning, name, alpha, beta, **prompts).args[0]

    return run


@pytest.fixture
def blend(pack):
    def run(base, add_weight=1.0, subtract_weight=1.0, **prompts):
        return pack.nodes["TextEmbeddingBlend"].execute(base, add_weight, subtract_weight, **prompts).args

    return run


def sockets(node):
    schema = node.GET_SCHEMA()
    return [(i.id, i.get_io_type(), bool(i.optional)) for i in schema.inputs], [o.get_io_type() for o in schema.outputs]


def test_sockets_are_frozen(pack):
    assert sockets(pack.nodes["DICESharpen"]) == (
        [
            ("conditioning", "CONDITIONING", False),
            ("sharpener", "COMBO", False),
            ("alpha", "FLOAT", False),
            ("beta", "FLOAT", False),
            ("null", "CONDITIONING", True),
            ("negative", "CONDITIONING", True),
            ("model", "MODEL", True),
        ],
        ["CONDITIONING"],
    )
    assert sockets(pack.nodes["TextEmbeddingBlend"]) == (
        [
            ("base", "CONDITIONING", False),
            ("add_weight", "FLOAT", False),
            ("subtract_weight", "FLOAT", False),
            ("add", "CONDITIONING", True),
            ("subtract", "CONDITIONING", True),
            ("reference", "CONDITIONING", True),
        ],
        ["CONDITIONING", "STRING"],
    )


def test_numbers_start_where_they_should(pack):
    schemas = {node_id: pack.nodes[node_id].GET_SCHEMA() for node_id in ("DICESharpen", "TextEmbeddingBlend")}
    numbers = {
        i.id: (i.default, i.min, i.max) for s in schemas.values() for i in s.inputs if i.get_io_type() == "FLOAT"
    }
    assert numbers == {
        "alpha": (1.0, 0.0, 10.0),
        "beta": (0.0, 0.0, 10.0),
        "add_weight": (1.0, -10.0, 10.0),
        "subtract_weight": (1.0, -10.0, 10.0),
    }


def test_files_of_the_folder_are_offered(pack, loras):
    assert NAME in pack.nodes["DICESharpen"].GET_SCHEMA().inputs[1].options


class TestSharpen:
    def test_tokens_change_the_rest_stays(self, sharpen, encode):
        prompt = encode(PROMPT)
        before = prompt[0][0].clone()
        ((context, extras),) = sharpen(prompt, null=encode(""))
        assert torch.equal(context[:, 0], before[:, 0]) and (context[:, 1:] != before[:, 1:]).any(-1).all()
        assert extras.keys() == prompt[0][1].keys() and extras is not prompt[0][1]
        assert torch.equal(extras["pooled_output"], prompt[0][1]["pooled_output"])
        assert torch.equal(prompt[0][0], before)

    def test_it_is_the_formula(self, sharpen, encode, core, loras):
        network = core[0].read_sharpener(loras / NAME)[0]
        (c, _), (n, _), (null, _) = (encode(text)[0] for text in (PROMPT, OTHER, ""))
        ((found, _),) = sharpen(encode(PROMPT), 0.7, 0.4, null=encode(""), negative=encode(OTHER))
        expected = c + 0.7 * network(c, n) - 0.4 * (n - null)
        torch.testing.assert_close(found[:, 1:], expected[:, 1:])

    def test_alpha_zero_is_the_prompt(self, sharpen, encode):
        assert torch.equal(sharpen(encode(PROMPT), 0.0, null=encode(""))[0][0], encode(PROMPT)[0][0])

    def test_several_entries_with_their_keys(self, sharpen, encode, host):
        prompts = host.node_helpers.conditioning_set_values(encode(PROMPT), KEEP) + encode(OTHER)
        out = sharpen(prompts, null=encode(""))
        assert len(out) == 2 and all(out[0][1][key] is value for key, value in KEEP.items())
        for given, found in zip(prompts, out, strict=True):
            assert torch.equal(found[0], sharpen([given], null=encode(""))[0][0])

    def test_a_prompt_longer_than_null(self, sharpen, encode):
        long = encode("two red circles and " * 12)
        assert sharpen(long, null=encode(""))[0][0].shape == long[0][0].shape == (1, 72, WIDTH)

    def test_a_negative_alone(self, sharpen, encode):
        against = sharpen(encode(PROMPT), negative=encode(OTHER))[0][0]
        assert torch.equal(against, sharpen(encode(PROMPT), negative=encode(OTHER), null=encode(""))[0][0])
        assert relative(against, sharpen(encode(PROMPT), null=encode(""))[0][0]) > 1e-4

    def test_beta_without_a_negative_has_no_effect(self, sharpen, encode):
        long = encode("two red circles and " * 12)
        with_beta = sharpen(long, beta=0.5, null=encode(""))[0][0]
        assert torch.equal(with_beta, sharpen(long, null=encode(""))[0][0])

    def test_the_picture_costs_one_pass_and_changes(self, sharpen, encode, top):
        world, rows = top.world("flow"), []
        count = world.model.model.diffusion_model.register_forward_pre_hook(
            lambda module, args: rows.append(len(args[0]))
        )
        try:
            plain = ksampler(world.model, encode(PROMPT), encode(""))
            same = ksampler(world.model, sharpen(encode(PROMPT), 0.0, null=encode("")), encode(""))
            sharp = ksampler(world.model, sharpen(encode(PROMPT), null=encode("")), encode(""))
        finally:
            count.remove()
        assert rows == [1] * 9
        assert torch.equal(same, plain)
        assert torch.isfinite(sharp).all() and relative(sharp, plain) > 0.01


def ksampler(model, positive, negative):
    """Three steps of the stock node at cfg 1."""
    import nodes

    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    return nodes.KSampler().sample(model, 5, 3, 1.0, "euler", "normal", positive, negative, latent)[0]["samples"]


class TestSharpenRefusals:
    @pytest.fixture
    def refuse(self, sharpen, pack):
        def check(kind, match, *args, **options):
            with pytest.raises(getattr(pack.errors, kind), match=match) as caught:
                sharpen(*args, **options)
            assert str(caught.value).startswith("DICE Sharpen: ")

        return check

    def test_neither_null_nor_negative(self, refuse, encode):
        refuse("InvalidConfig", "neither null nor negative is connected; connect", encode(PROMPT))

    def test_beta_without_null(self, refuse, encode):
        refuse("InvalidConfig", "beta is not 0", encode(PROMPT), beta=1.0, negative=encode(OTHER))

    def test_alpha_outside_the_file(self, refuse, encode):
        refuse("InvalidConfig", "alpha is 3, this sharpener takes 0 to 2", encode(PROMPT), 3.0, null=encode(""))

    @pytest.mark.parametrize("width", [768, 2048, 4096])
    def test_a_prompt_of_another_model(self, refuse, encode, width):
        foreign = [[torch.zeros(1, 77, width), {}]]
        refuse("ShapeMismatch", rf"\[1, 77, {width}\], this sharpener takes", foreign, null=encode(""))
        refuse("ShapeMismatch", "what it is pushed away from has shape", encode(PROMPT), null=foreign)

    def test_several_nulls(self, refuse, encode):
        refuse("InvalidConfig", "null holds 2 prompts; connect one", encode(PROMPT), null=2 * encode(""))
        refuse("InvalidConfig", "negative holds 2 prompts", encode(PROMPT), negative=2 * encode(OTHER))

    @pytest.mark.parametrize(
        ("prompt", "match"), [([], "holds no prompt"), ([[None, {}]], "holds no token embeddings")]
    )
    def test_no_prompt(self, refuse, encode, prompt, match):
        kind = "ShapeMismatch" if prompt else "InvalidConfig"
        refuse(kind, f"conditioning {match}", prompt, null=encode(""))

    def test_lengths_with_beta(self, refuse, encode):
        long = encode("two red circles and " * 12)
        refuse("ShapeMismatch", "beta pairs tokens", long, beta=1.0, null=encode(""), negative=encode(OTHER))

    @pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "gone"])
    def test_nothing_outside_the_folders_is_opened(self, refuse, encode, name):
        refuse("CheckpointMismatch", "none of the loras folders", encode(PROMPT), name=name, null=encode(""))

    def test_a_pickle(self, refuse, encode, loras):
        (loras / "sharpener.pkl").write_bytes(pickle.dumps({}))
        refuse("CheckpointMismatch", "can run code when opened", encode(PROMPT), name="sharpener.pkl", null=encode(""))

    def test_a_plain_lora(self, refuse, encode, loras):
        save_file({"a.lora_down.weight": torch.zeros(2, 2)}, loras / "plain.safetensors")
        refuse("CheckpointMismatch", "a sharpener file says", encode(PROMPT), name="plain.safetensors", null=encode(""))

    def test_a_truncated_file(self, refuse, encode, loras):
        (loras / NAME).write_bytes((loras / NAME).read_bytes()[:1000])
        refuse("CheckpointMismatch", "not a whole safetensors file", encode(PROMPT), null=encode(""))


class TestBlend:
    def test_context_with_pooled(self, blend, encode):
        base, add, subtract = encode(PROMPT), encode(OTHER), encode("a circle")
        ((context, extras),), _ = blend(base, 0.5, 0.25, add=add, subtract=subtract)
        torch.testing.assert_close(context, base[0][0] + 0.5 * add[0][0] - 0.25 * subtract[0][0])
        pooled = [prompt[0][1]["pooled_output"] for prompt in (base, add, subtract)]
        torch.testing.assert_close(extras["pooled_output"], pooled[0] + 0.5 * pooled[1] - 0.25 * pooled[2])
        assert torch.equal(base[0][0], encode(PROMPT)[0][0])

    def test_nothing_connected_is_the_base(self, blend, encode):
        (entry,), report = blend(encode(PROMPT))
        assert torch.equal(entry[0], encode(PROMPT)[0][0])
        assert report == "prompt 1 to base: tokens 1.000, pooled 1.000"

    def test_the_report(self, blend, encode):
        base, add, full = encode("a red circle"), encode("a blue square"), encode("a red circle left of a blue square")
        _, report = blend(base, add=add, reference=full)
        first, second, third = report.splitlines()
        assert first.startswith("prompt 1 to base: tokens ") and second.startswith("prompt 1 to reference: tokens ")
        cosine = torch.nn.functional.cosine_similarity
        mixed = (base[0][0] + add[0][0]).flatten(1)
        assert f"tokens {float(cosine(mixed, full[0][0].flatten(1))):.3f}, pooled " in second
        before = float(cosine(base[0][0].flatten(1), full[0][0].flatten(1)))
        assert third.startswith(f"base 1 to reference: tokens {before:.3f}, pooled ")

    def test_several_entries_with_their_keys(self, blend, encode, host):
        prompts = host.node_helpers.conditioning_set_values(encode(PROMPT), KEEP) + encode("a circle")
        out, report = blend(prompts, add=encode(OTHER))
        assert len(out) == 2 and all(out[0][1][key] is value for key, value in KEEP.items())
        assert [line[:8] for line in report.splitlines()] == ["prompt 1", "prompt 2"]

    def test_prompts_without_pooled(self, blend, encode):
        bare = [[encode(PROMPT)[0][0], {}]]
        ((_, extras),), report = blend(bare, add=bare, reference=encode(PROMPT))
        assert extras == {} and "pooled" not in report

    def test_a_picture(self, blend, encode, top):
        model = top.world("flow").model
        plain = ksampler(model, encode("a red circle"), encode(""))
        mixed = ksampler(model, blend(encode("a red circle"), 0.5, add=encode("a blue square"))[0], encode(""))
        assert torch.isfinite(mixed).all() and relative(mixed, plain) > 0.01


class TestBlendRefusals:
    @pytest.fixture
    def refuse(self, blend, pack):
        def check(kind, match, *args, **options):
            with pytest.raises(getattr(pack.errors, kind), match=match) as caught:
                blend(*args, **options)
            assert str(caught.value).startswith("Text Embedding Blend: ")

        return check

    def test_another_model(self, refuse, encode):
        refuse("ShapeMismatch", "do not add up", encode(PROMPT), add=[[torch.zeros(1, 77, 768), {}]])
        refuse("ShapeMismatch", "do not add up", encode(PROMPT), reference=[[torch.zeros(1, 77, 768), {}]])

    @pytest.mark.parametrize("name", ["add", "subtract", "reference"])
    def test_several_prompts_in_one_term(self, refuse, encode, name):
        refuse("InvalidConfig", f"{name} holds 2 prompts", encode(PROMPT), **{name: 2 * encode(OTHER)})

    def test_pooled_in_some_only(self, refuse, encode):
        bare = [[encode(OTHER)[0][0], {"pooled_output": None}]]
        refuse("InvalidConfig", "some prompts have a pooled vector, others have none", encode(PROMPT), add=bare)

    def test_no_prompt(self, refuse):
        refuse("InvalidConfig", "base holds no prompt", [])

    def test_lengths_with_a_mask(self, refuse, encode, host):
        masked = host.node_helpers.conditioning_set_values(encode(PROMPT), {"attention_mask": torch.ones(1, 24)})
        refuse("ShapeMismatch", "24 tokens with a mask", masked, add=encode("two red circles and " * 12))
