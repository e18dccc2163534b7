"""Node that applies guidance fusion to a model with its prompt."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.guidance.patch import apply_fusion
from ..teefusion_core.comfy_host.notes import begin
from ..teefusion_core.errors import reported_by
from ..teefusion_core.guidance.fusion import EXACT, OFFICIAL_BF16
from ._schema import CATEGORY, inp, schema
from .guidance_schedule import SCHEDULE

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
                "Adds guidance to the prompt of a TeEFusion student, so that each step costs 1 forward pass "
                "instead of the 2 of CFG. Connect both outputs to the sampler and set its cfg to 1."
            ),
            search_aliases=[
                "guidance", "cfg in one pass", "fast", "faster", "speed", "half the passes", "negative prompt",
                "distilled", "student guidance", "text embedding fusion",
            ],
            inputs=[
                inp(
                    io.Model.Input, "model",
                    tooltip="A TeEFusion student, for example from Load TeEFusion Student or Load Demo Model. "
                    "Guidance means nothing to an ordinary model. Your model is not changed.",
                ),
                inp(
                    io.Conditioning.Input, "positive",
                    tooltip="The encoded prompt, for example from CLIP Text Encode. It must contain the pooled "
                    "vector of the model's CLIP encoders, except for a guidance lora.",
                ),
                inp(
                    io.Conditioning.Input, "null", display_name="empty or negative prompt",
                    tooltip="The encoded empty prompt: connect an empty CLIP Text Encode and do not zero it out. A "
                    "negative prompt also works here if the student was trained with negative prompts. A guidance "
                    "lora does not use this input.",
                ),
                inp(
                    io.Float.Input, "guidance", default=5.0, min=0.0, max=100.0, step=0.01,
                    tooltip="How strongly the image follows the prompt: guidance w of the paper. For students of CFG "
                    "the equivalent CFG scale is 1 + w, so 5 is like cfg 6; with another teacher, measure it. "
                    "Values outside the range that the student was trained for (demo: 0.6 to 3.87) are refused. A "
                    "calibrated student gives what its teacher gives at this value. Every value costs 1 pass per step; "
                    "keep the sampler's cfg at 1.",
                ),
                inp(
                    io.Combo.Input, "guidance_precision", options=[AUTO, OFFICIAL_BF16, EXACT], default=AUTO,
                    optional=True, advanced=True,
                    tooltip="How w is rounded before it is embedded; auto suits almost every case. auto: as stored "
                    "in the student file, otherwise official bf16. official bf16: as the authors ran the published "
                    "SD3 student. exact: no rounding.",
                ),
                inp(
                    io.Custom(SCHEDULE).Input, "schedule", optional=True,
                    tooltip="A Guidance Schedule, to change guidance over the steps. It adds no passes. If not "
                    "connected, guidance is the same in all steps. A guidance lora cannot use one.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "fused_model", display_name="MODEL",
                    tooltip="The student, ready for guidance. Use it together with CONDITIONING; either one alone "
                    "gives an unguided image.",
                ),
                io.Conditioning.Output(
                    "fused", display_name="CONDITIONING",
                    tooltip="The prompt with guidance. Use it as the positive prompt, together with MODEL.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, null, guidance, guidance_precision=AUTO, schedule=None) -> io.NodeOutput:
        """Fuse, with errors that carry the node's name."""
        with reported_by(DISPLAY_NAME):
            begin()
            precision = None if guidance_precision == AUTO else guidance_precision
            over_time = {"guidance_precision": precision, "schedule": schedule}
            return io.NodeOutput(*apply_fusion(model, positive, null, guidance, **over_time))
