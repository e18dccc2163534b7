"""Node that loads the embedded demo model."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host import load_tiny, tiny_variants
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema

DISPLAY_NAME = "Load Tiny SD3 (demo)"


class TinySD3Loader(io.ComfyNode):
    """Load the demo SD3 that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="TinySD3Loader",
            display_name=DISPLAY_NAME,
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
                    options=tiny_variants(),
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
        with reported_by(DISPLAY_NAME):
            return io.NodeOutput(*load_tiny(variant))
