"""Judges with weights against what the libraries that come with these weights answered, on shared tiny weights."""

import json

import pytest
import torch
from golden_weights import DATA
from judge_weights import (
    PROMPTS,
    WORDS,
    head_weights,
    image_reward_weights,
    open_clip_weights,
    pictures,
)

from teefusion_core.evaluation.clip_scores import RULES, AestheticHead, aesthetic_scores, clip_scores
from teefusion_core.evaluation.clip_weights import clip_of, from_open_clip
from teefusion_core.evaluation.image_reward import ImageReward
from teefusion_core.evaluation.judges import CLIP, HPS, PICK

REFERENCES = json.loads((DATA / "judges.json").read_text(encoding="ascii"))
CONFIG = {
    "projection_dim": 96,
    "text_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vision_config": {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 2, "num_attention_heads": 2},
}
for tower in ("text_config", "vision_config"):
    CONFIG[tower] |= {"hidden_act": "gelu", "projection_dim": 96, "patch_size": 14, "eos_token_id": 49407}
TOLERANCE = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return where a file of weights would lie, with its config.json beside it."""
    folder = tmp_path_factory.mktemp("judges")
    (folder / "mine.json").write_text(json.dumps(CONFIG))
    return folder / "mine.safetensors"


@pytest.fixture(scope="module")
def clip(path):
    return clip_of(open_clip_weights(), path)[0]


@pytest.fixture(scope="module")
def tokens_BL():
    """Return the token numbers that open_clip gave, with what pads them."""
    read = torch.tensor(REFERENCES["tokens"])
    return torch.nn.functional.pad(read, (0, 77 - read.shape[1]))


@torch.no_grad()
def test_hps_is_that_of_open_clip(clip, tokens_BL):
    scores = clip_scores(clip, RULES[HPS], pictures(), tokens_BL)
    assert torch.allclose(scores, torch.tensor(REFERENCES["HPSv2.1"]), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_aesthetic_is_that_of_its_predictor(clip, path):
    scores = aesthetic_scores(clip, AestheticHead.of(head_weights(), path), pictures())
    assert torch.allclose(scores, torch.tensor(REFERENCES["LAION aesthetic"]), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_image_reward_is_that_of_its_package(path):
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS.split())}, lowercase=True)
    tokenizer.enable_padding(length=35)
    read = tokenizer.encode_batch(PROMPTS)
    tokens, mask = torch.tensor([one.ids for one in read]), torch.tensor([one.attention_mask for one in read])
    scores = ImageReward(image_reward_weights(), path).eval()(pictures(), tokens, mask)
    assert torch.allclose(scores, torch.tensor(REFERENCES["ImageReward"]), rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("metric", [CLIP, PICK])
def test_clip_and_pick_score_are_those_of_transformers(metric, path, clip, tokens_BL):
    """By its own model from its own layout, its own processor of pictures, its own logits."""
    from transformers import CLIPConfig, CLIPModel

    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:
        from transformers import CLIPImageProcessor as Processor
    weights = from_open_clip(open_clip_weights())
    theirs = CLIPModel(CLIPConfig.from_dict(CONFIG)).eval()
    theirs.load_state_dict(weights)
    seen = Processor()(images=pictures(), return_tensors="pt")["pixel_values"]
    logits = theirs(input_ids=tokens_BL, pixel_values=seen).logits_per_image.diagonal()
    reference = logits if metric == PICK else (100 * logits / theirs.logit_scale.exp()).clamp(min=0)
    own = clip_of(weights, path)[0]
    assert torch.allclose(clip_scores(own, RULES[metric], pictures(), tokens_BL), reference, rtol=0, atol=TOLERANCE)
    same = clip_scores(clip, RULES[metric], pictures(), tokens_BL)
    assert torch.allclose(same, reference, rtol=0, atol=TOLERANCE), "the layout of the file makes no difference"
