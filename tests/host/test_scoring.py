"""Score Images with tiny judges in a folder of the host, then the same from the command line."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import DATA
from judge_weights import PROMPTS, WORDS, head_weights, image_reward_weights, open_clip_weights, pictures
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from teefusion_core.__main__ import main

from ..unit.pickles import trap

REPO = Path(__file__).resolve().parent.parent.parent
REFERENCES = json.loads((DATA / "judges.json").read_text(encoding="ascii"))
TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 96}
CONFIG = {
    "projection_dim": 96,
    "text_config": TOWER | {"hidden_size": 128, "intermediate_size": 512, "eos_token_id": 49407},
    "vision_config": TOWER | {"hidden_size": 160, "intermediate_size": 640, "patch_size": 14},
}
OFF = {"clip": "off", "pickscore": "off", "hps": "off", "aesthetic": "off", "image_reward": "off"}
ALL = {"clip": "clip", "pickscore": "clip", "hps": "clip", "aesthetic": "head", "image_reward": "reward"}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("clip_vision")
    save_file(open_clip_weights(), made / "clip.safetensors")
    (made / "clip.json").write_text(json.dumps(CONFIG))
    save_file(head_weights(), made / "head.safetensors")
    save_file(image_reward_weights(), made / "reward.safetensors")
    (made / "reward.txt").write_text("\n".join(WORDS.split()))
    return made


@pytest.fixture
def score(host, pack, folder, monkeypatch):
    """Return a function that runs the node on the two pictures one by one, as they differ in size."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(folder)], {".safetensors", ".pt"}))
    folder_paths.filename_list_cache.clear()
    execute = pack.nodes["ScoreImages"].execute

    def run(judges, prompts=PROMPTS, images=None):
        shown = [torch.tensor(_array(picture))[None] for picture in pictures()] if images is None else images
        out = [execute(image, prompt, **OFF | judges).args for image, prompt in zip(shown, prompts, strict=True)]
        return out

    yield run
    folder_paths.filename_list_cache.clear()


def _array(picture):
    return np.asarray(picture, dtype=np.float32) / 255


def found(outputs):
    read = [json.loads(scores)["scores"] for _, scores in outputs]
    return {name: [one[name][0] for one in read] for name in read[0]}


def test_all_judges_at_once_are_those_of_their_libraries(score):
    outputs = score({judge: f"{name}.safetensors" for judge, name in ALL.items()})
    scores = found(outputs)
    assert list(scores) == ["CLIPScore (clip)", "LAION aesthetic", "PickScore", "HPSv2.1", "ImageReward"]
    for name in ("HPSv2.1", "LAION aesthetic", "ImageReward"):
        assert scores[name] == pytest.approx(REFERENCES[name], abs=TOLERANCE), name
    cosines = [value / 100 for value in scores["CLIPScore (clip)"]]
    assert scores["PickScore"] == pytest.approx([math.exp(4.5) * one for one in cosines], rel=1e-4)
    assert f"| {scores['HPSv2.1'][0]:.4f} |" in outputs[0][0]


def test_tokens_are_those_of_open_clip(host, pack):
    tokens = sys.modules[f"{pack.module.__name__}.teefusion_core.comfy_host.evaluation.scoring"].clip_tokens(PROMPTS)
    for ours, theirs in zip(tokens.tolist(), REFERENCES["tokens"], strict=True):
        end = theirs.index(49407) + 1
        assert ours[:end] == theirs[:end] and set(ours[end:]) == {49407}


def test_prompts_share_the_pictures(score):
    images = [torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(1))]
    ((_, read),) = score({"hps": "clip.safetensors"}, ["a circle\na square"], images)
    assert json.loads(read)["prompts"] == ["a circle"] * 2 + ["a square"] * 2


LONG = " ".join(["a red circle"] * 40)


