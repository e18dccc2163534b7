"""The scores that can be computed, each with the weights that it needs."""

from dataclasses import dataclass

OFF = "off"
CLIP, PICK, HPS, AESTHETIC, REWARD = "clip", "pickscore", "hps", "aesthetic", "image_reward"


@dataclass(frozen=True)
class Judge:
    """A model that scores images.

    Attributes:
        score: name of the score in tables.
        weights: which file to download.
        tooltip: the same for the node.
        backbone: the vision model that the weights must have, if there is only one.
    """

    score: str
    weights: str
    tooltip: str
    backbone: str = ""


JUDGES = {
    CLIP: Judge(
        "CLIPScore", "a CLIP of two towers, such as model.safetensors of openai/clip-vit-large-patch14",
        "Weights for CLIPScore: a complete CLIP with image and text encoder, such as OpenAI ViT-L/14. Scores of "
        "different CLIP models cannot be compared. off: not computed.",
    ),
    PICK: Judge(
        "PickScore", "model.safetensors of yuvalkirstain/PickScore_v1",
        "Weights for PickScore: the file of PickScore_v1. off: not computed.", "ViT-H",
    ),
    HPS: Judge(
        "HPSv2.1", "HPS_v2.1_compressed.pt of xswu/HPSv2, converted",
        "Weights for HPSv2.1, converted to safetensors. The score is a cosine; published tables often show 100 times "
        "that. off: not computed.", "ViT-H",
    ),
    AESTHETIC: Judge(
        "LAION aesthetic",
        "sac+logos+ava1-l14-linearMSE.pth of improved-aesthetic-predictor, converted, with the CLIP above",
        "Scoring head of LAION aesthetic, converted to safetensors. It also needs OpenAI ViT-L/14 in clip. off: not "
        "computed.",
    ),
    REWARD: Judge(
        "ImageReward", "ImageReward.pt of THUDM/ImageReward, converted, with vocab.txt of bert-base-uncased beside it",
        "Weights for ImageReward, converted to safetensors, with the vocabulary of BERT in a .txt file of the same "
        "name beside them. off: not computed.",
    ),
}  # fmt: skip
"""By the name of the node's input, which is also the option of the command."""
