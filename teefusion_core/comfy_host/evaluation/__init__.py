"""Evaluation in ComfyUI."""
