"""Guidance as arithmetic."""
