"""The parts of prompts that talk to ComfyUI."""
