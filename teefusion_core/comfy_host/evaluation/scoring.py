"""Judges with weights from ComfyUI's folders, on ComfyUI's device.

Shapes: B images with a prompt each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.sd1_clip
import comfy.utils
import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ...errors import CheckpointMismatch, InvalidConfig
from ...evaluation.clip_scores import RULES, TOKENS, AestheticHead, aesthetic_scores, clip_scores
from ...evaluation.clip_weights import BACKBONES, clip_of
from ...evaluation.image_reward import TOKENS as REWARD_TOKENS
from ...evaluation.image_reward import ImageReward
from ...evaluation.judges import AESTHETIC, CLIP, JUDGES, OFF, REWARD
from ...evaluation.score_table import ScoreTable
from ...files.image_file import opened
from ...files.output_file import GIB
from ...files.tensor_file import read_tensors
from ...files.text_file import read_text

FOLDER = "clip_vision"
AT_ONCE = 8
PADDING = "[PAD]"


def score_files() -> list[str]:
    """Return the choices for a judge: off, or a file in ComfyUI's folders."""
    return [OFF, *folder_paths.get_filename_list(FOLDER)]


def score_file(judge: str, name: str) -> Path:
    """Return the path of the weights of a judge.

    Args:
        judge: a key of JUDGES, for the message.
        name: a name that `score_files` lists.
    Raises:
        CheckpointMismatch: no file in the folders has this name.
    """
    path = folder_paths.get_full_path(FOLDER, name) if name in folder_paths.get_filename_list(FOLDER) else None
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
        raise CheckpointMismatch(
            f"{name} is not in a {FOLDER} folder ({folders}); copy the file there that "
            f"{judge} needs: {JUDGES[judge].weights}"
        )
    return Path(path)


def score_pictures(
    pictures: Sequence[Image.Image | Path], prompts: Sequence[str], files: Mapping[str, Path], names: Sequence[str]
) -> ScoreTable:
    """Score images and their prompts with every judge that has a file.

    Args:
        pictures: B images, or their files, of which only a few are open at a time.
        prompts: one per image.
        files: key of JUDGES -> its weights.
        names: names of the images.
    Raises:
        CheckpointMismatch: a file does not contain the weights of its judge.
        InvalidConfig: no judge is chosen, or an aesthetic head without its CLIP.
    """
    if not files:
        wishes = "; ".join(f"{name}: {judge.weights}" for name, judge in JUDGES.items())
        raise InvalidConfig(
            f"no judge is chosen; copy weights to a {FOLDER} folder of ComfyUI and choose them ({wishes})"
        )
    if AESTHETIC in files and CLIP not in files:
        raise InvalidConfig(f"{AESTHETIC} scores CLIP embeddings; choose OpenAI's ViT-L/14 as {CLIP} too")
    run = _Run(pictures, prompts, files)
    scores = {name: values for judge in run.chosen() for name, values in judge}
    return ScoreTable(names, prompts, scores, run.notes(names))


