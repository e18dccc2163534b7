"""Nodes that load what this pack trains."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.demo_model import load_demo
from ..teefusion_core.comfy_host.demo_model import variants as demo_variants
from ..teefusion_core.comfy_host.guidance.student_loader import load_student
from ..teefusion_core.comfy_host.trained_files import file_stamp, student_file, student_files
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema

DEMO, STUDENT = "Load Demo Model", "Load TeEFusion Student"


class TeEFusionStudentLoader(io.ComfyNode):
    """Put a student file on the base that it was trained from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="TeEFusionStudentLoader",
            display_name=STUDENT,
            category=CATEGORY,
            description=(
                "Applies a student file to the base model that it was trained from. Connect the result to "
                "TeEFusion Conditioning; sampling then costs 1 forward pass per step."
            ),
            search_aliases=["distilled student", "guidance lora", "one pass", "fast model"],
            inputs=[
                inp(
                    io.Model.Input, "model", optional=True,
                    tooltip="The base model that the student was trained from. Any other model is refused, also a file "
                    "of merged weights. LoRA and merge nodes may come before this one. A whole model from a "
                    "diffusion_models folder needs no base.",
                ),
                inp(
                    io.Combo.Input, "student", options=student_files(),
                    tooltip="A student file made by Distill Trainer. Files in output are listed without copying; press "
                    "R to refresh the list. Ordinary LoRA files, also those of Save LoRA Weights, are refused. A "
                    "guidance lora of ours also works in a LoRA loader, where you set its strength yourself.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "student_model", display_name="MODEL",
                    tooltip="The student, for TeEFusion Conditioning. Without that node it runs without guidance. "
                    "Your base model is not changed.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, student, model=None) -> str:
        """Load anew what a training has written under the same name."""
        return file_stamp(student)

    @classmethod
    def execute(cls, student, model=None) -> io.NodeOutput:
        """Load, with errors that carry the node's name."""
        with reported_by(STUDENT):
            return io.NodeOutput(load_student(model, student_file(student)))


class TinySD3Loader(io.ComfyNode):
    """Load a demo model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="TinySD3Loader",
            display_name=DEMO,
            category=CATEGORY,
            description=(
                "Loads one of the small models that are included in the pack: an SD3, its students, or an SD1.5. They "
                "draw colored shapes at 64x64 pixels, in seconds on a CPU, from English prompts such as: a red circle "
                "left of a small blue square on a white background."
            ),
            search_aliases=["teefusion demo", "tiny model", "demo student", "demo teacher", "demo sd3", "demo sd15"],
            inputs=[
                inp(
                    io.Combo.Input, "variant", options=demo_variants(), default="base",
                    tooltip="base: the trained model, for CFG at 2 passes per step. weak: an earlier checkpoint "
                    "that draws worse, as the weak model of W2SD. sd15: a model like SD1.5, without pooled text, "
                    "for CFG, Z-Sampling and DICE Sharpen. sd15_student_guidance_lora: the same as a student whose "
                    "guidance is the strength of its LoRA. student: the base with a TeEFusion update, for "
                    "TeEFusion Conditioning at 1 pass per step. student_8_steps: for 8 steps with the scheduler "
                    "sgm_uniform. student_guidance_lora: guidance is the strength of its LoRA. "
                    "student_negatives: takes negative prompts, for prompts without a background.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL",
                    tooltip="The chosen model: an SD3 with 9 million parameters, or an SD1.5 with 6 million.",
                ),
                io.Clip.Output(
                    "clip", display_name="CLIP",
                    tooltip="The text encoder of all demo models. It knows 69 English words.",
                ),
                io.Vae.Output(
                    "vae", display_name="VAE", tooltip="The VAE of all demo models, with 16 latent channels.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, variant) -> io.NodeOutput:
        """Load, with errors that carry the node's name."""
        with reported_by(DEMO):
            return io.NodeOutput(*load_demo(variant))
