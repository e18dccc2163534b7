"""The parts of training that talk to ComfyUI."""
