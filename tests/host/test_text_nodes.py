"""DICE Sharpen with Text Embedding Blend on the host's own conditioning."""

import pytest
import torch

from .reflection_parts import OTHER, PROMPT

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
NAME, WIDTH = "sharpeners/mine.safetensors", 128
KEEP = {"area": (4, 4, 0, 0), "strength": 0.5, "start_percent": 0.2, "mask": torch.ones(1, 8, 8)}


@pytest.fixture(scope="module")
def encode(top):
    clip = top.load("base")[1]
    return lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))


@pytest.fixture(scope="module")
def core(top):
    return top.module("files.sharpener_file"), top.module("prompts.sharpener")


@pytest.fixture
def loras(core, tmp_path, add_folder):
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
    return add_folder("loras", tmp_path / "loras")


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

    def test_several_entries_with_their_keys(self, sharpen, encode, host):
        prompts = host.node_helpers.conditioning_set_values(encode(PROMPT), KEEP) + encode(OTHER)
        out = sharpen(prompts, null=encode(""))
        assert len(out) == 2 and all(out[0][1][key] is value for key, value in KEEP.items())
        for given, found in zip(prompts, out, strict=True):
            assert torch.equal(found[0], sharpen([given], null=encode(""))[0][0])

    def test_a_prompt_longer_than_null(self, sharpen, encode):
        long = encode("two red circles and " * 12)
        assert sharpen(long, null=encode(""))[0][0].shape == long[0][0].shape == (1, 72, WIDTH)


class TestSharpenRefusals:
    @pytest.fixture
    def refuse(self, sharpen, pack):
        def check(kind, match, *args, **options):
            with pytest.raises(getattr(pack.errors, kind), match=rf"^DICE Sharpen: .*{match}"):
                sharpen(*args, **options)

        return check

    def test_prompts_that_do_not_fit_together(self, refuse, encode):
        prompt, null, negative, long = encode(PROMPT), encode(""), encode(OTHER), encode("two red circles and " * 12)
        refuse("InvalidConfig", "null.*negative", prompt)
        refuse("InvalidConfig", "beta", prompt, beta=1.0, negative=negative)
        refuse("ShapeMismatch", "beta", long, beta=1.0, null=null, negative=negative)
        refuse("InvalidConfig", "alpha is 3.*0 to 2", prompt, 3.0, null=null)
        refuse("InvalidConfig", "null.*2", prompt, null=2 * null)
        refuse("InvalidConfig", "negative.*2", prompt, negative=2 * negative)
        refuse("InvalidConfig", "conditioning", [], null=null)
        refuse("ShapeMismatch", "conditioning", [[None, {}]], null=null)

    @pytest.mark.parametrize("width", [768, 2048, 4096])
    def test_a_prompt_of_another_model(self, refuse, encode, width):
        foreign = [[torch.zeros(1, 77, width), {}]]
        refuse("ShapeMismatch", str(width), foreign, null=encode(""))
        refuse("ShapeMismatch", str(width), encode(PROMPT), null=foreign)

    @pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "gone"])
    def test_nothing_outside_the_folders_is_opened(self, refuse, encode, name):
        refuse("CheckpointMismatch", "loras", encode(PROMPT), name=name, null=encode(""))


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
        assert report.count("1.000") == 2

    def test_the_report(self, blend, encode):
        base, add, full = encode("a red circle"), encode("a blue square"), encode("a red circle left of a blue square")
        _, report = blend(base, add=add, reference=full)
        _, second, third = report.splitlines()
        cosine = torch.nn.functional.cosine_similarity
        mixed = (base[0][0] + add[0][0]).flatten(1)
        assert f"{float(cosine(mixed, full[0][0].flatten(1))):.3f}" in second
        before = float(cosine(base[0][0].flatten(1), full[0][0].flatten(1)))
        assert f"{before:.3f}" in third

    def test_several_entries_with_their_keys(self, blend, encode, host):
        prompts = host.node_helpers.conditioning_set_values(encode(PROMPT), KEEP) + encode("a circle")
        out, report = blend(prompts, add=encode(OTHER))
        assert len(out) == len(report.splitlines()) == 2
        assert all(out[0][1][key] is value for key, value in KEEP.items())

    def test_prompts_without_pooled(self, blend, encode):
        bare = [[encode(PROMPT)[0][0], {}]]
        ((_, extras),), report = blend(bare, add=bare, reference=encode(PROMPT))
        assert extras == {} and "pooled" not in report


class TestNaN:
    @pytest.mark.parametrize("name", ["base", "add", "subtract", "reference"])
    def test_a_blend_names_its_input(self, blend, encode, pack, name):
        given = {"base": encode("a red circle"), name: encode("a blue square")}
        context, extras = given[name][0]
        pooled = extras["pooled_output"].clone()
        pooled[0, 0] = torch.nan
        given[name] = [[context, {**extras, "pooled_output": pooled}]]
        with pytest.raises(pack.errors.InvalidConfig, match=f"^Text Embedding Blend: {name} has NaN"):
            blend(given.pop("base"), **given)

    @pytest.mark.parametrize("name", ["conditioning", "null", "negative"])
    def test_a_sharpener_names_its_input(self, sharpen, encode, pack, name):
        given = {"conditioning": encode("a red circle"), "null": encode("")} | {name: encode("a blue square")}
        given[name] = [[given[name][0][0] * torch.inf, given[name][0][1]]]
        with pytest.raises(pack.errors.InvalidConfig, match=f"^DICE Sharpen: {name} has NaN"):
            sharpen(given.pop("conditioning"), **given)


class TestBlendRefusals:
    @pytest.fixture
    def refuse(self, blend, pack):
        def check(kind, match, *args, **options):
            with pytest.raises(getattr(pack.errors, kind), match=f"^Text Embedding Blend: .*{match}"):
                blend(*args, **options)

        return check

    @pytest.mark.parametrize("name", ["add", "subtract", "reference"])
    def test_prompts_that_do_not_fit_together(self, refuse, encode, name):
        foreign, bare = [[torch.zeros(1, 77, 768), {}]], [[encode(OTHER)[0][0], {"pooled_output": None}]]
        refuse("ShapeMismatch", "768", encode(PROMPT), **{name: foreign})
        refuse("InvalidConfig", f"{name}.*2", encode(PROMPT), **{name: 2 * encode(OTHER)})
        if name != "reference":
            refuse("InvalidConfig", "pooled", encode(PROMPT), **{name: bare})

    def test_no_prompt(self, refuse):
        refuse("InvalidConfig", "base", [])

    def test_lengths_with_a_mask(self, refuse, encode, host):
        masked = host.node_helpers.conditioning_set_values(encode(PROMPT), {"attention_mask": torch.ones(1, 24)})
        refuse("ShapeMismatch", "24.*mask", masked, add=encode("two red circles and " * 12))
