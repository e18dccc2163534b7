"""The models that a config file names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils

from ...errors import InvalidConfig
from ..demo_model import load_demo
from ..model_files import ENCODERS, NETWORK, VAE, check_vae, contents, loaded, why_invalid, wrong_file
from ..notes import tell


def load_models(section: Mapping[str, Any], folder: Path):
    """Load what `[model]` of a training names.

    Args:
        section: settings by name.
        folder: folder that its paths are relative to.
    Returns:
        (MODEL, CLIP, VAE or None).
    Raises:
        CheckpointMismatch: a file is not what its setting wants.
        InvalidConfig: a file does not exist, or a setting is missing.
    """
    if "demo_model" in section:
        return load_demo(section["demo_model"])
    if "checkpoint" in section:
        return _checkpoint(section, folder)
    model = load_network(section["diffusion_model"], folder, "[model] diffusion_model")
    return model, _clip(section, folder), _vae(section, folder, model)


def load_network(name: str, folder: Path, setting: str):
    """Return the MODEL of a diffusion model or checkpoint file.

    Args:
        name: path relative to the folder.
        folder: folder of the config file.
        setting: for messages, e.g. "[teacher] weak_model".
    Raises:
        CheckpointMismatch, InvalidConfig: the file holds no diffusion model, or does not exist.
    """
    path = existing_file(folder, name, setting)
    tell(f"loading {path.name}")
    return loaded(path, setting, NETWORK, lambda: comfy.sd.load_diffusion_model(str(path)))


def existing_file(folder: Path, name: str, setting: str = "") -> Path:
    """Return the path of a file that a setting names.

    Raises:
        InvalidConfig: it is a folder, or does not exist.
    """
    of = f"{setting} is " if setting else ""
    path = folder / name
    if path.is_dir():
        raise InvalidConfig(f"{of}{path}, which is a folder; give a file in it")
    if not path.is_file():
        raise InvalidConfig(f"{path} does not exist; paths are relative to the folder of the config file")
    return path


def _checkpoint(section: Mapping[str, Any], folder: Path):
    setting = "[model] checkpoint"
    path = existing_file(folder, section["checkpoint"], setting)
    wanted = f"{NETWORK} with {ENCODERS}"
    tell(f"loading {path.name}")
    model, clip, vae = loaded(path, setting, wanted, lambda: comfy.sd.load_checkpoint_guess_config(str(path))[:3])
    if model is None or clip is None:
        raise wrong_file(path, setting, f"{wanted}, or set diffusion_model and clip instead")
    if "vae" in section:
        return model, clip, _vae(section, folder, model)
    vae = None if why_invalid(vae) else vae
    check_vae(vae, model, f"{setting} {path.name}")
    return model, clip, vae


def _clip(section: Mapping[str, Any], folder: Path):
    setting, kind = "[model] clip", getattr(comfy.sd.CLIPType, section.get("clip_type", "sd3").upper())
    if "clip" not in section:
        raise InvalidConfig("[model] has no clip; add a list of text encoder files")
    paths = [existing_file(folder, name, setting) for name in section["clip"]]
    for path in paths:
        found = contents(path)
        if ENCODERS not in found and found:
            raise wrong_file(path, setting, ENCODERS)
    files = [str(path) for path in paths]
    tell(f"loading {', '.join(path.name for path in paths)}")
    return loaded(paths[0], setting, ENCODERS, lambda: comfy.sd.load_clip(files, clip_type=kind))


def _vae(section: Mapping[str, Any], folder: Path, model):
    if "vae" not in section:
        return None
    setting = "[model] vae"
    path = existing_file(folder, section["vae"], setting)
    load = comfy.utils.load_torch_file
    tell(f"loading {path.name}")
    vae = loaded(path, setting, VAE, lambda: comfy.sd.VAE(sd=load(str(path), safe_load=True)))
    if why_invalid(vae):
        raise wrong_file(path, setting, VAE)
    check_vae(vae, model, f"{setting} {path.name}")
    return vae
