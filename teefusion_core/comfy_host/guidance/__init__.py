"""The parts of guidance that talk to ComfyUI."""
