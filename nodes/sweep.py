"""Nodes that show one prompt and one seed at several strengths of guidance."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.evaluation.images import as_images, as_pictures
from ..teefusion_core.comfy_host.guidance.sweep import sweep_sharpener, sweep_student
from ..teefusion_core.comfy_host.guidance.wiring import NO_SHARPENER
from ..teefusion_core.comfy_host.notes import begin, tell
from ..teefusion_core.comfy_host.trained_files import file_stamp, sharpener_file, sharpener_files
from ..teefusion_core.errors import InvalidConfig, reported_by
from ..teefusion_core.evaluation.image_metrics import clipping
from ..teefusion_core.evaluation.sweep_grid import sweep_grid
from ..teefusion_core.guidance.sweep import LINEAR, MOST, SPACINGS, best_of, scores_by_metric, strengths, verdict
from ._schema import CATEGORY, inp, schema

SWEEP = "GUIDANCE_SWEEP"
ALIASES = ["guidance sweep", "xy plot", "compare guidance", "find the best cfg", "auto guidance", "cfg sweep"]


class GuidanceSweep(io.ComfyNode):
    """Several strengths of guidance as one batch."""

    DISPLAY_NAME = "Guidance Sweep"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="GuidanceSweep",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Prepares one prompt at several guidances, with the same noise. A TeEFusion student samples them all "
                "in one batch. Connect the outputs to a sampler at cfg 1, then sweep and the decoded images to Sweep "
                "Grid."
            ),
            search_aliases=ALIASES,
            inputs=[
                inp(
                    io.Model.Input, "model",
                    tooltip="A TeEFusion student, which samples all images in one batch. A guidance lora needs one run "
                    "per guidance. With a sharpener, connect the base model. The model is not changed.",
                ),
                inp(
                    io.Conditioning.Input, "positive",
                    tooltip="The encoded prompt: what the images should show. With a sharpener, a single prompt.",
                ),
                inp(
                    io.Conditioning.Input, "null", display_name="empty or negative prompt",
                    tooltip="The encoded empty prompt: connect an empty CLIP Text Encode and do not zero it out. A "
                    "negative prompt also works here if the student was trained with negative prompts. A guidance "
                    "lora does not use this input.",
                ),
                inp(
                    io.Latent.Input, "latent_image",
                    tooltip="The latent to start from. Its first image is repeated for every guidance.",
                ),
                inp(
                    io.Float.Input, "lowest", default=1.0, min=0.0, max=100.0, step=0.01,
                    tooltip="The smallest guidance w. For students of CFG the equivalent CFG scale is 1 + w. With a "
                    "sharpener, the smallest alpha.",
                ),
                inp(
                    io.Float.Input, "highest", default=3.0, min=0.0, max=100.0, step=0.01,
                    tooltip="The largest guidance w. Values outside the student's range (demo: 0.6 to 3.87) are "
                    "refused. With a sharpener, the largest alpha.",
                ),
                inp(
                    io.Int.Input, "count", default=8, min=2, max=MOST,
                    tooltip="Number of images, 2 to 64. A student samples them in one batch, so more images need more "
                    "memory. A guidance lora needs more time instead.",
                ),
                inp(
                    io.Combo.Input, "spacing", options=list(SPACINGS), default=LINEAR,
                    tooltip="linear: equal distances. geometric: equal ratios, with more images at low values; lowest "
                    "must be above 0.",
                ),
                inp(
                    io.Combo.Input, "sharpener", options=[NO_SHARPENER, *sharpener_files()], default=NO_SHARPENER,
                    optional=True, advanced=True,
                    tooltip="A sharpener file for DICE Sharpen: the sweep then changes its alpha instead of guidance. "
                    "none: the sweep changes guidance.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "fused_model", display_name="MODEL", is_output_list=True,
                    tooltip="The student, for a sampler at cfg 1. Use it together with CONDITIONING.",
                ),
                io.Conditioning.Output(
                    "fused", display_name="CONDITIONING", is_output_list=True,
                    tooltip="The prompt with one guidance per image. Use it as the positive prompt, together with "
                    "MODEL.",
                ),
                io.Latent.Output(
                    "latent", display_name="LATENT", is_output_list=True,
                    tooltip="The start latent, once per guidance, all with the same noise.",
                ),
                io.Custom(SWEEP).Output(
                    "sweep", display_name="sweep", tooltip="The guidances, for Sweep Grid.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, sharpener=NO_SHARPENER, **_) -> str:
        """Change when a training has replaced the file of that name, so that the sweep is not taken from the cache."""
        return file_stamp(sharpener)

    @classmethod
    def execute(
        cls, model, positive, null, latent_image, lowest, highest, count, spacing, sharpener=NO_SHARPENER
    ) -> io.NodeOutput:
        """Fuse, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            begin()
            values, prompts = strengths(lowest, highest, count, spacing), (model, positive, null, latent_image)
            if sharpener == NO_SHARPENER:
                runs = sweep_student(*prompts, values)
            else:
                runs = sweep_sharpener(*prompts, values, sharpener_file(sharpener))
            return io.NodeOutput(*runs)


class SweepGrid(io.ComfyNode):
    """The images of a sweep with their strengths, and the best one by a score."""

    DISPLAY_NAME = "Sweep Grid"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="SweepGrid",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Puts the images of a Guidance Sweep into one grid, with the guidance below each. With scores from "
                "Score Images it also names the best guidance."
            ),
            search_aliases=ALIASES,
            is_input_list=True,
            inputs=[
                inp(
                    io.Image.Input, "images",
                    tooltip="The decoded images of the sweep, one per guidance, in the order of the sampler.",
                ),
                inp(io.Custom(SWEEP).Input, "sweep", tooltip="The guidances, from Guidance Sweep."),
                inp(
                    io.Int.Input, "image_size", default=256, min=0, max=4096,
                    tooltip="Longer side of each image in the grid, in pixels. 0: as large as the largest image.",
                ),
                inp(
                    io.String.Input, "scores", optional=True, force_input=True,
                    tooltip="The output scores of Score Images for the same images. The grid then frames the best one.",
                ),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid", tooltip="The grid as a single image, for Save Image."),
                io.Float.Output(
                    "best", display_name="best",
                    tooltip="The best guidance by the scores, for the input guidance of TeEFusion Conditioning; of a "
                    "sharpener, the best alpha, for DICE Sharpen. Without scores, the middle one.",
                ),
                io.String.Output(
                    "report", display_name="report",
                    tooltip="The best guidance by each score, and the images with many clipped colors. Empty if there "
                    "are no scores and no such images.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, sweep, image_size, scores=()) -> io.NodeOutput:
        """Draw, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            begin()
            [shown], [side] = sweep[:1], image_size[:1]
            pictures = [picture for batch in images for picture in as_pictures(batch)]
            if len(pictures) != len(shown.values):
                raise InvalidConfig(
                    f"there are {len(pictures)} images for a sweep of {len(shown.values)}; connect the decoded images "
                    "of the sampler behind Guidance Sweep"
                )
            by_metric = scores_by_metric([text for text in scores if text], len(pictures))
            report, best = verdict(shown, by_metric, [*map(clipping, pictures)]), best_of(by_metric)
            if report:
                tell(report)
            grid = sweep_grid(pictures, shown.captions(), side=side, best=best)
            chosen = shown.values[len(shown.values) // 2 if best is None else best]
            return io.NodeOutput(as_images(grid), float(chosen), report)