class TestWhatTheTableSays:
    @pytest.mark.parametrize(("judge", "most"), [("hps", "77"), ("image_reward", "35")])
    def test_prompts_that_are_longer_than_a_judge_reads(self, score, judge, most):
        short, cut = score({judge: f"{JUDGES[judge]}.safetensors"}, ["a red circle", LONG])
        assert most not in short[0] and "notes" not in json.loads(short[1])
        assert f"reads {most} tokens" in cut[0].splitlines()[-1] and most in json.loads(cut[1])["notes"][0]

    def test_a_score_that_is_nan_is_no_number(self, pack):
        table = sys.modules[f"{pack.module.__name__}.teefusion_core.evaluation.score_table"].ScoreTable
        whole = table(["1", "2"], ["a", "b"], {"HPSv2.1": [0.25, math.nan], "PickScore": [1.0, 2.0]})
        assert "| 2 | b | NaN | 2.0000 |" in whole.text() and "| mean |  | NaN | 1.5000 |" in whole.text()
        assert "HPSv2.1 is NaN or infinite for 2" in whole.text().splitlines()[-1]
        read = json.loads(whole.json(), parse_constant=lambda word: pytest.fail(word))
        assert read["scores"]["HPSv2.1"] == [0.25, None] and read["means"] == {"HPSv2.1": None, "PickScore": 1.5}


class TestImages:
    """Images as other nodes give them."""

    def test_grey_is_like_grey_of_three_channels(self, score):
        grey = torch.rand(1, 32, 32, 1, generator=torch.Generator().manual_seed(1))
        one, three = (
            score({"hps": "clip.safetensors"}, ["a"], [image]) for image in (grey, grey.expand(-1, -1, -1, 3))
        )
        assert one == three

    def test_transparent_parts_are_white(self, score):
        image = torch.rand(1, 32, 32, 4, generator=torch.Generator().manual_seed(1))
        image[..., 3] = (image[..., 3] > 0.5).float()
        flat = torch.where(image[..., 3:] > 0, image[..., :3], torch.ones(()))
        other = torch.cat(
            [torch.rand_like(flat) * (image[..., 3:] == 0) + flat * (image[..., 3:] > 0), image[..., 3:]], -1
        )
        found = [score({"hps": "clip.safetensors"}, ["a"], [one]) for one in (image, other, flat)]
        assert found[0] == found[1] == found[2]

    @pytest.mark.parametrize("shape", [(32, 32, 3), (1, 3, 32, 32), (1, 32, 32, 5), (0, 32, 32, 3), (1, 2, 32, 32, 3)])
    def test_other_shapes_are_refused(self, score, pack, shape):
        with pytest.raises(pack.errors.ShapeMismatch, match="^Score Images: images .*IMAGE|no image"):
            score({"hps": "clip.safetensors"}, ["a"], [torch.zeros(shape)])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_nan_is_named_with_its_image(self, score, pack, value):
        images = torch.zeros(4, 32, 32, 3)
        images[1, 5, 5, 0] = images[3] = value
        with pytest.raises(pack.errors.InvalidConfig, match="^Score Images: images has NaN.* in images 2, 4"):
            score({"hps": "clip.safetensors"}, ["a"], [images])


