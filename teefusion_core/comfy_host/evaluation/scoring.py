"""Judges with weights of the host's folders, on the host's device.

Shapes: B pictures with a prompt each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
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
from ...files.tensor_file import SUFFIX, read_tensors, write_tensors

FOLDER = "clip_vision"
AT_ONCE = 8


def score_files() -> list[str]:
    """What a judge can be: off, or a file of the host's folders."""
    return [OFF, *folder_paths.get_filename_list(FOLDER)]


def score_file(judge: str, name: str) -> Path:
    """Return where the weights of a judge are.

    Args:
        judge: a key of JUDGES, for the message.
        name: as `score_files` lists it.
    Raises:
        CheckpointMismatch: none of this name in the folders.
    """
    path = folder_paths.get_full_path(FOLDER, name) if name in folder_paths.get_filename_list(FOLDER) else None
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
        raise CheckpointMismatch(
            f"{name} is in none of the {FOLDER} folders ({folders}); copy the file there that "
            f"{judge} needs: {JUDGES[judge].weights}"
        )
    return Path(path)


def score_pictures(
    pictures: Sequence[Image.Image], prompts: Sequence[str], files: Mapping[str, Path], names: Sequence[str]
) -> ScoreTable:
    """Score pictures with their prompts by every judge that has a file.

    Args:
        pictures: [B].
        prompts: one per picture.
        files: key of JUDGES -> its weights.
        names: what the pictures are called.
    Raises:
        CheckpointMismatch: a file that is no such judge.
        InvalidConfig: no judge, or an aesthetic head without its CLIP.
    """
    if not files:
        wishes = "; ".join(f"{name}: {judge.weights}" for name, judge in JUDGES.items())
        raise InvalidConfig(
            f"no judge is chosen; put weights into a {FOLDER} folder of ComfyUI, choose them ({wishes})"
        )
    if AESTHETIC in files and CLIP not in files:
        raise InvalidConfig(f"{AESTHETIC} judges what a CLIP sees; choose ViT-L/14 of OpenAI as {CLIP} too")
    run = _Run(pictures, prompts, files)
    return ScoreTable(names, prompts, {name: values for judge in run.chosen() for name, values in judge})


@dataclass(frozen=True)
class _Run:
    """Pictures with prompts, scored judge by judge, so that one at a time is in memory."""

    pictures: Sequence[Image.Image]
    prompts: Sequence[str]
    files: Mapping[str, Path]

    def chosen(self) -> Iterator[list[tuple[str, list[float]]]]:
        for judge, path in self.files.items():
            if judge in RULES:
                yield self.by_clip(judge, path)
            elif judge == REWARD:
                yield self.by_image_reward(path)

    def by_clip(self, judge: str, path: Path) -> list[tuple[str, list[float]]]:
        title, wanted = JUDGES[judge].score, JUDGES[judge].backbone
        clip, backbone = clip_of(read_tensors(path)[0], path)
        known = backbone in {row.name for row in BACKBONES.values()}
        if known and not backbone.startswith(wanted):
            needed = f"{title} needs a {wanted}/14: {JUDGES[judge].weights}"
            raise CheckpointMismatch(f"{path.name} is a {backbone}, {needed}")
        tokens_BL = clip_tokens(self.prompts)
        head = self._head(clip, backbone) if judge == CLIP and AESTHETIC in self.files else None
        with _on_device(clip):
            found = self._each(lambda part: clip_scores(clip, RULES[judge], self.pictures[part], tokens_BL[part]))
            results = [(f"{title} ({backbone})" if judge == CLIP else title, found)]
            if head is not None:
                head.to(clip.logit_scale.device)
                seen = self._each(lambda part: aesthetic_scores(clip, head, self.pictures[part]))
                results.append((JUDGES[AESTHETIC].score, seen))
        return results

    def by_image_reward(self, path: Path) -> list[tuple[str, list[float]]]:
        judge = ImageReward(read_tensors(path)[0], path).eval()
        tokens_BL, mask_BL = reward_tokens(self.prompts, path)
        if int(tokens_BL.max()) >= judge.text.config.vocab_size:
            raise CheckpointMismatch(
                f"{path.with_suffix('.txt').name} has more words than {path.name} knows; use vocab.txt of "
                "bert-base-uncased"
            )
        with _on_device(judge):
            found = self._each(lambda part: judge(self.pictures[part], tokens_BL[part], mask_BL[part]))
        return [(JUDGES[REWARD].score, found)]

    def _head(self, clip, backbone: str) -> AestheticHead:
        path = self.files[AESTHETIC]
        head = AestheticHead.of(read_tensors(path)[0], path)
        head.fits(clip, path, backbone)
        return head

    def _each(self, score: Callable[[slice], Tensor]) -> list[float]:
        """Score a few at a time; cancel is asked for before each."""
        found: list[float] = []
        bar = comfy.utils.ProgressBar(len(self.pictures))
        for first in range(0, len(self.pictures), AT_ONCE):
            comfy.model_management.throw_exception_if_processing_interrupted()
            with torch.no_grad():
                found += score(slice(first, first + AT_ONCE)).float().cpu().tolist()
            bar.update_absolute(len(found))
        return found


