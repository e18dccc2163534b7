"""What the network makes of guidance: G(psi(1000 w)) over w, as Figure 6 of the paper.

Shapes: W strengths, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._numbers import packed
from ._study import Study, load

FINE, COARSE = 0.05, 0.1
LOWEST, HIGHEST = 0.5, 4.0


def embeddings(study: Study, students: dict[str, Path]) -> list[dict[str, Any]]:
    """Embed strengths by the base, by students; return two principal components, t-SNE, cosines.

    Args:
        students: name -> file, of students without layers of their own.
    """
    from teefusion_core.files.student_file import read_student

    found = []
    for name, path in {"base": None, **students}.items():
        info = read_student(next(iter(students.values())) if path is None else path)[1]
        model = study.base if path is None else load(study.base, path)
        scale = info.guidance_embedding_scale
        found.append({"name": name, "scale": scale, **_described(_embedded(model, scale, FINE))})
        found[-1]["cosines"] = [packed(row, 4) for row in cosines(_embedded(model, scale, COARSE))]
    return found


def grid(step: float) -> Tensor:
    """Strengths from the least to the largest, float64 [W]."""
    return torch.linspace(LOWEST, HIGHEST, round((HIGHEST - LOWEST) / step) + 1, dtype=torch.float64)


def _embedded(model: Any, scale: float, step: float) -> Tensor:
    """[W,D] by the weights that the model has, LoRA included."""
    import comfy.model_management

    from teefusion_core.guidance.architectures import architecture_of
    from teefusion_core.guidance.fusion import EXACT, guidance_timestep

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    network = model.model.diffusion_model
    time_embed, _ = architecture_of(network).embedders(network, model.model.get_dtype())
    return time_embed(guidance_timestep(grid(step), precision=EXACT, scale=scale)).double()


def _described(x_WD: Tensor) -> dict[str, Any]:
    centred = x_WD - x_WD.mean(0)
    left_WK, size_K, _ = torch.linalg.svd(centred, full_matrices=False)
    plane_W2 = left_WK[:, :2] * size_K[:2]
    share = (size_K.square() / size_K.square().sum())[:2]
    near = torch.cosine_similarity(x_WD[1:], x_WD[:-1]).mean()
    return {
        "first": packed(plane_W2[:, 0]),
        "second": packed(plane_W2[:, 1]),
        "variance": [round(float(part), 3) for part in share],
        "neighbours": round(float(near), 4),
        "tsne": [packed(axis) for axis in tsne(x_WD).T],
    }


def cosines(x_WD: Tensor) -> Tensor:
    """Cosine of every strength with every other, [W,W]."""
    unit = x_WD / x_WD.norm(dim=1, keepdim=True)
    return unit @ unit.T


def tsne(x_WD: Tensor, *, perplexity: float = 10.0, steps: int = 800) -> Tensor:
    """Place rows in the plane so that near ones stay near: exact t-SNE, started from two principal components.

    Gradient descent with momentum, the first 200 steps with likeness exaggerated twelve times; no randomness.
    Returns:
        float64 [W,2].
    Source: van der Maaten with Hinton, Visualizing Data using t-SNE, 2008.
    """
    p_WW = _likeness(x_WD, perplexity)
    centred = x_WD - x_WD.mean(0)
    left_WK, size_K, _ = torch.linalg.svd(centred, full_matrices=False)
    y_W2 = left_WK[:, :2] * size_K[:2]
    y_W2 = 1e-2 * y_W2 / y_W2.std()
    speed = torch.zeros_like(y_W2)
    for step in range(steps):
        near_WW = 1 / (1 + torch.cdist(y_W2, y_W2).square())
        near_WW.fill_diagonal_(0)
        pull_WW = ((12 if step < 200 else 1) * p_WW - near_WW / near_WW.sum()) * near_WW
        gradient = 4 * (pull_WW.sum(1, keepdim=True) * y_W2 - pull_WW @ y_W2)
        speed = (0.5 if step < 200 else 0.8) * speed - 20.0 * gradient
        y_W2 = y_W2 + speed
    return y_W2 - y_W2.mean(0)


def _likeness(x_WD: Tensor, perplexity: float) -> Tensor:
    """Joint likeness of rows [W,W]; each row's width is found by bisection so that it sees `perplexity` others."""
    square_WW = torch.cdist(x_WD, x_WD).square()
    low, high = torch.full((len(x_WD), 1), 1e-12).double(), torch.full((len(x_WD), 1), 1e12).double()
    eye = torch.eye(len(x_WD), dtype=torch.bool)
    for _ in range(100):
        precision = (low * high).sqrt()
        p_WW = torch.softmax((-precision * square_WW).masked_fill(eye, -torch.inf), 1)
        entropy = -(p_WW * p_WW.clamp(min=1e-300).log()).sum(1, keepdim=True)
        wide = entropy > torch.log(torch.tensor(perplexity).double())
        low, high = torch.where(wide, precision, low), torch.where(wide, high, precision)
    return (p_WW + p_WW.T) / (2 * len(p_WW))
