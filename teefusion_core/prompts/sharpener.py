"""The DICE sharpener, a small network that adds guidance to the token embeddings of a prompt.

    r(c, n) = fc2(relu(attention(relu(fc1(c)), relu(fc1(n)))))
    c' = c + alpha r(c, n) - beta (n - null)

c is the prompt and n is the prompt to push away from: the empty prompt, for which the last term is zero, or a negative
prompt. The sharpener runs once per prompt and leaves the model unchanged, which is then sampled at cfg 1. The first
token (CLIP's start token) does not change; all other tokens do, including the padding. The pooled vector is not used.

Shapes: B batch, L tokens of c, M tokens of n, W token width, I inner width, N heads, K head width.
Source: DICE, arXiv 2502.03726; written from its formulas, checked against outputs of the authors' network.
"""

import torch
from torch import Tensor, nn

from ..errors import InvalidConfig, ShapeMismatch
from ..guidance.fusion import common_rows

HIDDEN, HEADS = 512, 8  # in the paper, for any token width


class CrossAttention(nn.Module):
    """Cross-attention from the tokens of one text to those of another."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        # a list, so that the weight names equal those of diffusers
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x_BLI: Tensor, other_BMI: Tensor) -> Tensor:
        """Return the attention output [B,L,I] for every token of x."""
        q_BNLK = self._by_head(self.to_q(x_BLI))
        k_BNMK, v_BNMK = self._by_head(self.to_k(other_BMI)), self._by_head(self.to_v(other_BMI))
        found_BNLK = nn.functional.scaled_dot_product_attention(q_BNLK, k_BNMK, v_BNMK)
        return self.to_out[0](found_BNLK.transpose(1, 2).flatten(2))

    def _by_head(self, x_BLI: Tensor) -> Tensor:
        return x_BLI.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Sharpener(nn.Module):
    """The network r(c, n).

    Args:
        width: W, the token width of the model (SD1.5 768, SDXL 2048, SD3 4096).
        hidden: I, a multiple of heads.
        heads: number of attention heads.
    Raises:
        InvalidConfig: a size below 1, or hidden is not a multiple of heads.
    """

    def __init__(self, width: int, hidden: int = HIDDEN, heads: int = HEADS):
        super().__init__()
        if min(width, hidden, heads) < 1 or hidden % heads:
            raise InvalidConfig(
                f"a sharpener cannot be {width} wide with {hidden} inside and {heads} heads; use sizes of 1 or more, "
                f"the inner one a multiple of the heads ({HIDDEN} and {HEADS} are usual)"
            )
        self.width, self.hidden, self.heads = width, hidden, heads
        self.fc1 = nn.Linear(width, hidden)
        self.attention = CrossAttention(hidden, heads)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, context_BLW: Tensor, against_BMW: Tensor) -> Tensor:
        """Return the change r(c, n) of every token, including the first, at strength 1.

        L and M may differ.

        Args:
            context_BLW: token embeddings c, dtype of the weights.
            against_BMW: token embeddings n of the empty or a negative prompt; [1,M,W] is broadcast.
        Returns:
            [B,L,W].
        Raises:
            ShapeMismatch: widths differ from that of the sharpener, or rows differ.
        Source: arXiv 2502.03726; equals outputs of the authors' network, see tests/golden.
        """
        for name, tokens in (("the prompt", context_BLW), ("the null or negative prompt", against_BMW)):
            if tokens.ndim != 3 or tokens.shape[-1] != self.width:
                raise ShapeMismatch(
                    f"{name} has shape {list(tokens.shape)}, this sharpener takes [rows, tokens, {self.width}]; choose "
                    "a sharpener for this model (SD1.5 is 768 wide, SDXL 2048, SD3 4096)"
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
    """Return sharpened token embeddings, c + alpha r(c, n) - beta (n - null), with the first token unchanged.

    Args:
        sharpener: r, float32.
        context_BLW: the prompt c, any dtype.
        against_BMW: n, the encoded empty or a negative prompt.
        alpha: strength; 1 is used in training, 0 leaves the term with beta only.
        beta: strength of the negative term; 0 in the authors' code.
        null_BLW: the encoded empty prompt; needed if beta is not 0.
    Returns:
        [B,L,W], dtype of context_BLW; inputs are not modified.
    Raises:
        InvalidConfig: beta without null.
        ShapeMismatch: widths or rows differ, or numbers of tokens if beta is not 0.
    Source: arXiv 2502.03726, the form for negative prompts; the term with beta is in the paper only, not in the
    authors' code.
    """
    context, against = context_BLW.float(), against_BMW.float()
    change_BLW = alpha * sharpener(context, against)
    if beta:
        change_BLW = change_BLW - beta * _negative_term(context, against, null_BLW)
    change_BLW = nn.functional.pad(change_BLW[:, 1:], (0, 0, 1, 0))  # the first token stays as it is
    return (context + change_BLW).to(context_BLW.dtype)


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
    # no padding: a token of n without a counterpart in null would be subtracted as a whole
    if len(set(tokens.values())) > 1:
        given = ", ".join(f"{name} has {number}" for name, number in tokens.items())
        raise ShapeMismatch(
            f"beta pairs tokens one by one: {given}; make the prompts equally long (Conditioning (Concat) joins a "
            "short prompt with itself), or set beta to 0"
        )
    common_rows(prompt=len(context_BLW), negative=len(against_BLW), null=len(null_BLW))
    return against_BLW - null_BLW.to(against_BLW)