class TestErrors:
    @pytest.mark.parametrize(
        ("judges", "error", "value"),
        [
            ({}, "InvalidConfig", "clip_vision"),
            ({"pickscore": "gone.safetensors"}, "CheckpointMismatch", "gone.safetensors.*clip_vision"),
            ({"pickscore": "../clip.safetensors"}, "CheckpointMismatch", "clip_vision"),
            ({"clip": "head.safetensors"}, "CheckpointMismatch", "head.safetensors"),
            ({"image_reward": "clip.safetensors"}, "CheckpointMismatch", "clip.safetensors"),
            ({"hps": "reward.safetensors"}, "CheckpointMismatch", "reward.safetensors"),
            ({"aesthetic": "head.safetensors"}, "InvalidConfig", "clip"),
            ({"clip": "clip.safetensors", "aesthetic": "clip.safetensors"}, "CheckpointMismatch", "clip.safetensors"),
        ],
        ids=str,
    )
    def test_files_that_are_missing_or_wrong(self, score, pack, judges, error, value):
        with pytest.raises(getattr(pack.errors, error), match=f"^Score Images: .*{value}"):
            score(judges)

    def test_a_pickle_is_refused_unread(self, score, pack, folder, tmp_path):
        (folder / "judge.pt").write_bytes(trap(tmp_path / "sprung"))
        try:
            with pytest.raises(pack.errors.CheckpointMismatch, match="judge.pt.*convert"):
                score({"hps": "judge.pt"})
        finally:
            (folder / "judge.pt").unlink()
        assert not (tmp_path / "sprung").exists()

    def test_words_that_are_missing(self, score, pack, folder):
        (folder / "reward.txt").rename(folder / "away.txt")
        try:
            with pytest.raises(pack.errors.CheckpointMismatch, match="reward.txt"):
                score({"image_reward": "reward.safetensors"})
        finally:
            (folder / "away.txt").rename(folder / "reward.txt")

    def test_no_prompt(self, score, pack):
        with pytest.raises(pack.errors.InvalidConfig, match="prompts"):
            score({"hps": "clip.safetensors"}, ["", ""])

    def test_cancel(self, score, host, monkeypatch):
        def pressed():
            raise host.comfy.model_management.InterruptProcessingException

        monkeypatch.setattr(host.comfy.model_management, "throw_exception_if_processing_interrupted", pressed)
        with pytest.raises(host.comfy.model_management.InterruptProcessingException):
            score({"hps": "clip.safetensors"})


