"""How close sums of prompts come to the whole prompt, by their embeddings and by their images.

Figure 2 of the TeEFusion paper with numbers: token embeddings and pooled vectors are added and compared with those of
the whole prompt. All images start from the same noise, and an exact judge compares them with the whole prompt.
Shapes: N sums, L tokens, W width of a token, P pooled width, C H W latent.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.measure import encode, pictures, sample
from lab.demo_world.prompt_arithmetic import KINDS, sums
from lab.demo_world.verifier import score
from teefusion_core.prompts.arithmetic import blended, cosine

NUM_OF_EACH = 26
MODELS = ("base", "sd15")
CFG = 3.0
PARTS = {"context": "tokens", "pooled": "pooled", "context_from_empty": "tokens, from empty",
         "pooled_from_empty": "pooled, from empty", "pictures": "picture"}  # fmt: skip
SHOWN = ("entity", "attribute", "overall")
Text = tuple[torch.Tensor, torch.Tensor]
"""Context [1,L,W], pooled [1,P]."""
Shown = tuple[list[Text], torch.Tensor]
"""Texts with their latents [N,C,H,W]."""
WHOLE = "whole prompt"


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row per kind of sum and embedding: cosines to the whole prompt, and shares of right images."""
    rows = [row for model in MODELS for row in measured(model)]
    return {"settings": {"sums_of_each_kind": NUM_OF_EACH, "cfg": CFG}, "rows": rows}


def measured(model: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a variant of the demo model."""
    study, every = Study(model), sums(NUM_OF_EACH)
    for kind in KINDS:
        some = [entry for entry in every if entry.kind == kind]
        texts = {name: [way(study, entry, some) for entry in some] for name, way in WAYS.items()}
        shown = {name: study.latents(given) for name, given in texts.items()}
        for name in WAYS:
            row = study.row(some, (texts[name], shown[name]), (texts[WHOLE], shown[WHOLE]))
            say(f"{model}, {kind}, {name}: {row['cosines']}, {row['overall']:.3f}")
            yield {"model": model, "kind": kind, "example": some[0].spelled, "way": name, **row}


class Study:
    """A demo model with the text encoder; encoded texts are cached."""

    def __init__(self, model: str) -> None:
        from teefusion_core.comfy_host.demo_model import load_demo

        self.model, self.clip, self.vae = load_demo(model)
        self.kept: dict[str, Text] = {}

    def text(self, words: str) -> Text:
        if words not in self.kept:
            self.kept[words] = self.clip.encode_from_tokens(self.clip.tokenize(words), return_pooled=True)
        return self.kept[words]

    def blend(self, base: str, terms: list[tuple[float, str]]) -> Text:
        first, others = self.text(base), [(weight, self.text(words)) for weight, words in terms]
        context, pooled = (blended(first[part], [(w, text[part]) for w, text in others]) for part in (0, 1))
        return context, pooled

    def latents(self, texts: list[Text]) -> torch.Tensor:
        """Return latents [N,C,H,W] of prompts; each prompt has its own noise, the same at every call."""
        noise_NCHW = torch.randn(len(texts), 16, 8, 8, generator=torch.Generator().manual_seed(1))
        context, pooled = (torch.cat([text[part] for text in texts]) for part in (0, 1))
        positive, null = [[context, {"pooled_output": pooled}]], encode(self.clip, [""])
        return sample(self.model, positive, null, CFG, noise_NCHW, 0)

    def row(self, some: list[Any], given: Shown, whole: Shown) -> dict[str, Any]:
        """Return cosines of sums to their whole prompts, the same for images, and the judge's scores of the images."""
        empty, pairs = self.text(""), list(zip(given[0], whole[0], strict=True))
        cosines = {}
        for i, part in enumerate(("context", "pooled")):
            cosines[part] = [cosine(one[i], other[i]) for one, other in pairs]
            cosines[f"{part}_from_empty"] = [cosine(one[i] - empty[i], other[i] - empty[i]) for one, other in pairs]
        cosines["pictures"] = [cosine(*pair) for pair in zip(given[1].split(1), whole[1].split(1), strict=True)]
        verdict = score(pictures(self.vae, given[1]), [entry.claim for entry in some])
        return {"cosines": {part: round(statistics.fmean(values), 4) for part, values in cosines.items()}, **verdict}


def _from_empty(study: Study, entry: Any, some: list[Any]) -> Text:
    rest = -sum(weight for weight, _ in entry.terms)
    return study.blend(entry.base, [*entry.terms, (rest, "")])


WAYS: dict[str, Callable[[Study, Any, list[Any]], Text]] = {
    "another whole prompt": lambda study, entry, some: study.text(some[some.index(entry) - 1].whole),
    "base alone": lambda study, entry, some: study.text(entry.base),
    "sum": lambda study, entry, some: study.blend(entry.base, list(entry.terms)),
    "sum, empty prompt balanced": _from_empty,
    WHOLE: lambda study, entry, some: study.text(entry.whole),
}
"""Name -> embedding of a sum.

sum: the plain formula. balanced: the empty prompt makes the weights add up to 1, so that differences from the empty
prompt are added. The others are for comparison: the same kind of prompt about other things, the sum without its terms,
and the whole prompt as text.
"""


def table(result: dict[str, Any], model: str = MODELS[0]) -> list[list[str]]:
    """Return a line for each kind of sum and embedding, for one model."""
    lines = [["sum", "given as", *PARTS.values(), *SHOWN[:2], "all right"]]
    named = None
    for row in (row for row in result["rows"] if row["model"] == model):
        shown = [f"{row['cosines'][part]:.3f}" for part in PARTS]
        shares = [f"{row[name]:.3f}" for name in SHOWN]
        lines.append(["" if row["kind"] == named else row["kind"], row["way"], *shown, *shares])
        named = row["kind"]
    return lines


def second_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the shares of right images of both models."""
    lines = [["sum", "given as", "all right, SD3", "all right, SD1.5"]]
    one, other = ([row for row in result["rows"] if row["model"] == model] for model in MODELS)
    for index, (row, same) in enumerate(zip(one, other, strict=True)):
        kind = row["kind"] if index % len(WAYS) == 0 else ""
        lines.append([kind, row["way"], f"{row['overall']:.3f}", f"{same['overall']:.3f}"])
    return lines
