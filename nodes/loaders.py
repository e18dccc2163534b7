"""Nodes that load what this pack trains."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.demo_model import load_demo
from ..teefusion_core.comfy_host.demo_model import variants as demo_variants
from ..teefusion_core.comfy_host.guidance.student_loader import file_stamp, load_student, student_file, student_files
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema

DEMO, STUDENT = "Load Demo SD3", "Load TeEFusion Student"


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
                "Puts a student that this pack's trainer made on the model it was trained from. Then use TeEFusion "
                "Conditioning: 1 pass per step at any guidance of the student's range."
            ),
            search_aliases=["guidance distillation student", "distilled lora", "load student"],
            inputs=[
                inp(
                    io.Model.Input,
                    "model",
                    optional=True,
                    tooltip=(
                        "The base that the student was trained from, without merges; another one is refused. A student "
                        "from a diffusion_models folder has all weights and needs none."
                    ),
                ),
                inp(
                    io.Combo.Input,
                    "student",
                    options=student_files(),
                    tooltip=(
                        "A student file in one of the loras or diffusion_models folders. It says which guidance it was "
                        "trained for; ordinary LoRA files belong in a LoRA loader."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "student_model", display_name="MODEL", tooltip="The student; your base stays as it was."
                ),
            ],
        )

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
    """Load the demo SD3 that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="TinySD3Loader",
            display_name=DEMO,
            category=CATEGORY,
            description=(
                "A small but genuine SD3 that comes with the pack: 64x64 pictures of coloured shapes, seconds each. "
                "Prompts are English: a red circle left of a small blue square on a white background."
            ),
            search_aliases=["teefusion demo", "tiny model", "guidance distillation demo"],
            inputs=[
                inp(
                    io.Combo.Input,
                    "variant",
                    options=demo_variants(),
                    default="base",
                    tooltip=(
                        "base: the trained model, for CFG at 2 passes per step. weak: an earlier checkpoint of its "
                        "training. student: the base with a distilled TeEFusion update, for 1 pass per step."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="SD3 at demo size, 9 million parameters."),
                io.Clip.Output("clip", display_name="CLIP", tooltip="Its text encoder; 69 English words."),
                io.Vae.Output("vae", display_name="VAE", tooltip="Its picture codec: 16 latent channels."),
            ],
        )

    @classmethod
    def execute(cls, variant) -> io.NodeOutput:
        """Load, with errors that carry the node's name."""
        with reported_by(DEMO):
            return io.NodeOutput(*load_demo(variant))
