"""Deterministic weights with inputs for the stored outputs, in the diffusers layout of SD3."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).resolve().parent / "data"
HEAD_WIDTH, CONTEXT_WIDTH, POOLED_WIDTH, CHANNELS, PATCH = 64, 4096, 2048, 16, 2
POS_GRID, POS_BASE = 24, 8  # pos_embed_max_size; sample size 16 / patch 2
EULER8_SIGMAS = (1.0, 0.95, 0.88, 0.79, 0.67, 0.52, 0.33, 0.12, 0.0)
CASES = json.loads((DATA / "teefusion.json").read_text(encoding="ascii"))


def fill(name, shape, seed):
    """Return normal float32 numbers that depend on name and seed only."""
    state = np.random.RandomState((seed * 1000003 + zlib.crc32(name.encode())) % 2**32)
    return torch.from_numpy(state.standard_normal(shape).astype(np.float32))


def relative(a, b):
    """Return how far a is from b, by norms."""
    return float((a - b).norm() / b.norm())


def stored(case):
    """Return the stored outputs of a case as tensors by short name."""
    with np.load(DATA / "teefusion.npz") as archive:
        return {key.split("/")[1]: torch.from_numpy(archive[key]) for key in archive if key.startswith(case + "/")}


def inputs(case):
    """Return x, context, pooled, pooled_null of a case."""
    c = CASES[case]
    shapes = {
        "x": (c["batch"], CHANNELS, c["height"], c["width"]), "context": (c["batch"], c["tokens"], CONTEXT_WIDTH),
        "pooled": (c["batch"], POOLED_WIDTH), "pooled_null": (1, POOLED_WIDTH),
    }  # fmt: skip
    return {name: fill(name, shape, c["seed"]) for name, shape in shapes.items()}


def _layer(name, wide_out, *wide_in):
    return {f"{name}.weight": (wide_out, *wide_in), f"{name}.bias": (wide_out,)}


def _attention(name, d, added, last, qk_norm):
    shapes = {}
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= _layer(f"{name}.{part}", d, d)
    norms = ["norm_q", "norm_k"]
    if added:
        for part in ("add_q_proj", "add_k_proj", "add_v_proj", *([] if last else ["to_add_out"])):
            shapes |= _layer(f"{name}.{part}", d, d)
        norms += ["norm_added_q", "norm_added_k"]
    return shapes | ({f"{name}.{norm}.weight": (HEAD_WIDTH,) for norm in norms} if qk_norm else {})


def parameter_shapes(case):
    """Return the shape of every parameter of a case by its diffusers name."""
    c = CASES[case]
    d = c["heads"] * HEAD_WIDTH
    shapes = _layer("pos_embed.proj", d, CHANNELS, PATCH, PATCH) | _layer("context_embedder", d, CONTEXT_WIDTH)
    for part, wide_in in (("timestep_embedder", 256), ("text_embedder", POOLED_WIDTH)):
        shapes |= _layer(f"time_text_embed.{part}.linear_1", d, wide_in)
        shapes |= _layer(f"time_text_embed.{part}.linear_2", d, d)
    for i in range(c["layers"]):
        block, dual, last = f"transformer_blocks.{i}", i in c["dual"], i == c["layers"] - 1
        shapes |= _layer(f"{block}.norm1.linear", (9 if dual else 6) * d, d)
        shapes |= _layer(f"{block}.norm1_context.linear", (2 if last else 6) * d, d)
        shapes |= _attention(f"{block}.attn", d, True, last, c["qk_norm"])
        if dual:
            shapes |= _attention(f"{block}.attn2", d, False, last, c["qk_norm"])
        for ff in ("ff",) if last else ("ff", "ff_context"):
            shapes |= _layer(f"{block}.{ff}.net.0.proj", 4 * d, d) | _layer(f"{block}.{ff}.net.2", d, 4 * d)
    return shapes | _layer("norm_out.linear", 2 * d, d) | _layer("proj_out", PATCH * PATCH * CHANNELS, d)


def position_table(d):
    """Return the fixed position embedding [1, grid*grid, d]: waves of the column, then of the row."""
    place = np.arange(POS_GRID, dtype=np.float32) / (POS_GRID / POS_BASE)
    omega = 1.0 / 10000 ** (np.arange(d // 4, dtype=np.float64) / (d / 4.0))
    column, row = np.meshgrid(place, place)
    angles = [np.outer(axis.reshape(-1), omega) for axis in (column, row)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(waves, axis=1)).float()[None]


def state_dict(case):
    """Return the weights of a case in the diffusers layout."""
    c = CASES[case]
    weights = {}
    for name, shape in parameter_shapes(case).items():
        noise = fill(name, shape, c["seed"])
        if len(shape) == 1 and ".norm_" in name and name.endswith(".weight"):
            weights[name] = 1 + 0.1 * noise
        else:
            weights[name] = (0.15 if name.startswith("time_text_embed") else 0.03) * noise
    weights["pos_embed.pos_embed"] = position_table(c["heads"] * HEAD_WIDTH)
    return weights
