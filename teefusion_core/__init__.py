"""Guidance fused into the text embedding of a rectified-flow transformer."""

__version__ = "0.1.0"
