"""Nodes that sample with a reflection teacher."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales
from ..teefusion_core.comfy_host.reflection.sampler import ALL_STEPS, INVERSIONS, ReflectionSampler
from ..teefusion_core.comfy_host.sampling import run_reflection, schedule, schedulers
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema

ALIASES = ["teefusion", "reflection", "zigzag", "weak to strong", "w2sd", "teacher sampler", "guidance"]
INVERSION_TOOLTIP = (
    "Leave it at exact. The noise level that the model is given in the weak phase. exact: the level that the "
    "latent has; works with every model. upper: the next higher level, as in the W2SD paper. official: as in the "
    "authors' code, for comparison only."
)
REFLECT_TOOLTIP = (
    "How many steps reflect, counted from the first. -1: all of them. 0: none, which is plain Euler sampling "
    "with the final phase only. A step without reflection costs its final phase only. A step that ends at "
    "noise level 0, usually the last one, never reflects."
)


def _cfg(id: str, default: float, tooltip: str, **keywords):
    return inp(io.Float.Input, id, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip, **keywords)


def _prompt(id: str, tooltip: str, **keywords):
    return inp(io.Conditioning.Input, id, tooltip=tooltip, **keywords)


def prompt_inputs() -> list:
    """Prompt and negative prompt."""
    return [
        _prompt("positive", "The encoded prompt: what the image should show."),
        _prompt(
            "negative",
            "The encoded negative prompt: what the image should avoid. The encoded empty prompt works too.",
        ),
    ]  # fmt: skip


def scale_inputs() -> list:
    """CFG scale of each phase."""
    return [
        _cfg(
            "strong_cfg", 1.0,
            "CFG scale of the strong phase, which denoises first. 1 (prompt only) and 0 (negative only) "
            "cost 1 pass, other values 2. The scale is that of KSampler: CFG scale = 1 + guidance w.",
        ),
        _cfg(
            "weak_cfg", 1.0,
            "CFG scale of the weak phase, which goes back to the previous noise level. A lower value gives "
            "stronger guidance. 1 (prompt only) and 0 (negative only) cost 1 pass, other values 2. CFG "
            "scale = 1 + guidance w.",
        ),
        _cfg(
            "final_cfg", 4.0,
            "CFG scale of the final phase, which denoises again and whose result is kept. 1 (prompt only) "
            "and 0 (negative only) cost 1 pass, other values 2. CFG scale = 1 + guidance w.",
        ),
    ]  # fmt: skip


def weak_prompt_inputs() -> list:
    """Prompts of the weak phase, which are optional."""
    return [
        _prompt(
            "weak_positive",
            "Prompt of the weak phase, for example a less detailed one. If not connected, positive is used.",
            optional=True,
        ),
        _prompt(
            "weak_negative", "Negative prompt of the weak phase. If not connected, negative is used.",
            optional=True,
        ),
    ]  # fmt: skip


def operator_inputs() -> list:
    """Inputs of the reflection itself."""
    return [
        inp(io.Int.Input, "reflect_steps", default=ALL_STEPS, min=ALL_STEPS, max=10000, tooltip=REFLECT_TOOLTIP),
        inp(
            io.Int.Input, "rounds", default=1, min=1, max=16,
            tooltip="Reflections per step, from 1 to 16. Each one adds a strong phase and a weak phase, which is 2 "
            "to 4 passes.",
        ),
        inp(io.Combo.Input, "inversion", options=list(INVERSIONS), default="exact", tooltip=INVERSION_TOOLTIP),
    ]  # fmt: skip


def _start() -> list:
    """Inputs that a KSampler has too."""
    return [
        inp(
            io.Latent.Input, "latent_image",
            tooltip="The latent to start from: an empty one for text to image, or an encoded image with denoise "
            "below 1. Its noise mask is respected.",
        ),
        inp(
            io.Int.Input, "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
            tooltip="Seed of the noise; nothing else is random. KSampler gets the same noise from the same seed.",
        ),
        inp(
            io.Int.Input, "steps", default=20, min=1, max=10000,
            tooltip="Number of sampling steps. The time grows in proportion.",
        ),
    ]  # fmt: skip


def _schedule() -> list:
    return [
        inp(
            io.Combo.Input, "scheduler", options=schedulers(), default="normal",
            tooltip="How the noise levels of the steps are spaced, as in KSampler.",
        ),
        inp(
            io.Float.Input, "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
            tooltip="How much of the start latent is replaced, as in KSampler. 1: all of it. Lower values keep more "
            "of latent_image. 0: latent_image is returned unchanged.",
        ),
    ]  # fmt: skip


def _latent_output():
    return io.Latent.Output(
        "latent", display_name="LATENT",
        tooltip="The sampled latent. After the run, the node shows the number of forward passes and the time.",
    )  # fmt: skip


class W2SDTeacherSampler(io.ComfyNode):
    """Sample with a strong model that is contrasted with a weak one in every step."""

    DISPLAY_NAME = "W2SD Teacher Sampler"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="W2SDTeacherSampler",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Samples with a strong and a weak model and brings out what the strong one does better. Each "
                "step denoises with the strong model, goes back with the weak one and denoises again: 4 "
                "forward passes at the defaults, where CFG needs 2. It helps when the weak model is "
                "genuinely worse."
            ),
            search_aliases=ALIASES,
            inputs=[
                inp(
                    io.Model.Input, "strong_model",
                    tooltip="The better model, for example with a LoRA that improves images. It is not changed.",
                ),
                *prompt_inputs(),
                *_start(),
                *scale_inputs(),
                *_schedule(),
                *operator_inputs(),
                inp(
                    io.Model.Input, "weak_model", optional=True,
                    tooltip="A worse model of the same family: an earlier checkpoint, the same model without its "
                    "LoRA or with the LoRA at negative strength, or one with skipped layers. A model from another "
                    "file takes additional memory. If not connected, the strong model is used and only CFG scales "
                    "and prompts can differ.",
                ),
                *weak_prompt_inputs(),
            ],
            outputs=[_latent_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        strong_model,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        strong_cfg,
        weak_cfg,
        final_cfg,
        scheduler,
        denoise,
        reflect_steps,
        rounds,
        inversion,
        weak_model=None,
        weak_positive=None,
        weak_negative=None,
    ) -> io.NodeOutput:
        """Sample, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            guider = ReflectionGuider(strong_model, weak_model, scales=Scales(strong_cfg, weak_cfg, final_cfg))
            guider.set_conds(positive, negative, weak_positive, weak_negative)
            sampler = ReflectionSampler(reflect_steps=reflect_steps, rounds=rounds, inversion=inversion)
            sigmas = schedule(strong_model, scheduler, steps, denoise)
            return io.NodeOutput(run_reflection(guider, sampler, sigmas, latent_image, seed)[0])


