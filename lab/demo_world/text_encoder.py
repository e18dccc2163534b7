"""Train the demo model's text encoder to understand captions.

Shapes: B batch, L tokens, D text width.
Like those of SD3 it is trained before the diffusion model and then frozen. Its pooled output must encode the whole
claim, and the token of each noun the facts of its own group.
Run: python -m lab.demo_world.text_encoder --steps 3000
"""

import functools
import json
import random
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from .captions import NOUNS, VOCABULARY, caption
from .host import RUNS, parser_of, use_comfy
from .scenes import BACKGROUNDS, COLORS, PLACES, RELATIONS, SHAPES, Scene, claim_of, random_scene

GROUP_FACTS = {"count": (None, 1, 2), "color": (None, *COLORS), "shape": (None, *SHAPES),
               "size": (None, "small", "large")}  # fmt: skip
SCENE_FACTS = {"background": (None, *BACKGROUNDS), "relation": (None, *RELATIONS), "place": (None, *PLACES)}
HEADS = {**SCENE_FACTS, **{f"{fact}{i}": values for i in (0, 1) for fact, values in GROUP_FACTS.items()}}


def facts(claim: Scene) -> list[int]:
    """Return the claim as one class number per head."""
    values = {name: getattr(claim, name) for name in SCENE_FACTS}
    for i in (0, 1):
        group = claim.groups[i] if i < len(claim.groups) else None
        values.update({f"{fact}{i}": getattr(group, fact, None) for fact in GROUP_FACTS})
    return [HEADS[name].index(values[name]) for name in HEADS]


def captions(num: int, rng: random.Random) -> tuple[list[str], Tensor]:
    """Return random captions of training scenes, with their facts [num,heads]."""
    texts, labels = [], []
    while len(texts) < num:
        scene = random_scene(rng)
        if not scene.held_out:
            claim = claim_of(scene, rng)
            texts.append(caption(claim, rng))
            labels.append(facts(claim))
    return texts, torch.tensor(labels)


def token_numbers(texts: list[str], tokenizer, length: int) -> Tensor:
    """Return token ids [B,L], padded with the end token as in the host."""
    from teefusion_core.comfy_host.demo_model import END

    rows = [tokenizer(text)["input_ids"] for text in texts]
    return torch.tensor([row + [END] * (length - len(row)) for row in rows])


def _layer_forward(layer, x, mask=None, optimized_attention=None):
    """A text layer that autograd can differentiate; the host's own adds in place."""
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))


def build(num_words: int) -> nn.Module:
    """Return the host's text model with new weights."""
    import comfy.ops

    from teefusion_core.comfy_host.demo_model import WordTextModel, text_config

    model = WordTextModel(text_config(num_words), torch.float32, "cpu", comfy.ops.disable_weight_init)
    for layer in model.text_model.encoder.layers:
        layer.forward = functools.partial(_layer_forward, layer)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
        else:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def train(steps: int, batch: int, lr: float, seed: int) -> nn.Module:
    """Train the text model and temporary readout heads; print the share of captions with all facts right."""
    from teefusion_core.comfy_host.demo_model import NUM_TOKENS, WordTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = WordTokenizer(list(VOCABULARY))
    nouns = torch.zeros(len(tokenizer.get_vocab()), dtype=torch.bool)
    stems = (*SHAPES, *(noun for row in NOUNS.values() for noun in row))
    nouns[[i for word, i in tokenizer.ids.items() if word.startswith(stems)]] = True
    model = build(len(VOCABULARY))
    width = model.text_projection.weight.shape[0]
    pooled_heads = nn.ModuleList(nn.Linear(width, len(v)) for v in HEADS.values())
    token_heads = nn.ModuleList(nn.Linear(width, len(v)) for v in GROUP_FACTS.values())
    parameters = [*model.parameters(), *pooled_heads.parameters(), *token_heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    start = time.time()
    for step in range(1, steps + 1):
        texts, labels = captions(batch, rng)
        tokens_BL = token_numbers(texts, tokenizer, NUM_TOKENS)
        hidden_BLD, _, pooled_BD, _ = model(tokens_BL)
        right = torch.ones(batch, dtype=torch.bool)
        loss = torch.zeros(())
        for column, head in enumerate(pooled_heads):
            logits = head(pooled_BD)
            loss = loss + functional.cross_entropy(logits, labels[:, column])
            right &= logits.argmax(-1) == labels[:, column]
        is_noun = nouns[tokens_BL]
        order = is_noun.cumsum(1)
        for group in (0, 1):
            here = is_noun & (order == group + 1)
            rows = here.any(1)
            noun_D = (hidden_BLD * here[..., None]).sum(1)[rows]
            for fact, head in zip(GROUP_FACTS, token_heads, strict=True):
                loss = loss + 0.5 * functional.cross_entropy(
                    head(noun_D), labels[rows, list(HEADS).index(f"{fact}{group}")]
                )
        loss = loss + 0.01 * pooled_BD.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            understood, seconds = float(right.float().mean()), time.time() - start
            print(f"step {step} loss {loss.item():.3f} understood {understood:.3f} {seconds:.0f}s", flush=True)
    return model


def main() -> None:
    """Train, then save in half precision with the word list in the metadata."""
    out = str(RUNS / "demo_sd3_text.safetensors")
    args = parser_of(__doc__, steps=2500, batch=128, lr=2e-3, seed=0, out=out).parse_args()
    use_comfy()
    from safetensors.torch import save_file

    RUNS.mkdir(exist_ok=True)
    model = train(args.steps, args.batch, args.lr, args.seed)
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, args.out, metadata={"words": json.dumps(VOCABULARY), "seed": str(args.seed)})
    print("saved", args.out)


if __name__ == "__main__":
    main()
