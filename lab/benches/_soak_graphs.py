"""Graphs for a server: one for each use of the nodes of this pack on the demo SD3, and a stock one."""

from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]
PROMPT, OTHER = "a red circle left of a small blue square on a white background", "a green ring"
STEPS, SEED, SIZE = 2, 7, 64
PICTURE = "picture"
SHARPENER, STUDENT, PROMPTS = "soak_sharpener.safetensors", "demo_sd3_student.safetensors", "soak_prompts"
JUDGE = "soak_clip"
OPERATOR: dict[str, Any] = {"reflect_steps": -1, "rounds": 1, "inversion": "exact"}
SAMPLING: dict[str, Any] = {"seed": SEED, "steps": STEPS, "scheduler": "normal", "denoise": 1.0}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def _start(variant: str) -> Graph:
    return {
        "load": node("TinySD3Loader", variant=variant),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text=PROMPT),
        "null": node("CLIPTextEncode", clip=["load", 1], text=""),
        "empty": node("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1),
    }


def _end(latent: str = "sample") -> Graph:
    return {
        "decode": node("VAEDecode", samples=[latent, 0], vae=["load", 2]),
        PICTURE: node("SaveImage", images=["decode", 0], filename_prefix="soak"),
    }


def _stock_sampler(model: list, positive: list, cfg: float) -> dict[str, Any]:
    prompts = {"positive": positive, "negative": ["null", 0], "latent_image": ["empty", 0]}
    return node("KSampler", model=model, cfg=cfg, sampler_name="euler", **prompts, **SAMPLING)


def _student(loader: dict[str, Any] | None = None) -> Graph:
    """Load a student with the demo loader, or with the loader of student files."""
    parts = _start("base" if loader else "student")
    if loader:
        parts["student"] = loader
    model = ["student", 0] if loader else ["load", 0]
    fuse = {"positive": ["prompt", 0], "null": ["null", 0], "guidance": 3.0}
    parts["fuse"] = node("TeEFusionConditioning", model=model, **fuse)
    parts["sample"] = _stock_sampler(["fuse", 0], ["fuse", 1], 1.0)
    return parts | _end()


def _prompted(change: dict[str, Any]) -> Graph:
    parts = _start("base") | {"other": node("CLIPTextEncode", clip=["load", 1], text=OTHER), "change": change}
    return parts | {"sample": _stock_sampler(["load", 0], ["change", 0], 1.0)} | _end()


def _reflection(kind: str, **inputs: Any) -> Graph:
    parts = _start("base") | {"weak": node("TinySD3Loader", variant="weak")}
    prompts = {"positive": ["prompt", 0], "negative": ["null", 0], "latent_image": ["empty", 0]}
    parts["sample"] = node(kind, **prompts, **inputs, **SAMPLING, **OPERATOR)
    return parts | _end()


def _in_parts() -> Graph:
    scales = {"strong_cfg": 2.0, "weak_cfg": 1.0, "final_cfg": 2.0, "rule": "CHATS", "chats_alpha": 0.5}
    prompts = {"positive": ["prompt", 0], "negative": ["null", 0], "weak_model": ["weak", 0]}
    parts = _start("base") | {
        "weak": node("TinySD3Loader", variant="weak"),
        "guider": node("ReflectionGuider", strong_model=["load", 0], **prompts, **scales),
        "sampler": node("ReflectionSampler", **OPERATOR),
        "noise": node("RandomNoise", noise_seed=SEED),
        "sigmas": node("BasicScheduler", model=["load", 0], scheduler="normal", steps=STEPS, denoise=1.0),
    }
    wired = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    return parts | {"sample": node("SamplerCustomAdvanced", latent_image=["empty", 0], **wired)} | _end()


def _scheduled() -> Graph:
    curve = node("GuidanceSchedule", shape="interval", start=20.0, end=80.0, low_guidance=0.0, shares="")
    prompts = {"positive": ["prompt", 0], "negative": ["null", 0]}
    guider = node("ScheduledCFGGuider", model=["load", 0], **prompts, cfg=4.0, schedule=["curve", 0])
    return _in_parts() | {"curve": curve, "guider": guider, "sampler": node("KSamplerSelect", sampler_name="euler")}


