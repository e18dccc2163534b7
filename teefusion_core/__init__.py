"""Guidance fused into the text embedding of a rectified-flow transformer."""
