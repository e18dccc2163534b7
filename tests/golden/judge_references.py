"""Scores of the tiny judges by the libraries that come with the published weights, once, into data/judges.json.

Needs packages that do not live together with a current ComfyUI, each in a folder of its own on PYTHONPATH:
    hpsv2 1.2.0, open_clip_torch 3.3.0:                python judge_references.py hps
    simple-aesthetics-predictor 0.1.2:                 python judge_references.py aesthetic
    image-reward 1.5 (transformers 4.30, timm 0.6.13): python judge_references.py reward
"""

import importlib.util
import json
import sys
import types

import torch
from golden_weights import DATA
from judge_weights import (
    BLIP_PATCH,
    BLIP_POSITIONS,
    BLIP_TEXT,
    BLIP_VISION,
    LAYERS,
    PATCH,
    PROJECTION,
    PROMPTS,
    SIDE,
    TEXT,
    TOKENS,
    VISION,
    VOCABULARY,
    WORDS,
    head_weights,
    image_reward_weights,
    open_clip_weights,
    pictures,
)  # fmt: skip

TARGET = DATA / "judges.json"


def _hollow(*packages):
    """Leave out what a package does when it is imported: it asks for files or packages that are not there."""
    for name in packages:
        hollow = types.ModuleType(name)
        hollow.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = hollow


@torch.no_grad()
def hps():
    """The CLIP of open_clip on the transform of hpsv2."""
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=LAYERS, width=VISION, head_width=80, patch_size=PATCH, image_size=SIDE)
    text = CLIPTextCfg(context_length=TOKENS, vocab_size=VOCABULARY, width=TEXT, heads=TEXT // 64, layers=LAYERS)
    model = CLIP(PROJECTION, vision, text, output_dict=True).eval()
    model.load_state_dict(open_clip_weights())
    _hollow("hpsv2", "hpsv2.src", "hpsv2.src.open_clip")
    from hpsv2.src.open_clip.transform import image_transform

    prepare = image_transform(SIDE, is_train=False, resize_longest_max=True)
    tokens = open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
    seen = model(torch.stack([prepare(picture) for picture in pictures()]), tokens)
    return {"HPSv2.1": torch.diagonal(seen["image_features"] @ seen["text_features"].T).tolist(),
            "tokens": tokens[:, :24].tolist()}  # fmt: skip


@torch.no_grad()
def aesthetic():
    """The same vision tower under the head of simple-aesthetics-predictor."""
    from aesthetics_predictor import AestheticsPredictorV2Linear
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
    from transformers import CLIPVisionConfig

    from teefusion_core.evaluation.clip_weights import from_open_clip
    from teefusion_core.evaluation.preprocessing import DEVIATION, MEAN

    config = CLIPVisionConfig(
        hidden_size=VISION, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=4 * VISION,
        image_size=SIDE, patch_size=PATCH, hidden_act="gelu", projection_dim=PROJECTION,
    )  # fmt: skip
    model = AestheticsPredictorV2Linear(config).eval()
    weights = {**from_open_clip(open_clip_weights()), **head_weights()}
    left = model.load_state_dict({k: v for k, v in weights.items() if k in model.state_dict()}, strict=False)
    assert not [name for name in left.missing_keys if "position_ids" not in name], left
    # the transform of OpenAI's clip, which the predictor was made with
    prepare = Compose(
        [
            Resize(SIDE, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(SIDE),
            ToTensor(),
            Normalize(MEAN, DEVIATION),
        ]
    )
    seen = torch.stack([prepare(picture) for picture in pictures()])
    return {"LAION aesthetic": model(pixel_values=seen, return_dict=True).logits[:, 0].tolist()}


@torch.no_grad()
def reward():
    """ImageReward's own class, its BLIP made smaller."""
    import tempfile
    from pathlib import Path

    _hollow("ImageReward", "ImageReward.models")
    from ImageReward.ImageReward import MLP, _transform
    from ImageReward.ImageReward import ImageReward as Judge
    from ImageReward.models.BLIP.med import BertConfig, BertModel
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    judge = Judge.__new__(Judge)
    torch.nn.Module.__init__(judge)
    config = BertConfig(
        vocab_size=len(WORDS.split()) + 2, hidden_size=BLIP_TEXT, num_hidden_layers=LAYERS, num_attention_heads=1,
        intermediate_size=4 * BLIP_TEXT, max_position_embeddings=BLIP_POSITIONS, layer_norm_eps=1e-12,
        add_cross_attention=True, encoder_width=BLIP_VISION, pad_token_id=0, hidden_act="gelu",
    )  # fmt: skip
    judge.blip = torch.nn.Module()
    judge.blip.visual_encoder = VisionTransformer(
        img_size=SIDE, patch_size=BLIP_PATCH, embed_dim=BLIP_VISION, depth=LAYERS, num_heads=2
    )
    judge.blip.text_encoder = BertModel(config=config, add_pooling_layer=False)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS.split()) + "\n")
        judge.blip.tokenizer = BertTokenizer(str(vocabulary))
    judge.blip.tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    judge.blip.tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    judge.mlp, judge.device, judge.preprocess = MLP(BLIP_TEXT), "cpu", _transform(SIDE)
    judge.mean, judge.std = 0.16717362830052426, 1.0333394966054072
    left = judge.load_state_dict(image_reward_weights(), strict=False)
    assert not [name for name in left.missing_keys if "position_ids" not in name], left
    judge.eval()
    pairs = zip(PROMPTS, pictures(), strict=True)
    return {"ImageReward": [judge.score(prompt, picture) for prompt, picture in pairs]}


if __name__ == "__main__":
    known = json.loads(TARGET.read_text(encoding="ascii")) if TARGET.is_file() else {}
    known |= {"hps": hps, "aesthetic": aesthetic, "reward": reward}[sys.argv[1]]()
    TARGET.write_text(json.dumps(known, indent=1) + "\n", encoding="ascii")
    print(known)
