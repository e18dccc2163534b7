"""Nodes that judge what was sampled."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.evaluation.guidance_run import report_guidance
from ..teefusion_core.comfy_host.evaluation.images import as_images, as_pictures
from ..teefusion_core.comfy_host.evaluation.scoring import score_file, score_files, score_pictures
from ..teefusion_core.errors import reported_by
from ..teefusion_core.evaluation.comparison import compared
from ..teefusion_core.evaluation.guidance_overlay import overlay
from ..teefusion_core.evaluation.judges import JUDGES, OFF
from ..teefusion_core.prompts.prompt_list import prompt_of_each
from ._schema import CATEGORY, inp, schema

REPORT, GRID, SCORE = "Guidance Report", "Compare Grid", "Score Images"
READING = "GUIDANCE_READING"


class GuidanceReport(io.ComfyNode):
    """Sample, with a report of how strongly the run was guided."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="GuidanceReport",
            display_name=REPORT,
            category=CATEGORY,
            description=(
                "Samples like SamplerCustomAdvanced and reports the effective guidance: the CFG scale that "
                "each step really had. It also reports passes, seconds and clipped colors. Measuring adds 2 "
                "passes of model per step."
            ),
            search_aliases=["effective guidance", "w_e", "measure cfg", "count passes", "compare teacher and student"],
            inputs=[
                inp(
                    io.Model.Input, "model",
                    tooltip="The base model that guidance is measured against, without the student. Its predictions "
                    "with and without the prompt define what a CFG scale means. It is not changed.",
                ),
                inp(
                    io.Guider.Input, "guider",
                    tooltip="The guider to measure: CFGGuider, Reflection Guider, or BasicGuider with a student and "
                    "its prompt from TeEFusion Conditioning.",
                ),
                inp(
                    io.Sampler.Input, "sampler",
                    tooltip="A sampler that reports every step, such as euler, heun or Reflection Sampler. With "
                    "ancestral and SDE samplers the added noise is measured too.",
                ),
                inp(
                    io.Sigmas.Input, "sigmas",
                    tooltip="Noise levels of the run, for example from BasicScheduler. At least 1 step is needed.",
                ),
                inp(io.Latent.Input, "latent_image", tooltip="The latent to start from. Its noise mask is respected."),
                inp(
                    io.Conditioning.Input, "positive",
                    tooltip="The encoded prompt, as it is before TeEFusion Conditioning or DICE Sharpen.",
                ),
                inp(
                    io.Conditioning.Input, "negative",
                    tooltip="The encoded empty prompt, or the negative prompt that the guider uses.",
                ),
                inp(
                    io.Int.Input, "noise_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Seed of the noise. RandomNoise with the same seed gives the same image.",
                ),
                inp(
                    io.Vae.Input, "vae", optional=True,
                    tooltip="Decodes the result to measure clipped colors and saturation. If not connected, the "
                    "report leaves them out.",
                ),
                inp(
                    io.Custom(READING).Input, "beside", optional=True,
                    tooltip="The reading of another Guidance Report, for example of the teacher. The plot then shows "
                    "both, so that one look tells whether the student is guided as its teacher is.",
                ),
                inp(
                    io.String.Input, "run_name", default="", optional=True,
                    tooltip="What you call this run, for the plot and the costs. Empty: the name of the guider.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="LATENT",
                    tooltip="The sampled latent, the same as from SamplerCustomAdvanced.",
                ),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="Plot of the effective guidance at each noise level."
                ),
                io.String.Output(
                    "report", display_name="report",
                    tooltip="The results as text, with a table of the steps. Connect it to Preview Any.",
                ),
                io.String.Output(
                    "cost", display_name="cost",
                    tooltip="One line with steps, passes and seconds, for the costs of Compare Grid.",
                ),
                io.Custom(READING).Output(
                    "reading", display_name="reading",
                    tooltip="What was measured, for beside of another Guidance Report.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        guider,
        sampler,
        sigmas,
        latent_image,
        positive,
        negative,
        noise_seed,
        vae=None,
        beside=(),
        run_name="",
    ) -> io.NodeOutput:
        """Sample with measurement, with errors that carry the node's name."""
        with reported_by(REPORT):
            out, report = report_guidance(
                model, guider, sampler, sigmas, latent_image, positive, negative, noise_seed, vae, name=run_name.strip()
            )
            readings = (*beside, report)
            plot = overlay(readings) if beside else report.plot()
        return io.NodeOutput(out, as_images(plot), report.text(), report.cost(), readings)


