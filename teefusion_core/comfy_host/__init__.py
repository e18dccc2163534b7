"""The only part that talks to ComfyUI."""

from . import headless  # noqa: F401  before anything else of the host is imported
