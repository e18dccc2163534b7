"""The only part that talks to ComfyUI."""

from .fuse import STUDENT_KEY, apply_fusion
from .student import base_fingerprint, load_student
from .tiny import load_tiny
from .tiny import variants as tiny_variants

__all__ = ["STUDENT_KEY", "apply_fusion", "base_fingerprint", "load_student", "load_tiny", "tiny_variants"]
