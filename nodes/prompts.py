"""Nodes that change the embedding of a prompt."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.guidance.student_loader import file_stamp, student_file, update_files
from ..teefusion_core.comfy_host.prompts.conditioning import blend_prompts, sharpen
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema

SHARPEN, BLEND = "DICE Sharpen", "Text Embedding Blend"


class DICESharpen(io.ComfyNode):
    """Write guidance into the tokens of a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DICESharpen",
            display_name=SHARPEN,
            category=CATEGORY,
            description=(
                "Sharpens a prompt with a trained DICE sharpener, so that an unchanged model needs one forward pass "
                "per step instead of two. Set the sampler's cfg to 1."
            ),
            search_aliases=["teefusion", "dice", "sharpener", "cfg free", "guidance distillation", "one pass cfg"],
            inputs=[
                inp(
                    io.Conditioning.Input,
                    "conditioning",
                    tooltip="The encoded prompt, of the width that the sharpener was trained for.",
                ),
                inp(
                    io.Combo.Input,
                    "sharpener",
                    options=update_files(),
                    tooltip="A sharpener file in one of the loras folders; other files are refused.",
                ),
                inp(
                    io.Float.Input,
                    "alpha",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "Strength of the sharpening. 1: as trained. 0: the prompt as it was, apart from beta. A value "
                        "outside the range in the file is refused."
                    ),
                ),
                inp(
                    io.Float.Input,
                    "beta",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "How much of negative minus null is taken from the prompt. 0: none. It needs both; without "
                        "negative it has no effect."
                    ),
                ),
                inp(
                    io.Conditioning.Input,
                    "null",
                    optional=True,
                    tooltip="The encoded empty prompt (not zeroed out). Needed unless negative is connected.",
                ),
                inp(
                    io.Conditioning.Input,
                    "negative",
                    optional=True,
                    tooltip="A negative prompt, which the sharpener pushes away from in place of null.",
                ),
                inp(
                    io.Model.Input,
                    "model",
                    optional=True,
                    tooltip="The model that will be sampled. Connected: a sharpener of another base is refused.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "sharpened", display_name="CONDITIONING", tooltip="The sharpened prompt; sample it at cfg 1."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, sharpener, **_) -> str:
        """Load anew what a training has written under the same name."""
        return file_stamp(sharpener)

    @classmethod
    def execute(cls, conditioning, sharpener, alpha, beta, null=None, negative=None, model=None) -> io.NodeOutput:
        """Sharpen, with errors that carry the node's name."""
        with reported_by(SHARPEN):
            path = student_file(sharpener)
            prompts = {"null": null, "negative": negative}
            return io.NodeOutput(sharpen(conditioning, path, alpha=alpha, beta=beta, model=model, **prompts))


def _weight(id: str, tooltip: str):
    return inp(io.Float.Input, id, default=1.0, min=-10.0, max=10.0, step=0.01, tooltip=tooltip)


class TextEmbeddingBlend(io.ComfyNode):
    """Add or take away prompts as vectors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="TextEmbeddingBlend",
            display_name=BLEND,
            category=CATEGORY,
            description=(
                "Arithmetic of prompts: base plus one prompt minus another, on tokens as well as on the pooled vector. "
                "The report tells how near the blend is to a prompt that says it all."
            ),
            search_aliases=[
                "teefusion",
                "prompt arithmetic",
                "conditioning subtract",
                "conditioning add",
                "embedding cosine",
            ],
            inputs=[
                inp(io.Conditioning.Input, "base", tooltip="The prompt to start from. It keeps its area, mask, times."),
                _weight("add_weight", "How much of add is added. 0: none of it."),
                _weight("subtract_weight", "How much of subtract is taken away. 0: none of it."),
                inp(io.Conditioning.Input, "add", optional=True, tooltip="A prompt whose content is added."),
                inp(
                    io.Conditioning.Input,
                    "subtract",
                    optional=True,
                    tooltip="A prompt whose content is taken away.",
                ),
                inp(
                    io.Conditioning.Input,
                    "reference",
                    optional=True,
                    tooltip="A prompt that says it all in words, for the report alone.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("blend", display_name="CONDITIONING", tooltip="The blended prompt."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Cosines of the blend to base, to reference; of base to reference. 1: the same direction.",
                ),
            ],
        )

    @classmethod
    def execute(cls, base, add_weight, subtract_weight, add=None, subtract=None, reference=None) -> io.NodeOutput:
        """Blend, with errors that carry the node's name."""
        with reported_by(BLEND):
            terms = {"add": (add_weight, add), "subtract": (-subtract_weight, subtract)}
            return io.NodeOutput(*blend_prompts(base, terms, reference))
