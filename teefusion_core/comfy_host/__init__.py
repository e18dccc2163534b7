"""The only part that talks to ComfyUI."""

from .fuse import STUDENT_KEY, apply_fusion

__all__ = ["STUDENT_KEY", "apply_fusion"]
