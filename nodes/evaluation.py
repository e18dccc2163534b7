"""Nodes that judge what was sampled."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host import as_images, report_guidance
from ..teefusion_core.errors import reported_by
from ._schema import CATEGORY, inp, schema

REPORT = "Guidance Report"


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
        return io.NodeOutput(out, as_images(report.plot()), report.text())