def _swept() -> Graph:
    start = {"positive": ["prompt", 0], "null": ["null", 0], "latent_image": ["empty", 0]}
    values = {"lowest": 1.0, "highest": 3.0, "count": 3, "spacing": "linear"}
    sample = _stock_sampler(["fuse", 0], ["fuse", 1], 1.0)
    sample["inputs"]["latent_image"] = ["fuse", 2]
    grid = node("SweepGrid", images=["decode", 0], sweep=["fuse", 3], image_size=SIZE)
    parts = {"fuse": node("GuidanceSweep", model=["load", 0], **start, **values), "sample": sample}
    shown = {"grid": grid, PICTURE: node("SaveImage", images=["grid", 0], filename_prefix="soak")}
    return _start("student") | parts | _end() | shown


def _reported() -> Graph:
    """The image of a measured run; its plot shows seconds, so it is drawn but not compared."""
    sources = {"model": "load", "latent_image": "empty", "positive": "prompt", "negative": "null"}
    sources |= {name: name for name in ("guider", "sampler", "sigmas")}
    wired = {name: [source, 0] for name, source in sources.items()}
    sigmas = node("BasicScheduler", model=["load", 0], scheduler="normal", steps=STEPS, denoise=1.0)
    parts = {"sigmas": sigmas, "sample": node("GuidanceReport", **wired, noise_seed=SEED)}
    return _start("base") | _guided() | parts | _end() | _grid("")


def _judged() -> Graph:
    off = dict.fromkeys(("clip", "hps", "aesthetic", "image_reward"), "off")
    judge = node("ScoreImages", images=["decode", 0], prompts=PROMPT, pickscore=f"{JUDGE}.safetensors", **off)
    switches = {"case_insensitive": False, "multiline": False, "dotall": False, "group_index": 0}
    score = node("RegexExtract", string=["judge", 0], regex_pattern=r"-?\d+\.\d+", mode="First Match", **switches)
    sample = {"sample": _stock_sampler(["load", 0], ["prompt", 0], 1.0)}
    return _start("base") | sample | _end() | {"judge": judge, "score": score} | _grid(["score", 0])


def _grid(costs: str | list) -> Graph:
    grid = node("CompareGrid", images_a=["decode", 0], prompts=PROMPT, methods="", costs=costs, image_size=SIZE * 4)
    return {"grid": grid, PICTURE: node("SaveImage", images=["grid", 0], filename_prefix="soak")}


def _guided() -> Graph:
    return {
        "guider": node("CFGGuider", model=["load", 0], positive=["prompt", 0], negative=["null", 0], cfg=4.0),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
    }


def _trainer(name: str) -> Graph:
    """A training run of three steps with its loss curve, under a new name, because a finished run would not train."""
    settings = {
        "name": name, "prompts": f"{PROMPT}\n{OTHER}", "negative_prompts": "", "negative_share": 0.0,
        "width": SIZE, "height": SIZE, "steps": 3, "batch_size": 2, "learning_rate": 0.002, "run_seed": 0,
        "method": "teefusion", "trainable": "lora on modulation", "rank": 2, "target": "secant",
        "guidance_min": 1.0, "guidance_max": 6.0, "initial_gain_ratio": 0.25, "teacher_steps": 3,
        "scheduler": "normal", "timestep_sampling": "jittered", "cache_size": 1, "images_per_trajectory": 2,
        "reuse": 1.0, "gradient_checkpointing": False, "whole_model": False, "save_every": 50, "preview_every": 2,
        "accept_changes": "",
    }  # fmt: skip
    loaded = {name: ["load", slot] for slot, name in enumerate(("model", "clip", "vae"))}
    train = node("DistillTrainer", guider=["guider", 0], sampler=["sampler", 0], **loaded, **settings)
    shown = node("LossGraphNode", loss=["train", 1], filename_prefix="soak_loss")
    return _start("base") | _guided() | {"train": train, PICTURE: shown}


