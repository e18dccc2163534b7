"""Guidance in ComfyUI models."""