MORE_IMAGES = ("images_b", "images_c", "images_d", "images_e", "images_f")


def _more_images() -> list:
    """Inputs of the methods after the first."""
    return [
        inp(
            io.Image.Input, name, optional=True,
            tooltip="Images of another method, in the same number and order as images_a.",
        )
        for name in MORE_IMAGES
    ]  # fmt: skip


class CompareGrid(io.ComfyNode):
    """Lay out the pictures of several methods, prompt by prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="CompareGrid",
            display_name=GRID,
            category=CATEGORY,
            description=(
                "Puts the images of up to 6 methods side by side, with one column per method, one row per "
                "prompt and the costs below. Use the same prompts and seeds for every method."
            ),
            search_aliases=["xy plot", "side by side", "contact sheet", "comparison", "teacher and student"],
            inputs=[
                inp(
                    io.Image.Input, "images_a",
                    tooltip="Images of the first method, ordered by prompt, with the same number of images for each "
                    "prompt.",
                ),
                inp(
                    io.String.Input, "prompts", default="", multiline=True,
                    tooltip="Row titles, one prompt per line. Empty: all images in one row without a title.",
                ),
                inp(
                    io.String.Input, "methods", default="", multiline=True,
                    tooltip="Column titles, one method per line, in the order of the inputs. Empty: no titles.",
                ),
                inp(
                    io.String.Input, "costs", default="", multiline=True,
                    tooltip="Text below the images, such as passes and seconds: one line per method, or one line "
                    "per cell, row by row. A semicolon also ends a line. Empty: no text.",
                ),
                inp(
                    io.Int.Input, "image_size", default=256, min=0, max=4096,
                    tooltip="Longer side of each image in the grid, in pixels. 0: as large as the largest image.",
                ),
                *_more_images(),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid", tooltip="The grid as a single image, for Save Image.")
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images_a, prompts, methods, costs, image_size, images_b=None, images_c=None, images_d=None,
        images_e=None, images_f=None,
    ) -> io.NodeOutput:  # fmt: skip
        """Draw, with errors that carry the node's name."""
        batches = [images_a, images_b, images_c, images_d, images_e, images_f]
        with reported_by(GRID):
            names = zip(("images_a", *MORE_IMAGES), batches, strict=True)
            pictures = [as_pictures(batch, name) for name, batch in names if batch is not None]
            grid = compared(pictures, prompts=prompts, methods=methods, costs=costs, side=image_size)
        return io.NodeOutput(as_images(grid))


def _judge(id: str, tooltip: str):
    return inp(io.Combo.Input, id, options=score_files(), default=OFF, tooltip=tooltip)


class ScoreImages(io.ComfyNode):
    """Score pictures with the metrics of the field, by weights that the user has."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="ScoreImages",
            display_name=SCORE,
            category=CATEGORY,
            description=(
                "Scores images with CLIPScore, PickScore, HPSv2.1, LAION aesthetic and ImageReward, and "
                "lists the scores in a table. You provide the weights in models/clip_vision; nothing is "
                "downloaded."
            ),
            search_aliases=["clip score", "pickscore", "hps", "aesthetic score", "image reward", "metrics", "evaluate"],
            inputs=[
                inp(io.Image.Input, "images", tooltip="The images to score, ordered by prompt."),
                inp(
                    io.String.Input, "prompts", default="", multiline=True,
                    tooltip="The prompts of the images, one per line: a single line for all images, or one line per "
                    "group of equally many images.",
                ),
                *(_judge(name, judge.tooltip) for name, judge in JUDGES.items()),
            ],
            outputs=[
                io.String.Output(
                    "table", display_name="table",
                    tooltip="One row per image, then the means. Connect it to Preview Any.",
                ),
                io.String.Output("scores", display_name="scores", tooltip="The same scores as JSON, with all digits."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, prompts, clip, pickscore, hps, aesthetic, image_reward) -> io.NodeOutput:
        """Score, with errors that carry the node's name."""
        chosen = {"clip": clip, "pickscore": pickscore, "hps": hps, "aesthetic": aesthetic}
        chosen["image_reward"] = image_reward
        with reported_by(SCORE):
            files = {judge: score_file(judge, name) for judge, name in chosen.items() if name != OFF}
            pictures = as_pictures(images)
            each = prompt_of_each(prompts, len(pictures), "images")
            numbers = [str(number) for number in range(1, len(pictures) + 1)]
            table = score_pictures(pictures, each, files, numbers)
        return io.NodeOutput(table.text(), table.json())
