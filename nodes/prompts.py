"""Nodes that change the embedding of a prompt."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.prompts.conditioning import blend_prompts, load_sharpener, sharpen
from ..teefusion_core.comfy_host.trained_files import file_stamp, sharpener_file, sharpener_files
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
                "Adds guidance to an encoded prompt with a trained sharpener file, so that an unchanged "
                "model needs 1 forward pass per step instead of 2. Set the sampler's cfg to 1. Distill "
                "Trainer makes such files."
            ),
            search_aliases=["teefusion", "dice", "sharpener", "guidance in the prompt", "cfg in one pass", "distilled"],
            inputs=[
                inp(
                    io.Conditioning.Input, "conditioning",
                    tooltip="The encoded prompt. It must come from the text encoders that the sharpener was trained "
                    "for.",
                ),
                inp(
                    io.Combo.Input, "sharpener", options=sharpener_files(),
                    tooltip="A sharpener file. demo_sd15_sharpener is included, for variant sd15 of Load Demo Model; "
                    "Distill Trainer makes others with method dice. Files in output/loras and models/loras are "
                    "listed; those of any other kind are refused.",
                ),
                inp(
                    io.Float.Input, "alpha", default=1.0, min=0.0, max=10.0, step=0.01,
                    tooltip="Strength of the sharpener. 1: as trained. 0: it adds nothing. Values outside the range "
                    "stored in the file are refused.",
                ),
                inp(
                    io.Float.Input, "beta", default=0.0, min=0.0, max=10.0, step=0.01,
                    tooltip="How much of the difference between negative and null is subtracted from the prompt. 0: "
                    "nothing, as the authors use it. Above 0, null must be connected; without negative it has no "
                    "effect.",
                ),
                inp(
                    io.Conditioning.Input, "null", display_name="empty prompt", optional=True,
                    tooltip="The encoded empty prompt: connect an empty CLIP Text Encode and do not zero it out. It "
                    "is required if negative is not connected or beta is above 0.",
                ),
                inp(
                    io.Conditioning.Input, "negative", optional=True,
                    tooltip="An encoded negative prompt, used by the sharpener instead of null. Connect it here, "
                    "not to the sampler.",
                ),
                inp(
                    io.Model.Input, "model", optional=True,
                    tooltip="The model that you will sample, to check that the sharpener belongs to it. It is not "
                    "changed. If not connected, nothing is checked.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "sharpened", display_name="CONDITIONING",
                    tooltip="The sharpened prompt. Connect it as the positive prompt and sample with cfg 1.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, sharpener, **_) -> str:
        """Load anew what a training has written under the same name."""
        return file_stamp(sharpener)

    @classmethod
    def execute(cls, conditioning, sharpener, alpha, beta, null=None, negative=None, model=None) -> io.NodeOutput:
        """Sharpen, with errors that carry the node's name."""
        with reported_by(SHARPEN):
            network = load_sharpener(sharpener_file(sharpener), [alpha], model)
            prompts = {"null": null, "negative": negative}
            return io.NodeOutput(sharpen(conditioning, network, alpha=alpha, beta=beta, **prompts))


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
                "Adds one encoded prompt to another and subtracts a third, in both the token embeddings and "
                "the pooled vector. The report shows how similar the result is to one prompt that describes "
                "the whole."
            ),
            search_aliases=[
                "teefusion",
                "prompt arithmetic",
                "conditioning subtract",
                "conditioning add",
                "embedding cosine",
            ],
            inputs=[
                inp(
                    io.Conditioning.Input, "base",
                    tooltip="The encoded prompt to start from. Its area, mask and timing are kept.",
                ),
                _weight(
                    "add_weight",
                    "How much of add is added, from -10 to 10. 1: all of it. 0: nothing. A negative value subtracts "
                    "it.",
                ),
                _weight(
                    "subtract_weight",
                    "How much of subtract is subtracted, from -10 to 10. 1: all of it. 0: nothing. A negative value "
                    "adds it.",
                ),
                inp(
                    io.Conditioning.Input, "add", optional=True,
                    tooltip="An encoded prompt whose content is added to base.",
                ),
                inp(
                    io.Conditioning.Input, "subtract", optional=True,
                    tooltip="An encoded prompt whose content is removed from base. When you only add a prompt, connect "
                    "the empty prompt here; when you only subtract one, connect the empty prompt to add.",
                ),
                inp(
                    io.Conditioning.Input, "reference", optional=True,
                    tooltip="An encoded prompt of the whole result, for comparison. Only the report uses it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "blend", display_name="CONDITIONING",
                    tooltip="The blended prompt. Connect it to a sampler as the positive prompt.",
                ),
                io.String.Output(
                    "report", display_name="report",
                    tooltip="Cosine similarity of the blend to base and to reference, and of base to reference. 1: "
                    "the same direction. 0: nothing in common.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, base, add_weight, subtract_weight, add=None, subtract=None, reference=None) -> io.NodeOutput:
        """Blend, with errors that carry the node's name."""
        with reported_by(BLEND):
            terms = {"add": (add_weight, add), "subtract": (-subtract_weight, subtract)}
            return io.NodeOutput(*blend_prompts(base, terms, reference))
