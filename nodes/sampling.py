"""Nodes that sample with a reflection teacher."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.reflection.guider import CFG, CHATS, ReflectionGuider, Scales
from ..teefusion_core.comfy_host.reflection.sampler import ALL_STEPS, INVERSIONS, ReflectionSampler
from ..teefusion_core.comfy_host.sampling import run_reflection, schedule, schedulers
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema

ALIASES = ["teefusion", "reflection", "zigzag", "weak to strong", "w2sd", "teacher sampler", "guidance"]
INVERSION_TOOLTIP = (
    "How the weak step goes back up. exact: the network is told the noise level that the picture has. upper: it is "
    "told the level above, as in the paper. official: as in the authors' code, for comparison only."
)
REFLECT_TOOLTIP = (
    "How many steps, counted from the start, reflect. -1: every step. 0: none, plain Euler. A step that ends at noise "
    "level 0, usually the last, never reflects. A step without reflection costs only its final prediction."
)


def _cfg(id: str, default: float, tooltip: str, **keywords):
    return inp(io.Float.Input, id, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip, **keywords)


def _prompt(id: str, tooltip: str, **keywords):
    return inp(io.Conditioning.Input, id, tooltip=tooltip, **keywords)


def _operator() -> list:
    """Inputs of the reflection itself."""
    return [
        inp(io.Int.Input, "reflect_steps", default=ALL_STEPS, min=ALL_STEPS, max=10000, tooltip=REFLECT_TOOLTIP),
        inp(
            io.Int.Input,
            "rounds",
            default=1,
            min=1,
            max=16,
            tooltip="Reflections per step. Each adds one strong and one weak prediction to the step.",
        ),
        inp(io.Combo.Input, "inversion", options=list(INVERSIONS), default="exact", tooltip=INVERSION_TOOLTIP),
    ]


def _start() -> list:
    """Inputs that a KSampler has too."""
    return [
        inp(io.Latent.Input, "latent_image", tooltip="What to start from; empty for a picture from the prompt alone."),
        inp(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the noise; nothing else is random.",
        ),
        inp(io.Int.Input, "steps", default=20, min=1, max=10000, tooltip="Steps of the schedule."),
    ]


def _schedule() -> list:
    return [
        inp(
            io.Combo.Input, "scheduler", options=schedulers(), default="normal", tooltip="How noise levels are spaced."
        ),
        inp(
            io.Float.Input,
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the noise that is added and taken away; below 1 keeps something of latent_image.",
        ),
    ]


def _latent_output():
    return io.Latent.Output("latent", display_name="LATENT", tooltip="The result; what it cost is shown in the node.")


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
                "Weak-to-strong sampling: every step goes down with the strong model, back up with the weak one, down "
                "again. 5 forward passes per step at the defaults (CFG: 2); phases at cfg 1 or 0 cost one pass each."
            ),
            search_aliases=ALIASES,
            inputs=[
                inp(io.Model.Input, "strong_model", tooltip="The better model, e.g. with a LoRA at full strength."),
                _prompt("positive", "What should be in the picture."),
                _prompt("negative", "What the guidance leads away from; the encoded empty prompt will do."),
                *_start(),
                _cfg("strong_cfg", 5.5, "CFG scale of the first strong step. 1 or 0 costs one pass, else two."),
                _cfg(
                    "weak_cfg",
                    1.0,
                    "CFG scale of the weak step back up. 1 (prompt only) or 0 (negative only): 1 pass.",
                ),
                _cfg(
                    "final_cfg",
                    5.5,
                    "CFG scale of the last strong step, the one that moves on. 1 or 0 costs one pass, else two.",
                ),
                *_schedule(),
                *_operator(),
                inp(
                    io.Model.Input,
                    "weak_model",
                    optional=True,
                    tooltip=(
                        "A worse model of the same family: an earlier checkpoint, the same file without the LoRA or "
                        "with it at negative strength, or with layers skipped. Not connected: the strong model, so "
                        "that only CFG scales or prompts differ."
                    ),
                ),
                _prompt("weak_positive", "Prompt of the weak step; not connected: the same.", optional=True),
                _prompt("weak_negative", "Negative prompt of the weak step; not connected: the same.", optional=True),
            ],
            outputs=[_latent_output()],
        )

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
                "Zigzag sampling: every step goes down with high guidance, back up with low, down again with high. "
                "5 forward passes per step at the defaults (CFG: 2), with any model that ComfyUI samples."
            ),
            search_aliases=ALIASES,
            inputs=[
                inp(io.Model.Input, "model", tooltip="Any diffusion model. It is left untouched."),
                _prompt("positive", "What should be in the picture."),
                _prompt("negative", "What the guidance leads away from; the encoded empty prompt will do."),
                *_start(),
                _cfg(
                    "cfg",
                    5.5,
                    "CFG scale of both steps down. At first order the result is guided at 2 cfg - inversion_cfg.",
                ),
                _cfg(
                    "inversion_cfg",
                    0.0,
                    "CFG scale of the step back up. 0 (negative only) or 1 (prompt only): 1 pass.",
                ),
                *_schedule(),
                *_operator(),
            ],
            outputs=[_latent_output()],
        )

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


class ReflectionGuiderNode(io.ComfyNode):
    """Strong, weak and final setting as a GUIDER."""

    DISPLAY_NAME = "Reflection Guider"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="ReflectionGuider",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "The three settings of W2SD or Z-Sampling for SamplerCustomAdvanced, together with Reflection Sampler. "
                "A setting at cfg 1 or 0 costs one forward pass, else two (with CHATS two passes at 0)."
            ),
            search_aliases=[*ALIASES, "chats"],
            inputs=[
                inp(io.Model.Input, "strong_model", tooltip="The better model."),
                _prompt("positive", "What should be in the picture."),
                _prompt("negative", "What the guidance leads away from; the encoded empty prompt will do."),
                _cfg("strong_cfg", 5.5, "CFG scale of the first strong step. 1 or 0 costs one pass, else two."),
                _cfg(
                    "weak_cfg",
                    1.0,
                    "CFG scale of the weak step back up. 1 (prompt only) or 0 (negative only): 1 pass.",
                ),
                _cfg(
                    "final_cfg",
                    5.5,
                    "CFG scale of the last strong step, the one that moves on. 1 or 0 costs one pass, else two.",
                ),
                inp(
                    io.Combo.Input,
                    "rule",
                    options=[CFG, CHATS],
                    default=CFG,
                    tooltip=(
                        "CFG: strong steps are guided away from the negative prompt. CHATS: away from what the weak "
                        "model makes of a mix of both prompts; connect the win model as strong, the lose model as weak."
                    ),
                ),
                inp(
                    io.Float.Input,
                    "chats_alpha",
                    default=0.5,
                    min=-1.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Of CHATS alone: the weak model gets -alpha prompt + (1 + alpha) negative prompt.",
                ),
                inp(
                    io.Model.Input,
                    "weak_model",
                    optional=True,
                    tooltip="A worse model of the same family; not connected: the strong one.",
                ),
                _prompt("weak_positive", "Prompt of the weak step; not connected: the same.", optional=True),
                _prompt("weak_negative", "Negative prompt of the weak step; not connected: the same.", optional=True),
            ],
            outputs=[io.Guider.Output("guider", display_name="GUIDER", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        strong_model,
        positive,
        negative,
        strong_cfg,
        weak_cfg,
        final_cfg,
        rule,
        chats_alpha,
        weak_model=None,
        weak_positive=None,
        weak_negative=None,
    ) -> io.NodeOutput:
        """Build the guider, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            scales = Scales(strong_cfg, weak_cfg, final_cfg)
            guider = ReflectionGuider(strong_model, weak_model, scales=scales, rule=rule, alpha=chats_alpha)
            guider.set_conds(positive, negative, weak_positive, weak_negative)
            return io.NodeOutput(guider)


class ReflectionSamplerNode(io.ComfyNode):
    """The reflection operator as a SAMPLER."""

    DISPLAY_NAME = "Reflection Sampler"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="ReflectionSampler",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Strong step down, weak step back up, final step down, in every step of the schedule. For "
                "SamplerCustomAdvanced, together with Reflection Guider."
            ),
            search_aliases=ALIASES,
            inputs=_operator(),
            outputs=[io.Sampler.Output("sampler", display_name="SAMPLER", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, reflect_steps, rounds, inversion) -> io.NodeOutput:
        """Build the sampler, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            return io.NodeOutput(ReflectionSampler(reflect_steps=reflect_steps, rounds=rounds, inversion=inversion))