class TestTheCommand:
    @pytest.fixture
    def command(self, host):
        def run(*arguments):
            return subprocess.run(
                [sys.executable, "-m", "teefusion_core", *map(str, arguments)],
                cwd=REPO, capture_output=True, text=True,
                env={**os.environ, "COMFYUI_PATH": str(host.path), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
                timeout=500,
            )  # fmt: skip

        return run

    def test_a_folder_is_scored(self, command, folder, tmp_path):
        for number, (picture, prompt) in enumerate(zip(pictures(), PROMPTS, strict=True)):
            picture.save(tmp_path / f"{number}.png")
            (tmp_path / f"{number}.txt").write_text(prompt)
        out = tmp_path / "deep" / "scores.json"
        done = command("score", tmp_path, "--hps", folder / "clip.safetensors", "--out", out)
        assert done.returncode == 0, done.stderr
        assert json.loads(out.read_text())["scores"]["HPSv2.1"] == pytest.approx(REFERENCES["HPSv2.1"], abs=TOLERANCE)
        assert "| 0.png | a red circle, left of a small blue square! |" in done.stdout

    def test_what_is_wrong_is_one_line(self, host, tmp_path, monkeypatch):
        """In this process, to be quick."""
        monkeypatch.setenv("COMFYUI_PATH", str(host.path))
        monkeypatch.setattr(sys, "argv", ["teefusion", "score", str(tmp_path), "--hps", "gone.safetensors"])
        with pytest.raises(SystemExit, match=r"^TeEFusion: [^\n]*$"):
            main()


class TestConversion:
    @pytest.fixture
    def converted(self, tmp_path, capsys, monkeypatch):
        """Return a function that saves a pickle, converts it with the command, and returns tensors and output."""

        def run(content, *options, target="judge.safetensors"):
            source = tmp_path / "judge.pt"
            if content is not None:
                source.write_bytes(content) if isinstance(content, bytes) else torch.save(content, source)
            monkeypatch.setattr(sys, "argv", ["teefusion", "convert", str(source), str(tmp_path / target), *options])
            main()
            return load_file(tmp_path / target), capsys.readouterr().out

        return run

    @pytest.mark.parametrize(
        ("nest", "name"),
        [
            (lambda w: w, ""),
            (lambda w: {"state_dict": w, "epoch": 3, "opt": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "state_dict"),
            (lambda w: {"model": w, "optimizer": {"exp_avg": {"w": torch.ones(3)}}}, "model"),
            (lambda w: {"params": w, "step": torch.tensor(3)}, "params"),
            (lambda w: {"checkpoint": {"model": w}, "args": {"lr": 0.1}}, "checkpoint.model"),
        ],
        ids=["flat", "with its optimizer", "with another one", "params", "two levels"],
    )  # fmt: skip
    def test_the_state_that_it_takes_is_named(self, converted, nest, name):
        weights = head_weights()
        written, out = converted(nest(weights))
        assert written.keys() == weights.keys() and all(torch.equal(written[key], weights[key]) for key in weights)
        assert f"{len(weights)} tensors" in out and (f"'{name}'" in out if name else "'" not in out)

    @pytest.mark.parametrize(
        ("nest", "names"),
        [
            (lambda w, other: {"model": w, "ema": other}, ["model", "ema"]),
            (lambda w, other: {"state_dict": w, "ema": {"shadow": other}}, ["state_dict", "ema.shadow"]),
            (lambda w, other: {**w, "ema": other}, [".", "ema"]),
        ],
        ids=["two", "one deeper", "one around the other"],
    )
    def test_one_of_several_states_must_be_chosen(self, converted, nest, names, tmp_path):
        both = {names[0]: head_weights(), names[1]: {name: value + 1 for name, value in head_weights().items()}}
        content = nest(*both.values())
        with pytest.raises(SystemExit, match="several states.*--state") as caught:
            converted(content)
        assert all(f"{name} ({len(both[name])} tensors)" in str(caught.value) for name in names)
        with pytest.raises(SystemExit, match="no state other"):
            converted(content, "--state", "other")
        assert not (tmp_path / "judge.safetensors").exists()
        for number, (name, weights) in enumerate(both.items()):
            written, _ = converted(content, "--state", name, target=f"{number}.safetensors")
            assert all(torch.equal(written[key], weights[key]) for key in weights)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "empty"),
            (b"<html>", "web page"),
            (b"\x80\x02cut", ""),
            ({"epoch": 3}, "no tensors"),
            (None, "missing"),
        ],
    )
    def test_what_is_no_pickle_of_tensors(self, converted, content, said):
        with pytest.raises(SystemExit, match=rf"^TeEFusion: [^\n]*judge.pt[^\n]*{said}[^\n]*$"):
            converted(content)

    def test_a_file_that_exists_is_kept(self, converted, tmp_path):
        (tmp_path / "judge.safetensors").write_text("mine")
        with pytest.raises(SystemExit, match="judge.safetensors"):
            converted(head_weights())
        assert (tmp_path / "judge.safetensors").read_text() == "mine"

    def test_a_pickle_of_something_else_is_not_run(self, converted, tmp_path):
        with pytest.raises(SystemExit, match="judge.pt"):
            converted(trap(tmp_path / "sprung"))
        assert not (tmp_path / "sprung").exists() and not (tmp_path / "judge.safetensors").exists()


JUDGES = {"hps": "clip", "clip": "clip", "aesthetic": "head", "image_reward": "reward"}
WEIGHT = {
    "hps": "visual.transformer.resblocks.1.mlp.c_fc.weight", "clip": "transformer.resblocks.0.ln_1.bias",
    "aesthetic": "layers.4.weight", "image_reward": "mlp.layers.2.bias",
}  # fmt: skip


