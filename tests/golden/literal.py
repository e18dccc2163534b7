"""Slow text-book SD3 with the guidance term, written out over a dict of weights.

It shares no code with the pack: loops, names of the diffusers layout, one formula per line.
"""

import math

import torch
import torch.nn.functional as F

HEAD_WIDTH = 64


def linear(weights, name, x):
    """Return x W^T + b."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def waves(value):
    """Return psi(value): 128 cosines, then 128 sines."""
    angles = [value * torch.exp(torch.tensor(-math.log(10000.0)) * k / 128) for k in range(128)]
    return torch.stack([torch.cos(a) for a in angles] + [torch.sin(a) for a in angles])


def embed_number(weights, value):
    """Return G(psi(value)) of one number."""
    name = "time_text_embed.timestep_embedder"
    return linear(weights, f"{name}.linear_2", F.silu(linear(weights, f"{name}.linear_1", waves(value))))


def embed_text(weights, pooled):
    """Return F(pooled) of one vector."""
    name = "time_text_embed.text_embedder"
    return linear(weights, f"{name}.linear_2", F.silu(linear(weights, f"{name}.linear_1", pooled)))


def term(weights, pooled, null, guidance_timestep, gain):
    """Return the guidance term of one row."""
    return gain * embed_number(weights, guidance_timestep) * embed_text(weights, pooled - null)


def rms(x, weight):
    """Return x over its root mean square, weighted."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def plain_norm(x):
    """Return x with zero mean, unit variance."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def heads_of(weights, name, x, parts, norms):
    """Return queries, keys, values by head for one row of tokens [L,D]."""
    out = []
    for part, norm in zip(parts, (*norms, None), strict=True):
        y = linear(weights, f"{name}.{part}", x).reshape(len(x), -1, HEAD_WIDTH)
        scale = weights.get(f"{name}.{norm}.weight")
        out.append(y if scale is None else rms(y, scale))
    return out


def attend(q, k, v):
    """Return softmax attention for each head, joined again."""
    out = []
    for h in range(q.shape[1]):
        score = q[:, h] @ k[:, h].T / math.sqrt(HEAD_WIDTH)
        out.append(score.softmax(-1) @ v[:, h])
    return torch.cat(out, dim=-1)


def feed_forward(weights, name, x):
    """Return the two-layer network with the tanh form of GELU."""
    hidden = F.gelu(linear(weights, f"{name}.net.0.proj", x), approximate="tanh")
    return linear(weights, f"{name}.net.2", hidden)


def block(weights, name, image, text, vec, last):
    """Return image with text tokens after one joint block, both [L,D]."""
    mod = linear(weights, f"{name}.norm1.linear", F.silu(vec)).split(image.shape[-1])
    text_mod = linear(weights, f"{name}.norm1_context.linear", F.silu(vec)).split(image.shape[-1])
    image_in = plain_norm(image) * (1 + mod[1]) + mod[0]
    if last:  # this one alone stores the scale before the shift
        text_in = plain_norm(text) * (1 + text_mod[0]) + text_mod[1]
    else:
        text_in = plain_norm(text) * (1 + text_mod[1]) + text_mod[0]
    qkv = heads_of(weights, f"{name}.attn", image_in, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
    added = ("add_q_proj", "add_k_proj", "add_v_proj")
    text_qkv = heads_of(weights, f"{name}.attn", text_in, added, ("norm_added_q", "norm_added_k"))
    joint = attend(*(torch.cat(pair) for pair in zip(qkv, text_qkv, strict=True)))
    new_image = image + mod[2] * linear(weights, f"{name}.attn.to_out.0", joint[: len(image)])
    if len(mod) == 9:
        second_in = plain_norm(image) * (1 + mod[7]) + mod[6]
        qkv = heads_of(weights, f"{name}.attn2", second_in, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        new_image = new_image + mod[8] * linear(weights, f"{name}.attn2.to_out.0", attend(*qkv))
    hidden = plain_norm(new_image) * (1 + mod[4]) + mod[3]
    new_image = new_image + mod[5] * feed_forward(weights, f"{name}.ff", hidden)
    if last:
        return new_image, text
    text = text + text_mod[2] * linear(weights, f"{name}.attn.to_add_out", joint[len(image) :])
    hidden = plain_norm(text) * (1 + text_mod[4]) + text_mod[3]
    return new_image, text + text_mod[5] * feed_forward(weights, f"{name}.ff_context", hidden)


def velocity(weights, x, sigma, context, pooled, extra):
    """Return the velocity of one latent [C,H,W]; `extra` is what is added to vec (0 for the base)."""
    channels, height, width = x.shape
    vec = embed_number(weights, 1000 * torch.tensor(sigma)) + embed_text(weights, pooled) + extra
    patches = F.conv2d(x[None], weights["pos_embed.proj.weight"], weights["pos_embed.proj.bias"], stride=2)[0]
    rows, columns = patches.shape[1:]
    grid = math.isqrt(weights["pos_embed.pos_embed"].shape[1])
    table = weights["pos_embed.pos_embed"].reshape(grid, grid, -1)
    top, left = (grid - rows) // 2, (grid - columns) // 2
    image = (patches.permute(1, 2, 0) + table[top : top + rows, left : left + columns]).flatten(0, 1)
    text = linear(weights, "context_embedder", context)
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    for i in range(layers):
        image, text = block(weights, f"transformer_blocks.{i}", image, text, vec, i == layers - 1)
    scale, shift = linear(weights, "norm_out.linear", F.silu(vec)).chunk(2)
    out = linear(weights, "proj_out", plain_norm(image) * (1 + scale) + shift)
    out = out.reshape(rows, columns, 2, 2, channels).permute(4, 0, 2, 1, 3)
    return out.reshape(channels, height, width)
