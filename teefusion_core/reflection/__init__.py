"""Reflection sampling: Z-Sampling, W2SD."""
