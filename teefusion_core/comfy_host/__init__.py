"""The only part that talks to ComfyUI."""

from . import headless  # noqa: F401  before anything else of the host is imported
from .conditioning import blend_prompts, sharpen
from .distillation import Distillation
from .fuse import STUDENT_KEY, apply_fusion
from .graph_training import graph_data, train_in_graph
from .guidance_run import report_guidance
from .images import as_images, as_pictures
from .prompts import Prompts
from .reflection_guider import CFG, CHATS, ReflectionGuider, Scales
from .reflection_sampler import ALL_STEPS, INVERSIONS, ReflectionSampler
from .run import run_reflection, schedule, schedulers
from .run_file import teacher_of, training_of
from .scoring import OFF, WANTED, convert, score_file, score_files, score_pictures
from .student import base_fingerprint, file_stamp, load_student, student_file, student_files, update_files
from .teacher import Teacher
from .tiny import load_tiny
from .tiny import variants as tiny_variants
from .training import Training

__all__ = [
    "ALL_STEPS",
    "CFG",
    "CHATS",
    "Distillation",
    "INVERSIONS",
    "OFF",
    "Prompts",
    "STUDENT_KEY",
    "ReflectionGuider",
    "ReflectionSampler",
    "Scales",
    "Teacher",
    "Training",
    "WANTED",
    "apply_fusion",
    "as_images",
    "as_pictures",
    "base_fingerprint",
    "blend_prompts",
    "convert",
    "file_stamp",
    "graph_data",
    "load_student",
    "load_tiny",
    "report_guidance",
    "run_reflection",
    "schedule",
    "schedulers",
    "score_file",
    "score_files",
    "score_pictures",
    "teacher_of",
    "sharpen",
    "student_file",
    "student_files",
    "tiny_variants",
    "train_in_graph",
    "training_of",
    "update_files",
]
