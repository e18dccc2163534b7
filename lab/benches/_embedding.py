"""The guidance embedding G(psi(1000 w)) over w, as in Figure 6 of the paper.

Shapes: W strengths, D model width.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._report import packed, unpacked
from ._study import Study, load

FINE, COARSE = 0.05, 0.1
LOWEST, HIGHEST = 0.5, 4.0


def embeddings(study: Study, students: dict[str, Path]) -> list[dict[str, Any]]:
    """Embed every strength with the base and with students (name -> file) without additional layers."""
    from teefusion_core.files.student_file import read_student

    found = []
    for name, path in {"base": None, **students}.items():
        info = read_student(next(iter(students.values())) if path is None else path)[1]
        model, scale = study.base if path is None else load(study.base, path), info.guidance_embedding_scale
        found.append({"name": name, "scale": scale, **_described(_embedded(model, scale, FINE))})
        found[-1]["cosines"] = [packed(row, 4) for row in cosines(_embedded(model, scale, COARSE))]
    return found


def _embedded(model: Any, scale: float, step: float) -> Tensor:
    """Embed strengths that are `step` apart, [W,D], with the current weights of the model, including its LoRA."""
    import comfy.model_management

    from teefusion_core.guidance.architectures import architecture_of
    from teefusion_core.guidance.fusion import EXACT, guidance_timestep

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    network = model.model.diffusion_model
    time_embed, _ = architecture_of(network).embedders(network, model.model.get_dtype())
    w_W = torch.linspace(LOWEST, HIGHEST, round((HIGHEST - LOWEST) / step) + 1, dtype=torch.float64)
    return time_embed(guidance_timestep(w_W, precision=EXACT, scale=scale)).double()


def _described(x_WD: Tensor) -> dict[str, Any]:
    variance_K = torch.linalg.svdvals(x_WD - x_WD.mean(0)).square()
    near = torch.cosine_similarity(x_WD[1:], x_WD[:-1]).mean()
    shares = (variance_K / variance_K.sum())[:2].tolist()
    return {"variance": [round(share, 3) for share in shares], "neighbours": round(float(near), 4)}


def cosines(x_WD: Tensor) -> Tensor:
    unit = x_WD / x_WD.norm(dim=1, keepdim=True)
    return unit @ unit.T


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return how far the embedding moves over the range of w, and in how many directions."""
    ends = f"{LOWEST:g} and {HIGHEST:g}"
    lines = [["weights", f"cosine, {FINE:g} apart", f"cosine of {ends}", "variance on the first axis", "on the second"]]
    for row in result["embedding"]:
        far = unpacked(row["cosines"][0])[-1]
        shares = [f"{100 * share:.1f} %" for share in row["variance"]]
        lines.append([row["name"], f"{row['neighbours']:.4f}", f"{far:.3f}", *shares])
    return lines
