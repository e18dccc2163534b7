"""The nodes that ComfyUI shows."""

from comfy_api.latest import ComfyExtension

from ..teefusion_core.comfy_host.guidance.wiring import unused_models
from ..teefusion_core.comfy_host.notes import watch_graphs
from .conditioning import TeEFusionConditioning
from .evaluation import CompareGrid, GuidanceReport, ScoreImages
from .guidance_schedule import GuidanceScheduleNode, ScheduledCFGGuiderNode
from .loaders import TeEFusionStudentLoader, TinySD3Loader
from .prompts import DICESharpen, TextEmbeddingBlend
from .reflection import ReflectionGuiderNode, ReflectionSamplerNode
from .sampling import W2SDTeacherSampler, ZSampling
from .sweep import GuidanceSweep, SweepGrid
from .training import DistillTrainer

NODES = [
    TinySD3Loader, TeEFusionStudentLoader, TeEFusionConditioning, DICESharpen, TextEmbeddingBlend, W2SDTeacherSampler,
    ZSampling, ReflectionGuiderNode, ReflectionSamplerNode, DistillTrainer, GuidanceReport, CompareGrid, ScoreImages,
    GuidanceScheduleNode, ScheduledCFGGuiderNode, GuidanceSweep, SweepGrid,
]  # fmt: skip


class TeEFusionExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self):
        """Return every node class, in menu order; called once, when the host starts."""
        watch_graphs(unused_models)
        return list(NODES)
