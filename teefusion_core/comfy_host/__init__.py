"""The only part that talks to ComfyUI."""

from .fuse import STUDENT_KEY, apply_fusion
from .reflection_guider import CFG, CHATS, ReflectionGuider, Scales
from .reflection_sampler import ALL_STEPS, INVERSIONS, ReflectionSampler
from .run import run_reflection, schedule, schedulers
from .student import base_fingerprint, load_student
from .teacher import Teacher
from .tiny import load_tiny
from .tiny import variants as tiny_variants

__all__ = [
    "ALL_STEPS",
    "CFG",
    "CHATS",
    "INVERSIONS",
    "STUDENT_KEY",
    "ReflectionGuider",
    "ReflectionSampler",
    "Scales",
    "Teacher",
    "apply_fusion",
    "base_fingerprint",
    "load_student",
    "load_tiny",
    "run_reflection",
    "schedule",
    "schedulers",
    "tiny_variants",
]