@dataclass(frozen=True)
class _Run:
    """Images with prompts, scored judge by judge, so that only one judge is in memory at a time."""

    pictures: Sequence[Image.Image | Path]
    prompts: Sequence[str]
    files: Mapping[str, Path]

    def chosen(self) -> Iterator[list[tuple[str, list[float]]]]:
        for judge, path in self.files.items():
            if judge in RULES:
                yield self.by_clip(judge, path)
            elif judge == REWARD:
                yield self.by_image_reward(path)

    def notes(self, names: Sequence[str]) -> list[str]:
        """Return a line per kind of judge that did not read all tokens of a prompt."""
        lines, kinds = [], {}
        if self.files.keys() & RULES.keys():
            kinds["CLIP"] = (TOKENS, _clip_tokenizer()(list(self.prompts), verbose=False)["input_ids"])
        if REWARD in self.files:
            read = _reward_tokenizer(self.files[REWARD])[0].encode_batch(list(self.prompts))
            kinds[JUDGES[REWARD].score] = (REWARD_TOKENS, [one.ids for one in read])
        for kind, (most, tokens) in kinds.items():
            if cut := [name for name, ids in zip(names, tokens, strict=True) if len(ids) > most]:
                longest = max(map(len, tokens))
                lines.append(
                    f"{kind} reads {most} tokens; the prompts of {', '.join(cut)} are longer (up to {longest}), so "
                    "their ends have no influence on the scores."
                )
        return lines

    def by_clip(self, judge: str, path: Path) -> list[tuple[str, list[float]]]:
        title, wanted = JUDGES[judge].score, JUDGES[judge].backbone
        clip, backbone = clip_of(read_tensors(path)[0], path)
        known = backbone in {row.name for row in BACKBONES.values()}
        if known and not backbone.startswith(wanted):
            needed = f"{title} needs a {wanted}/14: {JUDGES[judge].weights}"
            raise CheckpointMismatch(f"{path.name} is a {backbone}, but {needed}")
        tokens_BL = clip_tokens(self.prompts)
        head = self._head(clip, backbone) if judge == CLIP and AESTHETIC in self.files else None
        with _on_device(clip):
            found = self._each(lambda pictures, part: clip_scores(clip, RULES[judge], pictures, tokens_BL[part]))
            results = [(f"{title} ({backbone})" if judge == CLIP else title, found)]
            if head is not None:
                head.to(clip.logit_scale.device)
                seen = self._each(lambda pictures, _: aesthetic_scores(clip, head, pictures))
                results.append((JUDGES[AESTHETIC].score, seen))
        return results

    def by_image_reward(self, path: Path) -> list[tuple[str, list[float]]]:
        judge = ImageReward(read_tensors(path)[0], path).eval()
        tokens_BL, mask_BL = reward_tokens(self.prompts, path)
        if int(tokens_BL.max()) >= judge.text.config.vocab_size:
            raise CheckpointMismatch(
                f"{path.with_suffix('.txt').name} has more tokens than {path.name} supports; use vocab.txt of "
                "bert-base-uncased"
            )
        with _on_device(judge):
            found = self._each(lambda pictures, part: judge(pictures, tokens_BL[part], mask_BL[part]))
        return [(JUDGES[REWARD].score, found)]

    def _head(self, clip, backbone: str) -> AestheticHead:
        path = self.files[AESTHETIC]
        head = AestheticHead.of(read_tensors(path)[0], path)
        head.fits(clip, path, backbone)
        return head

    def _each(self, score: Callable[[list[Image.Image], slice], Tensor]) -> list[float]:
        """Score a few images at a time; the user can cancel before each batch."""
        found: list[float] = []
        bar = comfy.utils.ProgressBar(len(self.pictures))
        for first in range(0, len(self.pictures), AT_ONCE):
            comfy.model_management.throw_exception_if_processing_interrupted()
            part = slice(first, first + AT_ONCE)
            pictures = [opened(one) if isinstance(one, Path) else one for one in self.pictures[part]]
            with torch.no_grad():
                found += score(pictures, part).float().cpu().tolist()
            bar.update_absolute(len(found))
        return found


@contextmanager
def _on_device(network: torch.nn.Module) -> Iterator[None]:
    """Have a whole network on ComfyUI's device inside the block, after other models have made room for it.

    The host's ModelPatcher would load a part of it if memory is short, and these layers cannot cast their weights.

    Raises:
        InvalidConfig: the device has too little memory.
    """
    management = comfy.model_management
    device, size = management.get_torch_device(), management.module_size(network)
    management.free_memory(size + management.minimum_inference_memory(), device)
    try:
        network.to(device)
        yield
    except management.OOM_EXCEPTION as error:
        raise InvalidConfig(
            f"a judge of {size / GIB:.1f} GiB and its images need more memory than {device} has; close other programs "
            "that use it, or start ComfyUI with --cpu to score"
        ) from error
    finally:
        network.to(management.text_encoder_offload_device())
        management.soft_empty_cache()


def clip_tokens(prompts: Sequence[str]) -> Tensor:
    """Return token ids [B,77] from the vocabulary that comes with ComfyUI."""
    read = _clip_tokenizer()(list(prompts), padding="max_length", truncation=True, max_length=TOKENS)
    return torch.tensor(read["input_ids"])


@cache
def _clip_tokenizer():
    from transformers import CLIPTokenizer

    folder = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def reward_tokens(prompts: Sequence[str], path: Path) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, both [B,35], from the vocabulary beside the weights.

    Raises:
        CheckpointMismatch: the vocabulary is missing, or it is not BERT's.
    """
    tokenizer, padding = _reward_tokenizer(path)
    tokenizer.enable_truncation(REWARD_TOKENS)
    tokenizer.enable_padding(length=REWARD_TOKENS, pad_id=padding, pad_token=PADDING)
    read = tokenizer.encode_batch(list(prompts))
    return torch.tensor([one.ids for one in read]), torch.tensor([one.attention_mask for one in read])


def _reward_tokenizer(path: Path):
    """Return the tokenizer of ImageReward, which neither cuts nor pads, and the number of its padding."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise CheckpointMismatch(
            f"{path.name} needs the vocabulary that it was trained with; copy vocab.txt of bert-base-uncased "
            f"beside it as {beside.name}"
        )
    from tokenizers import BertWordPieceTokenizer

    words = read_text(beside).split("\n")
    missing = {"[CLS]", "[SEP]", PADDING, "[UNK]"} - set(words)
    if missing:
        raise CheckpointMismatch(f"{beside.name} has no {min(missing)}; use vocab.txt of bert-base-uncased")
    tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(words)}, lowercase=True)
    return tokenizer, words.index(PADDING)
