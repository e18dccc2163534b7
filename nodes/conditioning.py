"""Node that applies guidance fusion to a model with its prompt."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.guidance.patch import apply_fusion
from ..teefusion_core.errors import reported_by
from ..teefusion_core.guidance.fusion import EXACT, OFFICIAL_BF16
from ._schema import CATEGORY, inp, schema

AUTO = "auto"
DISPLAY_NAME = "TeEFusion Conditioning"


class TeEFusionConditioning(io.ComfyNode):
    """Fuse the guidance of a distilled student into its conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="TeEFusionConditioning",
            display_name=DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Runs a TeEFusion student: guidance is part of the text embedding, so a step costs one "
                "forward pass instead of two. Connect both outputs to the sampler and set its cfg to 1."
            ),
            search_aliases=["guidance distillation", "cfg distillation", "one pass cfg", "text embedding fusion"],
            inputs=[
                inp(
                    io.Model.Input,
                    "model",
                    tooltip=(
                        "A TeEFusion student of the SD3, SD3.5, Flux, SDXL or HunyuanVideo family. Your model is left "
                        "untouched."
                    ),
                ),
                inp(
                    io.Conditioning.Input,
                    "positive",
                    tooltip="The encoded prompt, with its pooled vector, as CLIPTextEncode makes it.",
                ),
                inp(
                    io.Conditioning.Input,
                    "null",
                    tooltip=(
                        "What the picture is guided away from: the encoded empty prompt (not zeroed out). "
                        "A negative prompt may be wired here."
                    ),
                ),
                inp(
                    io.Float.Input,
                    "guidance",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip=(
                        "Guidance w of the paper: 5 looks like an ordinary CFG scale of 1 + w = 6. A "
                        "student file tells what it was trained for (the demo: 0.5 to 5), a value outside is refused. "
                        "Costs 1 pass per step at any value; the sampler's own cfg must be 1."
                    ),
                ),
                inp(
                    io.Combo.Input,
                    "guidance_precision",
                    options=[AUTO, OFFICIAL_BF16, EXACT],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How w is rounded before it is embedded. auto: as the student file says, else official "
                        "bf16. official bf16: as the published SD3 student was run. exact: no rounding."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "fused_model", display_name="MODEL", tooltip="The model that reads fused conditioning."
                ),
                io.Conditioning.Output(
                    "fused", display_name="CONDITIONING", tooltip="The prompt with guidance; use it with this MODEL."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, positive, null, guidance, guidance_precision=AUTO) -> io.NodeOutput:
        """Fuse, with errors that carry the node's name."""
        with reported_by(DISPLAY_NAME):
            precision = None if guidance_precision == AUTO else guidance_precision
            return io.NodeOutput(*apply_fusion(model, positive, null, guidance, guidance_precision=precision))
