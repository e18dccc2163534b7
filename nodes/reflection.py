"""The parts of a reflection sampler as nodes of their own."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.reflection.guider import CFG, CHATS, ReflectionGuider, Scales
from ..teefusion_core.comfy_host.reflection.sampler import ReflectionSampler
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema
from .guidance_schedule import SCHEDULE
from .sampling import ALIASES, operator_inputs, prompt_inputs, scale_inputs, weak_prompt_inputs


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
                "Sets the models, prompts and CFG scales of the strong, weak and final phase of W2SD, "
                "Z-Sampling or CHATS. Use it with Reflection Sampler in SamplerCustomAdvanced. A phase costs "
                "1 forward pass at cfg 1 or 0, otherwise 2; with CHATS, a strong or final phase at cfg 0 "
                "costs 2."
            ),
            search_aliases=[*ALIASES, "chats"],
            inputs=[
                inp(io.Model.Input, "strong_model", tooltip="The better model. It is not changed."),
                *prompt_inputs(),
                *scale_inputs(),
                inp(
                    io.Combo.Input, "rule", options=[CFG, CHATS], default=CFG,
                    tooltip="What the strong and the final phase are guided away from. CFG: the prediction with the "
                    "negative prompt. CHATS: the weak model's prediction with a mix of both prompts; connect the "
                    "win model as strong_model and the lose model as weak_model.",
                ),
                inp(
                    io.Float.Input, "chats_alpha", default=0.5, min=-1.0, max=10.0, step=0.05,
                    tooltip="With CHATS, the weak model gets -alpha x prompt + (1 + alpha) x negative prompt. 0: "
                    "the negative prompt only. -1: the prompt only. The rule CFG ignores it.",
                ),
                inp(
                    io.Model.Input, "weak_model", optional=True,
                    tooltip="A worse model of the same family. If not connected, the strong model is used. A model "
                    "from another file takes additional memory.",
                ),
                *weak_prompt_inputs(),
                inp(
                    io.Custom(SCHEDULE).Input, "schedule", optional=True,
                    tooltip="A Guidance Schedule, to change final_cfg over the steps, and strong_cfg too if you set "
                    "both to the same value. Steps at low_guidance do not reflect, so they cost fewer passes.",
                ),
            ],
            outputs=[
                io.Guider.Output(
                    "guider", display_name="GUIDER",
                    tooltip="The guider, for SamplerCustomAdvanced with Reflection Sampler.",
                )
            ],
        )  # fmt: skip

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
        schedule=None,
    ) -> io.NodeOutput:
        """Build the guider, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            scales = Scales(strong_cfg, weak_cfg, final_cfg)
            rule_and_time = {"rule": rule, "alpha": chats_alpha, "schedule": schedule}
            guider = ReflectionGuider(strong_model, weak_model, scales=scales, **rule_and_time)
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
                "Runs the strong, weak and final phase of Reflection Guider: each step denoises, goes back "
                "to the previous noise level and denoises again. Use both nodes in SamplerCustomAdvanced."
            ),
            search_aliases=ALIASES,
            inputs=operator_inputs(),
            outputs=[
                io.Sampler.Output(
                    "sampler", display_name="SAMPLER",
                    tooltip="The sampler, for SamplerCustomAdvanced with Reflection Guider.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, reflect_steps, rounds, inversion) -> io.NodeOutput:
        """Build the sampler, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            return io.NodeOutput(ReflectionSampler(reflect_steps=reflect_steps, rounds=rounds, inversion=inversion))
