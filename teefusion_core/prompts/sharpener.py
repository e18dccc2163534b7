"""The DICE sharpener: a small network that writes guidance into the token embeddings of a prompt.

    r(c, n) = fc2(relu(attention(relu(fc1(c)), relu(fc1(n)))))
    c' = c + alpha r(c, n) - beta (n - null)

c is the prompt, n what it is pushed away from: the empty prompt, in which case the last term is zero, or a negative
one. It runs once per prompt, in front of a model that is left alone; that model is then sampled at cfg 1. The first
token (the start mark of CLIP) stays as it is; all others change, padding included. The pooled vector has no part.

Shapes: B batch, L tokens of the prompt, M tokens of what it is pushed away from, W width of a token, I inner width,
N heads, K width of a head.
Source: DICE, arXiv 2502.03726; written from its formulas, checked against outputs of the authors' network.
"""

import torch
from torch import Tensor, nn

from ..errors import InvalidConfig, ShapeMismatch
from ..guidance.fusion import common_rows

HIDDEN, HEADS = 512, 8  # of the paper, at any width of the tokens


class CrossAttention(nn.Module):
    """Attention from the tokens of one text to those of another."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        # a list of one, after the names under which such weights are usually stored
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x_BLI: Tensor, other_BMI: Tensor) -> Tensor:
        """Return [B,L,I]: for every token of x, what it finds in the other text."""
        q_BNLK = self._by_head(self.to_q(x_BLI))
        k_BNMK, v_BNMK = self._by_head(self.to_k(other_BMI)), self._by_head(self.to_v(other_BMI))
        found_BNLK = nn.functional.scaled_dot_product_attention(q_BNLK, k_BNMK, v_BNMK)
        return self.to_out[0](found_BNLK.transpose(1, 2).flatten(2))

    def _by_head(self, x_BLI: Tensor) -> Tensor:
        return x_BLI.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Sharpener(nn.Module):
    """r(c, n) of the module docstring.

    Args:
        width: W, that of the model's text embedding (SD1.5 768, SDXL 2048, SD3 4096).
        hidden: I, a multiple of heads.
        heads: of the attention.
    Raises:
        InvalidConfig: sizes that no network can have.
    """

    def __init__(self, width: int, hidden: int = HIDDEN, heads: int = HEADS):
        super().__init__()
        if min(width, hidden, heads) < 1 or hidden % heads:
            raise InvalidConfig(
                f"a sharpener cannot be {width} wide with {hidden} inside over {heads} heads; "
                f"sizes are 1 or more, the inner one a multiple of the heads ({HIDDEN} over {HEADS} is usual)"
            )
        self.width, self.hidden, self.heads = width, hidden, heads
        self.fc1 = nn.Linear(width, hidden)
        self.attention = CrossAttention(hidden, heads)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, context_BLW: Tensor, against_BMW: Tensor) -> Tensor:
        """Return the change r(c, n) of every token, the first included, at strength 1.

        L and M may differ, since attention pairs every token with all others.

        Args:
            context_BLW: token embeddings of the prompt, dtype of the weights.
            against_BMW: those of the empty, or of a negative prompt; [1,M,W] serves any number of rows.
        Returns:
            [B,L,W].
        Raises:
            ShapeMismatch: widths are not that of the sharpener, or rows differ.
        Source: arXiv 2502.03726; equals outputs of the authors' network, see tests/golden.
        """
        for name, tokens in (("the prompt", context_BLW), ("what it is pushed away from", against_BMW)):
            if tokens.ndim != 3 or tokens.shape[-1] != self.width:
                raise ShapeMismatch(
                    f"{name} has shape {list(tokens.shape)}, this sharpener takes [rows, tokens, {self.width}]; choose "
                    "a sharpener for the text encoders of this model (SD1.5 is 768 wide, SDXL 2048, SD3 4096)"
                )
        rows = common_rows(prompt=len(context_BLW), against=len(against_BMW))
        x_BLI, other_BMI = (torch.relu(self.fc1(tokens)).expand(rows, -1, -1) for tokens in (context_BLW, against_BMW))
        return self.fc2(torch.relu(self.attention(x_BLI, other_BMI)))


def sharpened(
    sharpener: Sharpener,
    context_BLW: Tensor,
    against_BMW: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    null_BLW: Tensor | None = None,
) -> Tensor:
    """Write guidance into token embeddings, c + alpha r(c, n) - beta (n - null), the first token kept.

    Args:
        sharpener: r, float32.
        context_BLW: the prompt c, any dtype.
        against_BMW: n, the encoded empty prompt, or a negative one.
        alpha: strength; 0 changes nothing, 1 is how a sharpener is trained.
        beta: strength of the negative term; the authors' runs had none.
        null_BLW: the encoded empty prompt; needed where beta is not 0.
    Returns:
        [B,L,W], dtype of context_BLW; inputs are not modified.
    Raises:
        InvalidConfig: beta without null.
        ShapeMismatch: widths or rows differ, or numbers of tokens where beta is not 0.
    Source: arXiv 2502.03726, the form for negative prompts; differs from the authors' code in the term with beta,
    which is in the paper alone.
    """
    context, against = context_BLW.float(), against_BMW.float()
    change_BLW = alpha * sharpener(context, against)
    if beta:
        change_BLW = change_BLW - beta * _negative_term(context, against, null_BLW)
    kept_B1W = context[:, :1].expand(len(change_BLW), -1, -1)
    return torch.cat((kept_B1W, (context + change_BLW)[:, 1:]), dim=1).to(context_BLW.dtype)


def _negative_term(context_BLW: Tensor, against_BLW: Tensor, null_BLW: Tensor | None) -> Tensor:
    """Return n - null, [B,L,W] or [1,L,W]."""
    if null_BLW is None:
        raise InvalidConfig(
            "beta is not 0, it weighs the difference from the empty prompt; connect an encoded empty prompt to null, "
            "or set beta to 0"
        )
    if null_BLW.shape[-1] != against_BLW.shape[-1]:
        raise ShapeMismatch(
            f"null is {null_BLW.shape[-1]} wide, the negative prompt {against_BLW.shape[-1]}; "
            "encode both with the same text encoders"
        )
    tokens = {"prompt": context_BLW.shape[1], "negative": against_BLW.shape[1], "null": null_BLW.shape[1]}
    # no padding here: a token without a partner would be taken away whole, instead of its difference from nothing
    if len(set(tokens.values())) > 1:
        given = ", ".join(f"{name} has {number}" for name, number in tokens.items())
        raise ShapeMismatch(
            f"beta pairs tokens one by one: {given}; make them equally long (Conditioning (Concat) joins a short "
            "prompt with itself), or set beta to 0"
        )
    common_rows(prompt=len(context_BLW), negative=len(against_BLW), null=len(null_BLW))
    return against_BLW - null_BLW.to(against_BLW)
