"""Reflection sampling in ComfyUI."""
