"""The parts of evaluation that talk to ComfyUI."""