class ZSampling(io.ComfyNode):
    """Sample with one model, contrasted with itself at a lower guidance in every step."""

    DISPLAY_NAME = "Z-Sampling (zigzag)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="ZSampling",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Samples with one model that is contrasted with itself at lower guidance. Each step denoises "
                "with cfg, goes back with inversion_cfg and denoises again: 5 forward passes at the "
                "defaults, where CFG needs 2. It works with every model that ComfyUI can sample."
            ),
            search_aliases=ALIASES,
            inputs=[
                inp(io.Model.Input, "model", tooltip="The diffusion model, of any kind. It is not changed."),
                *prompt_inputs(),
                *_start(),
                _cfg(
                    "cfg", 5.5,
                    "CFG scale of both denoising phases. The effective guidance is about 2 x cfg - inversion_cfg, "
                    "which is 11 at the defaults. 1 (prompt only) and 0 (negative only) cost 1 pass per phase, "
                    "other values 2. CFG scale = 1 + guidance w.",
                ),
                _cfg(
                    "inversion_cfg", 0.0,
                    "CFG scale of the phase that goes back. The further it is below cfg, the stronger the effect; "
                    "if both are equal, it has no effect. 0 (negative only) and 1 (prompt only) cost 1 pass, other "
                    "values 2. CFG scale = 1 + guidance w.",
                ),
                *_schedule(),
                *operator_inputs(),
            ],
            outputs=[_latent_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        cfg,
        inversion_cfg,
        scheduler,
        denoise,
        reflect_steps,
        rounds,
        inversion,
    ) -> io.NodeOutput:
        """Sample, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            guider = ReflectionGuider(model, scales=Scales(cfg, inversion_cfg, cfg))
            guider.set_conds(positive, negative)
            sampler = ReflectionSampler(reflect_steps=reflect_steps, rounds=rounds, inversion=inversion)
            sigmas = schedule(model, scheduler, steps, denoise)
            return io.NodeOutput(run_reflection(guider, sampler, sigmas, latent_image, seed)[0])