class TestDamagedJudges:
    @pytest.mark.parametrize("kind", ["missing", "NaN", "infinite", "short", "scalar"])
    @pytest.mark.parametrize("judge", JUDGES)
    def test_weights_that_are_not_whole(self, score, pack, folder, judge, kind):
        name, weights = WEIGHT[judge], load_file(folder / f"{JUDGES[judge]}.safetensors")
        if kind == "missing":
            del weights[name]
        else:
            changes = {"NaN": torch.nan, "infinite": torch.inf}
            values = weights[name] * changes[kind] if kind in changes else weights[name][:-1]
            weights[name] = torch.tensor(1.0) if kind == "scalar" else values.contiguous()
        save_file(weights, folder / "damaged.safetensors")
        for end in (".json", ".txt"):
            if (folder / f"{JUDGES[judge]}{end}").exists():
                (folder / f"damaged{end}").write_bytes((folder / f"{JUDGES[judge]}{end}").read_bytes())
        chosen = {judge: "damaged.safetensors"} | ({"clip": "clip.safetensors"} if judge == "aesthetic" else {})
        with pytest.raises(pack.errors.CheckpointMismatch, match=r"^Score Images: damaged.safetensors"):
            score(chosen)

    @pytest.mark.parametrize("tower", ["vision_model", "text_model"])
    def test_a_published_model_with_a_layer_less(self, pack, tower, tmp_path):
        """Without it the model would be a smaller one that nobody trained."""
        module = sys.modules[f"{pack.module.__name__}.teefusion_core.evaluation.clip_weights"]
        backbone = module.BACKBONES[1024, 14]
        weights = {
            f"{name}.encoder.layers.{layer}.mlp.fc1.weight": torch.zeros(1, 1)
            for name, layers in zip(("vision_model", "text_model"), backbone.layers, strict=True)
            for layer in range(layers)
        }
        module._check_layers(weights, backbone, tmp_path / "a.safetensors")
        weights.pop(max((name for name in weights if name.startswith(tower)), key=lambda name: int(name.split(".")[3])))
        with pytest.raises(pack.errors.CheckpointMismatch, match=f"a.safetensors has .*{tower}"):
            module._check_layers(weights, backbone, tmp_path / "a.safetensors")

    def test_a_converted_file_lists_its_tensors(self, score, pack, folder, monkeypatch):
        """So that a layer less is noticed in a file of any kind."""
        torch.save(load_file(folder / "head.safetensors"), folder / "head.pt")
        monkeypatch.setattr(sys, "argv", ["_", "convert", str(folder / "head.pt"), str(folder / "again.safetensors")])
        main()
        (folder / "head.pt").unlink()
        with safe_open(folder / "again.safetensors", "pt") as file:
            metadata = file.metadata()
        weights = load_file(folder / "again.safetensors")
        del weights["layers.7.bias"]
        save_file(weights, folder / "again.safetensors", metadata=metadata)
        with pytest.raises(pack.errors.CheckpointMismatch, match=r"again.safetensors lacks the tensor layers.7.bias"):
            score({"clip": "clip.safetensors", "aesthetic": "again.safetensors"})


class _Judge(torch.nn.Linear):
    """It notes where it is sent as a whole."""

    def __init__(self):
        super().__init__(2, 2)
        self.sent = []

    def to(self, *args):
        self.sent.append(str(args[0]))
        return super().to(*args)


class TestTheDevice:
    """A device without free memory for the judge, where the host's own loader would leave parts of it behind."""

    @pytest.fixture
    def management(self, host, monkeypatch):
        management = host.comfy.model_management
        none = {False: 0, True: (0, 0)}
        monkeypatch.setattr(
            management, "get_free_memory", lambda device=None, torch_free_too=False: none[torch_free_too]
        )
        return management

    @pytest.fixture
    def on_device(self, pack):
        return sys.modules[f"{pack.module.__name__}.teefusion_core.comfy_host.evaluation.scoring"]._on_device

    def test_a_judge_is_there_as_a_whole_and_leaves_again(self, management, on_device):
        judge = _Judge()
        with on_device(judge):
            assert judge.sent == ["cpu"]
        with pytest.raises(ValueError, match="mine"), on_device(judge):
            raise ValueError("mine")
        assert judge.sent == 4 * ["cpu"]

    def test_other_models_make_room(self, management, on_device, world):
        management.load_models_gpu([world.model])
        assert world.model in [loaded.model for loaded in management.current_loaded_models]
        with on_device(_Judge()):
            assert world.model not in [loaded.model for loaded in management.current_loaded_models]

    def test_too_little_memory_is_a_sentence(self, management, on_device, pack):
        judge = _Judge()
        with pytest.raises(pack.errors.InvalidConfig, match="GiB.*memory.*--cpu"), on_device(judge):
            raise management.OOM_EXCEPTION("CUDA out of memory")
        assert judge.sent == 2 * ["cpu"]
