"""The parts of reflection that talk to ComfyUI."""