def graphs(number: int) -> dict[str, Graph]:
    """Return graphs by name; only the name of the training run depends on the number."""
    loader = node("TeEFusionStudentLoader", model=["load", 0], student=STUDENT)
    blend = {"base": ["prompt", 0], "add": ["other", 0], "add_weight": 0.5, "subtract_weight": 0.0}
    sharpen = {"conditioning": ["prompt", 0], "sharpener": SHARPENER, "alpha": 1.0, "beta": 0.0, "null": ["null", 0]}
    scales = {"strong_cfg": 2.0, "weak_cfg": 1.0, "final_cfg": 2.0}
    return {
        "demo student": _student(), "student file": _student(loader),
        "DICE Sharpen": _prompted(node("DICESharpen", **sharpen)),
        "Text Embedding Blend": _prompted(node("TextEmbeddingBlend", **blend)),
        "W2SD": _reflection("W2SDTeacherSampler", strong_model=["load", 0], weak_model=["weak", 0], **scales),
        "Z-Sampling": _reflection("ZSampling", model=["load", 0], cfg=2.0, inversion_cfg=0.0),
        "Reflection Guider, CHATS": _in_parts(), "Guidance Report, Compare Grid": _reported(),
        "CFG Guider with Schedule": _scheduled(), "Guidance Sweep, Sweep Grid": _swept(),
        "Score Images": _judged(), "Distill Trainer": _trainer(f"soak_{number}"),
    }  # fmt: skip


def stock() -> Graph:
    """A graph without our nodes; its prompts come from a file, because only this pack has the text encoder."""
    wired = {"model": ["model", 0], "positive": ["prompts", 1], "negative": ["prompts", 1]}
    wired["latent_image"] = ["empty", 0]
    return {
        "model": node("UNETLoader", unet_name="demo_sd3_base.safetensors", weight_dtype="default"),
        "load": node("VAELoader", vae_name="demo_sd3_vae.safetensors"),
        "prompts": node("LoadTrainingDataset", folder_name=PROMPTS),
        "empty": node("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1),
        "sample": node("KSampler", cfg=1.0, sampler_name="euler", **wired, **SAMPLING),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 0]),
        PICTURE: node("SaveImage", images=["decode", 0], filename_prefix="stock"),
    }


def furnish(base: Path, models: Path) -> None:
    """Copy the files that the graphs use to a server's folders."""
    import shutil

    import torch

    from teefusion_core.comfy_host.demo_model import load_demo
    from teefusion_core.files.sharpener_file import SharpenerInfo, write_sharpener
    from teefusion_core.prompts.sharpener import Sharpener

    files = {"loras": STUDENT, "diffusion_models": "demo_sd3_base.safetensors", "vae": "demo_sd3_vae.safetensors"}
    for kind, name in files.items():
        (base / "models" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(models / name, base / "models" / kind / name)
    _random_clip(base / "models" / "clip_vision")
    clip = load_demo("base")[1]
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    width = prompt[0][0].shape[-1]
    torch.manual_seed(0)
    info = SharpenerInfo("dice", width, 64, 8, 1.0, 0.0, 2.0, "none", "", 0, "0.1.0")
    write_sharpener(base / "models" / "loras" / SHARPENER, Sharpener(width, 64, 8), info)
    folder = base / "output" / PROMPTS
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"latents": [{"samples": torch.zeros(1, 16, 8, 8)}], "conditioning": [prompt]}
    torch.save(stored, folder / "shard_0000.pkl")  # the format of the host's node, which loads weights only


def _random_clip(folder: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"eos_token_id": 49407, "bos_token_id": 49406}
    config = transformers.CLIPConfig(text_config=text, vision_config=tower | {"patch_size": 32}, projection_dim=32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(transformers.CLIPModel(config).state_dict(), folder / f"{JUDGE}.safetensors")
    config.to_json_file(folder / f"{JUDGE}.json", use_diff=False)
