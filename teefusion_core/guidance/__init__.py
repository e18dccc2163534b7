"""Guidance arithmetic on plain tensors."""
