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
    def test_a_pickle_of_tensors_is_converted(self, pack, tmp_path):
        weights, target = head_weights(), tmp_path / "head.safetensors"
        torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "head.pth")
        assert pack.comfy_host.convert(tmp_path / "head.pth", target) == len(weights)
        written = load_file(target)
        assert written.keys() == weights.keys() and all(torch.equal(written[name], weights[name]) for name in weights)
        with pytest.raises(pack.errors.TargetExists, match="head.safetensors"):
            pack.comfy_host.convert(tmp_path / "head.pth", target)

    def test_a_pickle_of_something_else_is_not_run(self, pack, tmp_path):
        (tmp_path / "judge.pt").write_bytes(trap(tmp_path / "sprung"))
        with pytest.raises(pack.errors.CheckpointMismatch, match="judge.pt"):
            pack.comfy_host.convert(tmp_path / "judge.pt", tmp_path / "judge.safetensors")
        assert not (tmp_path / "sprung").exists() and not (tmp_path / "judge.safetensors").exists()