@contextmanager
def _on_device(network) -> Iterator[None]:
    """Have the host load a network, making room for it; it is gone afterwards."""
    management, held = comfy.model_management, torch.nn.Module()
    # the host writes attributes, such as device, which networks of transformers have as properties
    held.add_module("network", network)
    patcher = comfy.model_patcher.ModelPatcher(
        held, load_device=management.get_torch_device(), offload_device=management.text_encoder_offload_device()
    )
    management.load_models_gpu([patcher])
    try:
        yield
    finally:
        patcher.detach()


def clip_tokens(prompts: Sequence[str]) -> Tensor:
    """Return token numbers [B,77] by the vocabulary that comes with ComfyUI."""
    from transformers import CLIPTokenizer

    folder = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return torch.tensor(tokenizer(list(prompts), padding="max_length", truncation=True, max_length=TOKENS)["input_ids"])


def reward_tokens(prompts: Sequence[str], path: Path) -> tuple[Tensor, Tensor]:
    """Return token numbers, mask [B,35] by the vocabulary beside the weights.

    Raises:
        CheckpointMismatch: none is there, or it is none of BERT's.
    """
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise CheckpointMismatch(
            f"{path.name} needs the words that it was trained with; put vocab.txt of bert-base-uncased beside it as "
            f"{beside.name}"
        )
    from tokenizers import BertWordPieceTokenizer

    words = beside.read_text(encoding="utf-8").splitlines()
    missing = {"[CLS]", "[SEP]", "[PAD]", "[UNK]"} - set(words)
    if missing:
        raise CheckpointMismatch(f"{beside.name} lacks {min(missing)}; use vocab.txt of bert-base-uncased")
    tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(words)}, lowercase=True)
    tokenizer.enable_truncation(REWARD_TOKENS)
    tokenizer.enable_padding(length=REWARD_TOKENS, pad_id=words.index("[PAD]"), pad_token="[PAD]")
    read = tokenizer.encode_batch(list(prompts))
    return torch.tensor([one.ids for one in read]), torch.tensor([one.attention_mask for one in read])


def convert(source: Path, target: Path) -> int:
    """Write a pickle of tensors as safetensors; nothing in it is run, only tensors are taken.

    Returns:
        How many tensors were written.
    Raises:
        CheckpointMismatch: a file with more in it than tensors, or a target that is there or of another kind.
    """
    if target.suffix != SUFFIX or target.exists():
        raise CheckpointMismatch(f"{target.name} is to be a new {SUFFIX} file; give another name")
    try:
        loaded = comfy.utils.load_torch_file(str(source), safe_load=True)
    except Exception as error:
        raise CheckpointMismatch(
            f"{source.name} cannot be read without running what is in it ({type(error).__name__}); get the file from "
            "those who published it"
        ) from error
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointMismatch(f"{source.name} holds no tensors; get the file from those who published it")
    write_tensors(target, {name: value.clone().contiguous() for name, value in tensors.items()}, {})
    return len(tensors)
