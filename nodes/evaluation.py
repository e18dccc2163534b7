"""Nodes that judge what was sampled."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.evaluation.guidance_run import report_guidance
from ..teefusion_core.comfy_host.evaluation.images import as_images, as_pictures
from ..teefusion_core.comfy_host.evaluation.scoring import OFF, score_file, score_files, score_pictures
from ..teefusion_core.errors import reported_by
from ..teefusion_core.evaluation.comparison import compared
from ..teefusion_core.prompts.prompt_list import prompt_of_each
from ._schema import CATEGORY, inp, schema

REPORT, GRID, SCORE = "Guidance Report", "Compare Grid", "Score Images"


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
                "Samples like SamplerCustomAdvanced, then tells which CFG scale the run amounts to at every step, what "
                "it cost, how much of the picture is clipped. The measurement takes 2 passes of model per step more."
            ),
            search_aliases=["effective guidance", "w_e", "evaluate guider", "count passes", "nfe", "compare cfg"],
            inputs=[
                inp(
                    io.Model.Input,
                    "model",
                    tooltip=(
                        "The yardstick: the base, whose predictions with and without the prompt tell what a CFG scale "
                        "means. It is not changed."
                    ),
                ),
                inp(
                    io.Guider.Input,
                    "guider",
                    tooltip=(
                        "Who is judged: CFGGuider, Reflection Guider, BasicGuider with a student and its fused prompt."
                    ),
                ),
                inp(io.Sampler.Input, "sampler", tooltip="Goes step by step: euler, heun, Reflection Sampler."),
                inp(io.Sigmas.Input, "sigmas", tooltip="Noise levels of the run, as BasicScheduler makes them."),
                inp(io.Latent.Input, "latent_image", tooltip="What to start from; its noise mask is kept to."),
                inp(io.Conditioning.Input, "positive", tooltip="The encoded prompt as it is, not a fused one."),
                inp(
                    io.Conditioning.Input,
                    "negative",
                    tooltip="The encoded empty prompt, or the negative prompt that the guider leads away from.",
                ),
                inp(
                    io.Int.Input,
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise; the same picture as RandomNoise with this seed gives.",
                ),
                inp(
                    io.Vae.Input,
                    "vae",
                    optional=True,
                    tooltip="Decodes the result to count clipped colours; not connected: left out.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="The result of the run."),
                io.Image.Output("plot", display_name="plot", tooltip="Effective guidance over the noise levels."),
                io.String.Output("report", display_name="report", tooltip="The same as text, step by step."),
                io.String.Output(
                    "cost", display_name="cost", tooltip="One line of steps, passes, seconds; for Compare Grid."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, guider, sampler, sigmas, latent_image, positive, negative, noise_seed, vae=None
    ) -> io.NodeOutput:
        """Sample with measurement, with errors that carry the node's name."""
        with reported_by(REPORT):
            out, report = report_guidance(
                model, guider, sampler, sigmas, latent_image, positive, negative, noise_seed, vae
            )
        return io.NodeOutput(out, as_images(report.plot()), report.text(), report.cost())


MORE_IMAGES = ("images_b", "images_c", "images_d", "images_e", "images_f")


def _more_images() -> list:
    """Inputs of the methods after the first."""
    return [
        inp(
            io.Image.Input,
            name,
            optional=True,
            tooltip="Pictures of another method, as many for the same prompts, in the same order.",
        )
        for name in MORE_IMAGES
    ]


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
                "One picture with a column per method, a row per prompt, what each cost below it. Give every method "
                "the same prompts on the same noise."
            ),
            search_aliases=["xy plot", "side by side", "contact sheet", "comparison", "labelled grid"],
            inputs=[
                inp(
                    io.Image.Input,
                    "images_a",
                    tooltip="Pictures of the first method: those of the first prompt first, as many for each prompt.",
                ),
                inp(
                    io.String.Input,
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="A line per row. Empty: all pictures in one row without a title.",
                ),
                inp(
                    io.String.Input,
                    "methods",
                    default="",
                    multiline=True,
                    tooltip="A line per batch of pictures, in the order of the inputs. Empty: no headings.",
                ),
                inp(
                    io.String.Input,
                    "costs",
                    default="",
                    multiline=True,
                    tooltip=(
                        "What stands below the pictures, such as what they cost. A line per method, or a line per "
                        "cell, row by row. A semicolon ends a line too. Empty: nothing."
                    ),
                ),
                inp(
                    io.Int.Input,
                    "image_size",
                    default=256,
                    min=0,
                    max=4096,
                    tooltip="Pixels of the longer side of a picture in the grid. 0: as large as the largest is.",
                ),
                *_more_images(),
            ],
            outputs=[io.Image.Output("grid", display_name="grid", tooltip="The grid as one picture.")],
        )

    @classmethod
    def execute(
        cls, images_a, prompts, methods, costs, image_size, images_b=None, images_c=None, images_d=None,
        images_e=None, images_f=None,
    ) -> io.NodeOutput:  # fmt: skip
        """Draw, with errors that carry the node's name."""
        batches = [images_a, images_b, images_c, images_d, images_e, images_f]
        with reported_by(GRID):
            pictures = [as_pictures(batch) for batch in batches if batch is not None]
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
                "CLIPScore, PickScore, HPSv2.1, LAION aesthetic, ImageReward of pictures with their prompts, as a "
                "table. The weights are safetensors in a clip_vision folder; nothing is downloaded."
            ),
            search_aliases=["clip score", "pickscore", "hps", "aesthetic score", "image reward", "metrics", "evaluate"],
            inputs=[
                inp(io.Image.Input, "images", tooltip="What is judged: pictures of the first prompt first."),
                inp(
                    io.String.Input,
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="A line for all pictures, or as many lines as there are groups of as many pictures.",
                ),
                _judge("clip", "CLIPScore: a CLIP of two towers, e.g. ViT-L/14 of OpenAI. Scores of two CLIPs differ."),
                _judge("pickscore", "PickScore: the weights of PickScore_v1."),
                _judge("hps", "HPSv2.1: its weights, converted; scores are cosines, tables often show 100 times that."),
                _judge("aesthetic", "LAION aesthetic: a head, converted; what it sees comes from clip, ViT-L/14."),
                _judge("image_reward", "ImageReward: its weights, converted, the words of BERT beside them."),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="A row per picture, then means."),
                io.String.Output("scores", display_name="scores", tooltip="The same as JSON, with every digit."),
            ],
        )

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
