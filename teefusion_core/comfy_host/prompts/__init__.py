"""Prompts in ComfyUI CONDITIONING."""
