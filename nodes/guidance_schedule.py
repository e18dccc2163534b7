"""Nodes for guidance that changes over the steps."""

from comfy_api.latest import io, ui

from ..teefusion_core.comfy_host.evaluation.images import as_images
from ..teefusion_core.comfy_host.guidance.scheduled_cfg import ScheduledCFGGuider
from ..teefusion_core.errors import reported_by
from ..teefusion_core.evaluation.schedule_plot import schedule_plot
from ..teefusion_core.guidance.schedule import INTERVAL, LIST, SHAPES, GuidanceSchedule, shares_of
from ._schema import CATEGORY, inp, schema
from .sampling import prompt_inputs

SCHEDULE = "GUIDANCE_SCHEDULE"
ALIASES = ["guidance interval", "dynamic cfg", "cfg schedule", "guidance over time", "limited interval"]


def _percent(id: str, default: float, tooltip: str):
    return inp(io.Float.Input, id, default=default, min=0.0, max=100.0, step=1.0, tooltip=tooltip)


class GuidanceScheduleNode(io.ComfyNode):
    """A curve of the guidance over sampling."""

    DISPLAY_NAME = "Guidance Schedule"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="GuidanceSchedule",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Changes guidance over the steps, for example to guide only in the middle of sampling. Connect it to "
                "TeEFusion Conditioning, CFG Guider with Schedule or Reflection Guider, and set the full guidance or "
                "cfg there."
            ),
            search_aliases=ALIASES,
            inputs=[
                inp(
                    io.Combo.Input, "shape", options=list(SHAPES), default=INTERVAL,
                    tooltip="How guidance changes. interval: full guidance from start to end, low_guidance elsewhere. "
                    "linear up and cosine up: from low_guidance at start to full guidance at end. linear down and "
                    "cosine down: the reverse. list: the numbers in shares. constant: always full guidance.",
                ),
                _percent(
                    "start", 20.0,
                    "Where the interval or the change begins, in percent of sampling. 0: the beginning. The shapes "
                    "constant and list ignore it.",
                ),
                _percent(
                    "end", 80.0,
                    "Where the interval or the change ends, in percent of sampling. 100: the end. The shapes constant "
                    "and list ignore it.",
                ),
                inp(
                    io.Float.Input, "low_guidance", default=0.0, min=0.0, max=100.0, step=0.01,
                    tooltip="Guidance w at the lowest point of the curve; the CFG scale there is 1 + w. 0: no "
                    "guidance, for CFG and for students that were trained from 0. For any other student, set at least "
                    "the smallest guidance that it allows (demo: 0.6).",
                ),
                inp(
                    io.String.Input, "shares", default="", optional=True,
                    tooltip="For the shape list: one number per step, such as 0, 1, 1, 0.5. 1 is the full guidance, "
                    "and 0 is low_guidance; larger numbers guide more. A list of another length is stretched over the "
                    "steps.",
                ),
            ],
            outputs=[
                io.Custom(SCHEDULE).Output(
                    "schedule", display_name="schedule",
                    tooltip="The curve, for the schedule input of TeEFusion Conditioning, CFG Guider with Schedule or "
                    "Reflection Guider.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, shape, start, end, low_guidance, shares="") -> io.NodeOutput:
        """Build the curve, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            listed = tuple(shares_of(shares)) if shape == LIST else ()
            schedule = GuidanceSchedule(shape, start / 100, end / 100, low_guidance, listed)
            plot = as_images(schedule_plot(schedule))
            return io.NodeOutput(schedule, ui=ui.PreviewImage(plot, cls=cls))


class ScheduledCFGGuiderNode(io.ComfyNode):
    """CFG with a schedule as a GUIDER."""

    DISPLAY_NAME = "CFG Guider with Schedule"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="ScheduledCFGGuider",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Classifier-free guidance whose scale follows a Guidance Schedule. Steps at CFG scale 1 cost 1 forward "
                "pass instead of 2. Use it in SamplerCustomAdvanced, or as the teacher of Distill Trainer."
            ),
            search_aliases=ALIASES,
            inputs=[
                inp(io.Model.Input, "model", tooltip="The diffusion model, of any kind. It is not changed."),
                *prompt_inputs(),
                inp(
                    io.Float.Input, "cfg", default=4.0, min=0.0, max=100.0, step=0.1,
                    tooltip="CFG scale where the schedule is at its full guidance. It is 1 + guidance w.",
                ),
                inp(
                    io.Custom(SCHEDULE).Input, "schedule",
                    tooltip="How the scale changes over the steps, from Guidance Schedule.",
                ),
            ],
            outputs=[
                io.Guider.Output(
                    "guider", display_name="GUIDER",
                    tooltip="The guider, for SamplerCustomAdvanced, Guidance Report or Distill Trainer.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, cfg, schedule) -> io.NodeOutput:
        """Build the guider, with errors that carry the node's name."""
        with reported_by(cls.DISPLAY_NAME):
            guider = ScheduledCFGGuider(model, schedule)
            guider.set_conds(positive, negative)
            guider.set_cfg(cfg)
            return io.NodeOutput(guider)
